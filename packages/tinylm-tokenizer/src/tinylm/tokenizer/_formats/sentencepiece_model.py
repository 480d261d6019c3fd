"""SentencePiece's *.model files, read and written by hand: a protocol buffer, `ModelProto`.

A message is a row of fields: a key (number << 3 | wire type) and a value, which is a varint (type 0), 8 bytes (1), a
length and that many bytes (2), or 4 bytes (5). A message inside a message is bytes. The fields that matter here:

    ModelProto      1 piece*  2 trainer_spec  3 normalizer_spec  5 denormalizer_spec
    piece           1 text  2 score (float)  3 kind
    trainer_spec    3 model type (1 Unigram, 2 BPE)  4 vocab_size  24 space as suffix  35 byte_fallback
                    40-43 ids and 45-48 texts of unk, bos, eos, pad  44 what an unknown piece is decoded to
    normalizer_spec 1 name  2 compiled rules  3 add_dummy_prefix  4 remove_extra_whitespaces  5 escape_whitespaces

The file is not trusted: lengths, kinds and numbers are checked. Does not encode (`_engines/sentencepiece.py`). Sources:
the encoding of protocol buffers; SentencePiece's sentencepiece_model.proto (numbers and defaults of the fields).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from tinylm.tokenizer._engines.sentencepiece_data import (
    SPACE,
    Charsmap,
    Kind,
    Prepend,
    Replace,
    SentencePieceModel,
    Spaces,
    Step,
)
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._text import charsmap
from tinylm.tokenizer._text.sentencepiece_words import ranked_merges

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_TYPES = {1: "unigram", 2: "sentencepiece-bpe", 3: "word", 4: "char"}
_LONGEST_PIECE = 8000  # bytes; SentencePiece's own limit


class _Damaged(Exception):
    """The bytes are no protocol buffer, or not this one."""


def read(data: bytes, where: str) -> SentencePieceModel:
    """The model in the bytes of a *.model file; `where` names it in error messages.

    Errors: TokenizerError for bytes that are damaged or cut short, and for what this package does not encode.
    """
    try:
        pieces: list[tuple[str, float, int]] = []
        specs: dict[int, bytes] = {}
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_bytes(value)))
            elif number in (2, 3, 5):
                specs[number] = specs.get(number, b"") + _bytes(value)  # parts of one message, by the format's rule
        if not pieces:
            raise _Damaged("it has no pieces")
        return _model(pieces, dict(_fields(specs.get(2, b""))), specs.get(3, b""), specs.get(5, b""), where)
    except (_Damaged, struct.error) as error:
        raise TokenizerError(
            f"wanted a SentencePiece model, got something else in {where}: {error}; the file is damaged or cut short"
        ) from None


def _model(
    pieces: list[tuple[str, float, int]], trainer: dict[int, Any], normalizer: bytes, denormalizer: bytes, where: str
) -> SentencePieceModel:
    algorithm = _TYPES.get(_int(trainer.get(3, 1)), "unknown")
    if algorithm not in ("unigram", "sentencepiece-bpe"):
        raise TokenizerError(f"{where}: the model's type is {algorithm}, which is not supported; wanted BPE or Unigram")
    if dict(_fields(denormalizer)).get(2):
        raise TokenizerError(f"{where}: the model has a denormalizer, which is not supported; wanted none")
    byte_fallback = bool(_int(trainer.get(35, 0)))
    texts, scores, kinds = map(list, zip(*pieces, strict=True))
    for id, text in enumerate(texts):
        if text == "\0" and (byte_fallback or kinds[id] == Kind.UNUSED):  # as SentencePiece treats such files
            texts[id], kinds[id] = "", Kind.UNUSED
    check(texts, scores, kinds, byte_fallback, where)
    special = {text: id for id, (text, kind) in enumerate(zip(texts, kinds, strict=True)) if kind == Kind.CONTROL}
    begin = special.get(_str(trainer.get(46, b"<s>")))
    steps, drop = _steps(normalizer, bool(_int(trainer.get(24, 0))))
    return SentencePieceModel(
        algorithm="unigram" if algorithm == "unigram" else "sentencepiece-bpe",
        pieces=tuple(texts),
        scores=tuple(scores),
        kinds=tuple(kinds),
        unk_id=kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else None,
        unk_surface=_str(trainer.get(44, " \u2047 ".encode())),
        byte_fallback=byte_fallback,
        steps=steps,
        drop_space=drop,
        special_tokens=special,
        prefix=() if begin is None else (begin,),
    )


def _steps(normalizer: bytes, suffix: bool) -> tuple[tuple[Step, ...], Literal["never", "once", "all"]]:
    fields = dict(_fields(normalizer))
    dummy, remove, escape = (bool(_int(fields.get(number, 1))) for number in (3, 4, 5))
    rules = _bytes(fields.get(2, b""))
    if rules:
        charsmap.read(rules)  # refuses what is damaged
    spaces = Spaces(dummy_prefix=dummy, remove_extra=remove, suffix=suffix, escape=escape)
    drop: Literal["never", "once", "all"] = "all" if remove else "once" if dummy else "never"
    return (Charsmap(rules), spaces) if rules else (spaces,), drop


def check(texts: list[str], scores: list[float], kinds: list[int], byte_fallback: bool, where: str) -> None:
    """What SentencePiece asks of a model, so that none loads here that does not load there."""
    seen: set[str] = set()
    for id, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if kind == Kind.UNUSED and not text:
            continue
        if not text or "\0" in text or len(text.encode()) >= _LONGEST_PIECE or text in seen:
            raise TokenizerError(f"{where}: piece {id} is {text[:40]!r}: wanted one that is short, not empty, new")
        seen.add(text)
    if not all(map(math.isfinite, scores)):
        raise TokenizerError(f"{where}: wanted finite scores, got infinity or not-a-number")
    bytes_ = sorted(text for text, kind in zip(texts, kinds, strict=True) if kind == Kind.BYTE)
    if bytes_ != [f"<0x{byte:02X}>" for byte in range(256)] * byte_fallback:
        raise TokenizerError(
            f"{where}: byte_fallback is {byte_fallback}, got {len(bytes_)} byte pieces; wanted "
            f"{'all 256 of <0x00> to <0xFF>' if byte_fallback else 'none'}"
        )
    if kinds.count(Kind.UNKNOWN) > 1 or (Kind.UNKNOWN not in kinds and not byte_fallback):
        raise TokenizerError(f"{where}: wanted one unknown piece, got {kinds.count(Kind.UNKNOWN)}")


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = b"", 0.0, int(Kind.NORMAL)
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value)
        elif number == 2:
            if not isinstance(value, bytes) or len(value) != 4:
                raise _Damaged("a score is no float")
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = _int(value)
    if kind not in Kind._value2member_map_:
        raise _Damaged(f"a piece is of the kind {kind}")
    return _str(text), score, kind


# ---- the wire ----


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field: varints as int, everything else as bytes. Groups (types 3 and 4) are refused."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_EIGHT, _FOUR):
            size = 8 if kind == _EIGHT else 4
        else:
            raise _Damaged(f"a field of type {kind} at byte {at}")
        if key >> 3 == 0 or size > len(data) - at:
            raise _Damaged(f"a field of {size} bytes at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """7 bits a byte, the lowest first; the top bit says that another byte follows."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _Damaged(f"a number at byte {at} does not end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise _Damaged("bytes stand where a number should")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise _Damaged("a number stands where bytes should")
    return value


