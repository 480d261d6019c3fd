"""tinylm.inference: the one error that this package raises for bad input. It holds no other code; see `llm.py` next."""


class InferenceError(ValueError):
    """Something asked of inference cannot be done; the message says what was wanted, what was got and what to do."""
