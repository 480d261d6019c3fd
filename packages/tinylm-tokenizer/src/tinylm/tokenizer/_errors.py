"""Where you are: the tokenizer package's one public exception. It holds nothing else.

Next: `naive_bpe.py`, the lowest rung.
"""


class TokenizerError(ValueError):
    """Bad input to the tokenizer package; the message says what was wanted, what was got and what to do."""