def _str(value: int | bytes) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError:
        raise _Damaged(f"{_bytes(value)[:20]!r} is not UTF-8") from None


# ---- writing ----


def write(model: SentencePieceModel, name: str = "") -> bytes:
    """The bytes of a *.model file that SentencePiece opens; always the same for the same model.

    name: of the normalisation rules. Errors: TokenizerError for what the format has no place for: merges that are not
    those of the scores, added tokens, other steps of normalisation than compiled rules and spaces. SentencePiece adds
    Unigram's scores in float32: of two ways to cut a text that are as likely to seven digits it may take the other.
    """
    rules = [step for step in model.steps[:1] if isinstance(step, Charsmap) and not step.by_grapheme]
    space = _spaces(model.steps[len(rules) :])
    if space is None:
        raise TokenizerError("a .model file has no place for this tokenizer's normalisation; save a tokenizer.json")
    model = _scored(model)
    if model.merges not in (None, ranked_merges(model)) or model.added_tokens or not model.fuse_unknown:
        raise TokenizerError("a .model file has no place for such merges or added tokens; save a tokenizer.json")
    if model.flags:
        raise TokenizerError(f"a .model file does not say how {[*model.flags]} are found; save a tokenizer.json")
    pieces = b"".join(
        _field(1, _field(1, text.encode() or b"\0") + _key(2, _FOUR) + struct.pack("<f", score) + _number(3, kind))
        for text, score, kind in zip(model.pieces, model.scores, model.kinds, strict=True)
    )
    trainer = (
        _number(3, 1 if model.algorithm == "unigram" else 2)
        + _number(4, len(model.pieces))
        + _number(24, space.suffix)
        + _number(35, model.byte_fallback)
        + b"".join(_number(number, id) for number, id in zip(range(40, 44), _named_ids(model), strict=True))
        + _field(44, model.unk_surface.encode())
        + _texts(model)
    )
    normalizer = (
        _field(1, (name or "identity" * (not rules) or "user_defined").encode())
        + _field(2, rules[0].rules if rules else b"")
        + _number(3, space.dummy_prefix)
        + _number(4, space.remove_extra)
        + _number(5, space.escape)
    )
    return pieces + _field(2, trainer) + _field(3, normalizer)


