"""tinylm-obs · the one public error.

You are in the package that writes and reads runs. Everything that a user can put right (a missing directory, a file
that is no run, a full disk) is raised as ObservabilityError; its message says what was wanted, what was got, where,
and what to do. It does NOT cover bugs: those stay what they are. Next: `_run.py`, `_readers.py`.
"""


class ObservabilityError(ValueError):
    """A run, a row, a table or a ladder that cannot be written or read as asked."""
