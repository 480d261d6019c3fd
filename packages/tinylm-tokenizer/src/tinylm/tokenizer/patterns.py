r"""The pre-tokenisation patterns by name: how text is cut into pieces before byte-pair encoding.

Byte-pair encoding never merges across a piece. Each pattern below matches every character of a text (there are no
gaps), and none of them can backtrack more than once over a run of characters, so cutting is linear in the text. That
is why only these are accepted, and not any regular expression that a downloaded file may hold.

    gpt2      GPT-2: contractions, words with their space in front, numbers, punctuation, white space
    cl100k    GPT-4: contractions in any case, numbers of at most 3 digits, line ends kept with punctuation
    o200k     GPT-4o: words split where lower case turns to upper case, contractions kept with their word
    llama3    Llama 3: cl100k, except that white space at the end of a text is cut after its last line end
    qwen2     Qwen2 and Qwen3: llama3 with every digit alone
    digits    one digit alone; always followed by another pattern (SmolLM2: digits, then gpt2)

Sources: the GPT-2 and tiktoken releases and the `tokenizer.json` files of the models. `\s++(?!\S)` (cl100k) says "white
space up to the end of the text" without `$`, which means something else in each regular expression engine.
Next: `_text/pretokenize.py`, which applies them.
"""

from __future__ import annotations

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"

PATTERNS: dict[str, str] = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s++(?!\S)|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"
    ),
    "llama3": rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}",
    "qwen2": rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACE}",
    "digits": r"\p{N}",
}

# The names that `Tokenizer.train(pattern=...)` accepts: "digits" alone would leave words uncut.
TRAINABLE = tuple(name for name in PATTERNS if name != "digits")