def _spaces(steps: tuple[Step, ...]) -> Spaces | None:
    """What these steps do with spaces, if a .model file can say it."""
    if len(steps) == 1 and isinstance(steps[0], Spaces):
        return steps[0]
    escape = Replace(" ", SPACE)
    known: dict[tuple[Step, ...], bool] = {(escape,): False, (Prepend(SPACE), escape): True}
    return Spaces(dummy_prefix=known[steps], remove_extra=False) if steps in known else None


def _scored(model: SentencePieceModel) -> SentencePieceModel:
    """With scores in the order of the merges, where a tokenizer.json had merges only."""
    if model.merges is None or any(model.scores):
        return model
    order = {id: -float(place) for place, id in enumerate(dict.fromkeys(result for _, _, result in model.merges))}
    lowest = -float(len(order))
    ids = range(len(model.pieces))
    return replace(model, scores=tuple(order.get(id, lowest * (model.kinds[id] == Kind.NORMAL)) for id in ids))


_NAMES = ("<unk>", "<s>", "</s>", "<pad>")


def _named_ids(model: SentencePieceModel) -> list[int]:
    """The ids of unk, bos, eos and pad; -1 for what is not there."""
    unknown = -1 if model.unk_id is None else model.unk_id
    begin = model.prefix[0] if model.prefix else model.special_tokens.get("<s>", -1)
    return [unknown, begin, *(model.special_tokens.get(text, -1) for text in _NAMES[2:])]


def _texts(model: SentencePieceModel) -> bytes:
    ids = _named_ids(model)
    texts = [model.pieces[id] if id >= 0 else name for id, name in zip(ids, _NAMES, strict=True)]
    return b"".join(_field(number, text.encode()) for number, text in zip(range(45, 49), texts, strict=True))


def _key(number: int, kind: int) -> bytes:
    return _encoded(number << 3 | kind)


def _number(number: int, value: int) -> bytes:
    return _key(number, _VARINT) + _encoded(value & 0xFFFFFFFFFFFFFFFF)  # negative numbers in two's complement


def _field(number: int, value: bytes) -> bytes:
    return _key(number, _BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
