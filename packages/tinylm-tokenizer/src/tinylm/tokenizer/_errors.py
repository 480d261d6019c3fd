"""The one error of tinylm.tokenizer. It holds no logic; raise it with: what was wanted, what was got, what to do."""


class TokenizerError(ValueError):
    """A text, a file, an id or an option that the tokenizer cannot use. The message is meant to be read by a person."""
