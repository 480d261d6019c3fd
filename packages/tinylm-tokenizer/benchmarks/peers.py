"""The libraries that this package is measured beside: how each is loaded, and how it is asked for ids.

    load("gigatoken", "cl100k", data)  →  Codec(encode, array, batch, decode)

`data` is the folder that `fetch_data.py` fills; `tokenizer_json` a file of the same vocabulary for those that read no
other. Nothing is imported before it is asked for, so that a start can be measured. Knows nothing about time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Codec:
    """encode: text → list of ids; array: text → array of ids; batch: texts → lists of ids, on one thread; decode: list
    of ids → text or bytes. None: the library does not have it."""

    encode: Callable[[str], list[int]]
    array: Callable[[str], Any] | None = None
    batch: Callable[[list[str]], Any] | None = None
    decode: Callable[[list[int]], str | bytes] | None = None


def ranks(encoding: str, data: Path) -> str:
    return str(data / "vocabularies" / encoding / f"{encoding}_base.tiktoken")


def tokenizer_json(encoding: str, data: Path) -> str:
    """Where `encoding.py` writes the tokenizer.json of a vocabulary, for the libraries that read nothing else."""
    return str(data / "vocabularies" / encoding / "json" / "tokenizer.json")


def _tinylm(encoding: str, data: Path) -> Codec:
    from tinylm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(ranks(encoding, data))
    return Codec(
        tokenizer.encode,
        tokenizer.encode_array,
        lambda texts: tokenizer.encode_batch(texts, threads=1),
        tokenizer.decode,
    )


def _tinylm_python(encoding: str, data: Path) -> Codec:
    from tinylm.tokenizer import Tokenizer, kernels

    kernels._compiled = lambda: None  # as where no compiler was
    return Codec(Tokenizer.load(ranks(encoding, data)).encode)


def _tiktoken(encoding: str, data: Path) -> Codec:
    import tiktoken
    import tiktoken_ext.openai_public as public
    from tiktoken.load import load_tiktoken_bpe as read  # tiktoken's own reader, given the file instead of its address

    def local(address: str, expected_hash: str | None = None) -> dict[bytes, int]:
        found: dict[bytes, int] = read(ranks(encoding, data), expected_hash=expected_hash)
        return found

    public.load_tiktoken_bpe = local
    try:
        codec = tiktoken.get_encoding(f"{encoding}_base")
    finally:
        public.load_tiktoken_bpe = read
    return Codec(
        codec.encode_ordinary,
        codec.encode_to_numpy,
        lambda texts: codec.encode_ordinary_batch(texts, num_threads=1),
        codec.decode,
    )


def _tokenizers(encoding: str, data: Path) -> Codec:
    import tokenizers

    codec = tokenizers.Tokenizer.from_file(tokenizer_json(encoding, data))
    return Codec(lambda text: codec.encode(text, add_special_tokens=False).ids, decode=codec.decode)


def _gigatoken(encoding: str, data: Path) -> Codec:
    import gigatoken

    codec = gigatoken.Tokenizer.from_tiktoken(ranks(encoding, data))
    return Codec(
        lambda text: codec.encode(text).tolist(),  # quicker than encode_batch_list([text])
        codec.encode,
        lambda texts: codec.encode_batch_list(texts, parallel=False),
        codec.decode,
    )


def _fastokens(encoding: str, data: Path) -> Codec:
    import fastokens
    import numpy as np

    codec = fastokens.Tokenizer.from_tiktoken(ranks(encoding, data), encoding=f"{encoding}_base")
    return Codec(
        lambda text: codec.encode(text).ids,
        lambda text: np.frombuffer(codec.encode_batch_flat([text])[0], np.uint32),
        lambda texts: [encoding.ids for encoding in codec.encode_batch(texts)],
        codec.decode,
    )


def _toktok(encoding: str, data: Path) -> Codec:
    import toktok

    codec = toktok._encoding(f"{encoding}_base")
    return Codec(
        codec.encode_ordinary,
        lambda text: codec.encode_to_numpy(text, disallowed_special=()),
        decode=codec.decode_bytes,
    )


def _quicktok(encoding: str, data: Path) -> Codec:
    import quicktok

    codec = quicktok.get_encoding(f"{encoding}_base")
    return Codec(codec.encode_ordinary, decode=codec.decode)


def _splintr(encoding: str, data: Path) -> Codec:
    import numpy as np
    import splintr

    codec = splintr.Tokenizer.from_pretrained(f"{encoding}_base")
    return Codec(
        codec.encode_ordinary, lambda text: np.frombuffer(codec.encode_flat(text), np.uint32), decode=codec.decode
    )


def _tuetoken(encoding: str, data: Path) -> Codec:
    import numpy as np
    import tuetoken

    codec = tuetoken.Tokenizer(tokenizer_json(encoding, data))
    return Codec(
        codec.encode_ordinary, lambda text: np.frombuffer(codec.encode_to_bytes(text), np.uint32), decode=codec.decode
    )


def _bpe_openai(encoding: str, data: Path) -> Codec:
    from bpe_openai import _bindings  # its Python wrapper refuses texts of a million characters

    codec = _bindings.tokenizer_for_encoding(f"{encoding}_base")
    return Codec(codec.encode, decode=codec.decode)


LOADERS: dict[str, Callable[[str, Path], Codec]] = {
    "tinylm": _tinylm,
    "tinylm, Python": _tinylm_python,
    "gigatoken": _gigatoken,
    "fastokens": _fastokens,
    "toktok-rs": _toktok,
    "quicktok-v1": _quicktok,
    "splintr-rs": _splintr,
    "tuetoken": _tuetoken,
    "bpe-openai": _bpe_openai,
    "tiktoken": _tiktoken,
    "tokenizers": _tokenizers,
}


def load(library: str, encoding: str, data: Path) -> Codec:
    return LOADERS[library](encoding, data)
