"""tinylm.tokenizer: text to ids and back.

Start here, then read `byte_bpe` (the algorithm on one screen), `byte_bpe_fast` (the same result, incremental) and
`kernels` (the same result, C++); `tokenizer` is the class that everybody uses. Importing this package imports nothing
else: names are looked up when they are first used (PEP 562), so that a command's `--help` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinylm.tokenizer import byte_bpe, byte_bpe_fast, kernels, naive_bpe, naive_bpe_fast, wordpiece
    from tinylm.tokenizer._errors import TokenizerError
    from tinylm.tokenizer._explain import Merge
    from tinylm.tokenizer._streaming import StreamDecoder
    from tinylm.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Merge",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "byte_bpe",
    "byte_bpe_fast",
    "kernels",
    "naive_bpe",
    "naive_bpe_fast",
    "wordpiece",
]

_HOME = {
    "Merge": "_explain",
    "StreamDecoder": "_streaming",
    "Tokenizer": "tokenizer",
    "TokenizerError": "_errors",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
