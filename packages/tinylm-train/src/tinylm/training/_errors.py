"""The one error that this package raises for anything a user can put right. Not here: bugs, which keep a traceback."""


class TrainingError(ValueError):
    """A data set, an option or a checkpoint is not what was wanted; the message says what was, and what to do."""
