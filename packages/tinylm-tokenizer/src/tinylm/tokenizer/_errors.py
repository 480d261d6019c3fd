"""The one error of tinylm.tokenizer. Raise it with: what was wanted, what was got, what to do."""

from typing import NoReturn


class TokenizerError(ValueError):
    """A text, a file, an id or an option that the tokenizer cannot use. The message is meant to be read by a person."""


def refuse_text(text: object) -> NoReturn:
    """Say what is wrong with what should be a text. Called while the error that showed it is being handled."""
    if not isinstance(text, str):
        decode = "; decode it first" if isinstance(text, (bytes, bytearray)) else ""
        raise TokenizerError(f"wanted a string, got {type(text).__name__}{decode}") from None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"wanted text, got the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: it has "
            "no UTF-8 form; remove or replace it"
        ) from None
    raise
