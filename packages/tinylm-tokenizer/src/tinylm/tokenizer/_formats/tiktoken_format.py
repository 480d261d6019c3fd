"""tiktoken's rank files (`*.tiktoken`) and GPT-2's pair of files (`vocab.json` + `merges.txt`): read and write.

A rank file has one token a line, base64 and its rank; it says neither the pattern nor the special tokens. Those of the
known encodings are recognised by the file's sha256. Does not touch the disk (see `load.py`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping

from tinylm.tokenizer import kernels
from tinylm.tokenizer._engines.vocabulary import RankedMerges, Vocabulary
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats.json_parts import MAX_ID
from tinylm.tokenizer.patterns import TRAINABLE

_END = "<|endoftext|>"
_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}

# sha256 of the rank file → pattern and special tokens, as in tiktoken 0.14.
KNOWN: dict[str, tuple[str, dict[str, int]]] = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": ("gpt2", {_END: 50256}),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": ("gpt2", {_END: 50256}),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": (
        "cl100k",
        {_END: 100257, **_FIM, "<|endofprompt|>": 100276},
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": (
        "o200k",
        {_END: 199999, "<|endofprompt|>": 200018},
    ),
}


def is_known(data: bytes) -> bool:
    """Whether the pattern and the special tokens of this rank file are known."""
    return hashlib.sha256(data).hexdigest() in KNOWN


def read(data: bytes, where: str, pattern: str | None, special_tokens: Mapping[str, int]) -> Vocabulary:
    """The vocabulary of a rank file. Errors: TokenizerError for broken lines, and for an unknown file."""
    known = KNOWN.get(hashlib.sha256(data).hexdigest())
    if known and pattern is None:
        pattern, special_tokens = known[0], {**known[1], **special_tokens}
    if pattern is None:
        raise TokenizerError(
            f"{where} is none of the known rank files (r50k_base, p50k_base, cl100k_base, o200k_base); say which "
            f'pattern cuts the text: pattern="cl100k" (--pattern cl100k), one of {", ".join(TRAINABLE)}'
        )
    tokens = kernels.read_ranks(data) or _tokens(data, where)
    _check_specials(special_tokens, tokens, where)
    merges = RankedMerges(tokens)
    return Vocabulary(tokens, merges, dict(special_tokens), (pattern,), True, merges_make_all=known is not None)


def _check_specials(special_tokens: Mapping[str, int], tokens: Mapping[int, bytes], where: str) -> None:
    """Raise TokenizerError for special tokens that are no texts, or have no id of their own."""
    names: dict[int, str] = {}
    for text, id in special_tokens.items():
        if not isinstance(text, str) or not text or any("\ud800" <= character <= "\udfff" for character in text):
            raise TokenizerError(f"{where}: wanted special tokens that are text, got {text!r}")
        if type(id) is not int or not 0 <= id <= MAX_ID:
            raise TokenizerError(f"{where}: wanted an id from 0 to {MAX_ID} for the special token {text!r}, got {id!r}")
        if id in tokens or id in names:
            taken = repr(tokens.get(id) or names[id])
            raise TokenizerError(f"{where}: the special token {text!r} cannot have the id {id}: that is {taken}")
        names[id] = text


def _tokens(data: bytes, where: str) -> dict[int, bytes]:
    """The tokens of a rank file, id → bytes."""
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            encoded, rank = line.split()
            token, id = base64.b64decode(encoded, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"{where}, line {number}: wanted a token in base64 and its rank, got {line[:60]!r}; the file is "
                "damaged or no tiktoken file"
            ) from None
        if id in tokens or not 0 <= id < 2**32 - 1 or not token:
            raise TokenizerError(f"{where}, line {number}: the rank {id} is there twice, too large, or its token empty")
        tokens[id] = token
    ids = {token: id for id, token in tokens.items()}
    missing = sum(bytes([byte]) not in ids for byte in range(256))
    if missing or len(ids) != len(tokens):
        raise TokenizerError(
            f"{where}: wanted all 256 bytes and each token and id once, got {missing} bytes missing, "
            f"{len(tokens) - len(ids)} tokens twice; the file is damaged or cut short"
        )
    return tokens


def write(vocabulary: Vocabulary) -> bytes:
    """The rank file. Errors: TokenizerError if ids are not in merge order, for then ranks cannot be ids, if a byte has
    no token, or if a token would be made where this vocabulary's merges do not make it."""
    from tinylm.tokenizer import byte_bpe_fast

    if len({token for token in vocabulary.tokens.values() if len(token) == 1}) < 256:
        raise TokenizerError("a .tiktoken file holds all 256 bytes, which is not so in this tokenizer")
    order = [result for _, _, result in vocabulary.merges]
    if order != sorted(order):
        raise TokenizerError(
            "a .tiktoken file says that the token of the lowest id is merged first, which is not so in this tokenizer"
        )
    if not vocabulary.ranked and (lost := byte_bpe_fast.unmade(vocabulary)):
        merges = set(RankedMerges(vocabulary.tokens))  # what who reads the file makes of it
        if not vocabulary.whole_piece_first or set(vocabulary.merges) != merges:
            raise TokenizerError(
                f"the merges of this tokenizer do not make {len(lost):,} of its tokens, {_shown(lost[0])} for one, and "
                "who reads a .tiktoken file would make them: ids would change"
            )
    lines = [base64.b64encode(token) + b" %d\n" % id for id, token in sorted(vocabulary.tokens.items())]
    return b"".join(lines)


