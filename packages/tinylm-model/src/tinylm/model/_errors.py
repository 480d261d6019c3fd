"""The one error that callers of `tinylm.model` need to catch.

Not here: CLI handling (cli.py). Next: config.py.
"""


class ModelError(ValueError):
    """Something the user gave does not fit: the message says what was wanted, what was got, and what to do."""
