"""tinylm.inference: the errors that this package raises for bad input. It holds no other code; see `llm.py` next."""


class InferenceError(ValueError):
    """Something asked of inference cannot be done; the message says what was wanted, what was got and what to do."""


class ContextError(InferenceError):
    """A prompt that leaves no room for an answer. A server gives OpenAI's code for it, by which clients shorten it."""

    code = "context_length_exceeded"


class ParameterError(InferenceError):
    """Found while a text is written: what was asked for is the reason, not the model. A server says 400."""