def _shown(token: bytes) -> str:
    return repr(token.decode(errors="backslashreplace"))


def read_gpt2(vocab: bytes, merges: bytes, where: str, pattern: str | None) -> Vocabulary:
    """The vocabulary of vocab.json + merges.txt; GPT-2's pattern unless another is named."""
    import json

    from tinylm.tokenizer._formats import json_byte_level

    try:
        ids = json.loads(vocab.decode())
        lines = merges.decode().replace("\r\n", "\n").split("\n")  # as Windows writes them, too
        rows = [line for line in lines if line and not line.startswith("#version")]
        specials = [{"id": ids[_END], "content": _END}] if _END in ids else []
    except (ValueError, TypeError, RecursionError) as error:
        raise TokenizerError(f"wanted vocab.json and merges.txt, got broken ones in {where}: {error}") from None
    stage = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"type": "BPE", "vocab": ids, "merges": rows}
    content = {"added_tokens": specials, "pre_tokenizer": stage, "model": model}
    try:
        vocabulary = json_byte_level.read(content, where)
    except (KeyError, TypeError, AttributeError) as error:
        raise TokenizerError(f"wanted GPT-2's vocab.json and merges.txt, got other ones in {where}: {error}") from None
    if pattern is None:
        return vocabulary
    return Vocabulary(vocabulary.tokens, vocabulary.merges, vocabulary.special_tokens, (pattern,))


def write_gpt2(vocabulary: Vocabulary) -> tuple[bytes, bytes]:
    """The bytes of vocab.json and merges.txt, which name neither the pattern nor which tokens are special. Errors:
    TokenizerError for tokens that merges do not make, and for special ones that cannot be written as tokens."""
    import json

    from tinylm.tokenizer import byte_bpe_fast
    from tinylm.tokenizer._formats import json_byte_level

    vocab = {json_byte_level.to_printable(token): id for id, token in vocabulary.tokens.items()}
    names = {id: name for name, id in vocab.items()}
    if vocabulary.whole_piece_first and (lost := byte_bpe_fast.unmade(vocabulary)):
        raise TokenizerError(
            f"merges do not make {len(lost):,} tokens of this tokenizer, {_shown(lost[0])} for one: who reads "
            "vocab.json and merges.txt would never find them, and ids would change"
        )
    for text, id in vocabulary.special_tokens.items():
        if vocab.get(text, id) != id or not json_byte_level.is_printable(text):
            raise TokenizerError(
                f"vocab.json has no place for the special token {text!r}: it would not be read as that"
            )
    vocab |= vocabulary.special_tokens
    rows = [f"{names[left]} {names[right]}\n" for left, right, _ in vocabulary.merges]
    in_order = dict(sorted(vocab.items(), key=lambda item: item[1]))
    return (json.dumps(in_order, ensure_ascii=False) + "\n").encode(), ("#version: 0.2\n" + "".join(rows)).encode()
