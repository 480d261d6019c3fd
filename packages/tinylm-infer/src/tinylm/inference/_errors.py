"""tinylm.inference: the errors that this package raises for bad input. It holds no other code; see `llm.py` next."""


class InferenceError(ValueError):
    """Something asked of inference cannot be done; the message says what was wanted, what was got and what to do."""


class ParameterError(InferenceError):
    """Found while a text is written: what was asked for is the reason, not the model. A server says 400."""
