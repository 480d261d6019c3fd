"""*.model files: what sentencepiece reads and writes, every way in which one can be damaged, and conversion."""

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError
from tinylm.tokenizer._engines.sentencepiece_data import Form, Kind, SentencePieceModel, Spaces
from tinylm.tokenizer._formats import sentencepiece_model as files
from tinylm.tokenizer._formats.convert import convert

N, C, B = Kind.NORMAL, Kind.CONTROL, Kind.BYTE
SMALL = SentencePieceModel(
    algorithm="sentencepiece-bpe",
    pieces=("<unk>", "<s>", "</s>", "▁a", "▁", "a", "b", "ab"),
    scores=(0.0, 0.0, 0.0, -0.0, -1.0, -2.0, -3.0, -4.5),
    kinds=(Kind.UNKNOWN, C, C, N, N, N, N, N),
    drop_space="all",
    special_tokens={"<s>": 1, "</s>": 2},
    prefix=(1,),
)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: bytes, kind: int = 1, score: float = 0.0) -> bytes:
    return field(1, field(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


UNKNOWN = piece(b"<unk>", 2)


def test_written_and_read_again() -> None:
    assert files.read(files.write(SMALL), "x.model") == SMALL
    assert files.write(SMALL) == files.write(SMALL)


@pytest.mark.parametrize("name", ["botchan-bpe", "botchan-unigram", "mistral-v1", "mistral-v3"])
def test_files_of_others_are_read_and_what_is_written_opens_there(name: str, vocabulary: Callable[[str], Path]) -> None:
    spm = pytest.importorskip("sentencepiece")
    data = vocabulary(name).read_bytes()
    model = files.read(data, name)
    reference = spm.SentencePieceProcessor(model_proto=data)
    ids = range(reference.get_piece_size())
    assert list(model.pieces) == [reference.id_to_piece(id) for id in ids]
    assert list(model.scores) == [reference.get_score(id) for id in ids]
    again = spm.SentencePieceProcessor(model_proto=files.write(model))
    text = "Hello, Wörld  of 日本 12 <s>\n"
    assert again.encode(text) == reference.encode(text)
    assert (again.bos_id(), again.eos_id(), again.unk_id()) == (1, 2, 0)


def test_every_cut_is_refused_or_a_smaller_model() -> None:
    data = files.write(SMALL)
    for size in range(len(data)):
        with suppress(TokenizerError):
            model = files.read(data[:size], "cut.model")
            assert model.pieces == SMALL.pieces[: len(model.pieces)]


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"any\.model"):
        files.read(data, "any.model")


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_changed_bytes_are_refused_or_make_a_model_that_encodes(chosen: st.DataObject) -> None:
    from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine

    data = bytearray(files.write(SMALL))
    for _ in range(chosen.draw(st.integers(1, 5))):
        data[chosen.draw(st.integers(0, len(data) - 1))] = chosen.draw(st.integers(0, 255))
    try:
        model = files.read(bytes(data), "changed.model")
    except TokenizerError:
        return
    tokenizer = Tokenizer(SentencePieceEngine(model))
    tokenizer.decode(tokenizer.encode("ab a  b日"))


BYTES = b"".join(piece(b"<0x%02X>" % byte, 6) for byte in range(256))


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "no pieces"),
        (UNKNOWN + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "does not end|a field of"),
        (b"\xff" * 20, "does not end"),
        (UNKNOWN + b"\x0b", "type 3"),
        (UNKNOWN + field(1, b"\x0d\0\0\0\0"), "a number stands|bytes stand|not empty"),
        (UNKNOWN + piece(b"\xff"), "not UTF-8"),
        (UNKNOWN + piece(b""), "not empty"),
        (UNKNOWN + piece(b"a") + piece(b"a"), "new"),
        (UNKNOWN + piece(b"a\0b"), "short, not empty"),
        (UNKNOWN + piece(b"a" * 9000), "short"),
        (UNKNOWN + piece(b"a", 9), "kind 9"),
        (UNKNOWN + piece(b"a", 1, float("nan")), "finite"),
        (UNKNOWN + UNKNOWN, "new"),
        (UNKNOWN + piece(b"x", 2), "one unknown"),
        (piece(b"a"), "one unknown"),
        (UNKNOWN + piece(b"<0x00>", 6), "byte_fallback is False"),
        (UNKNOWN + BYTES[:-20] + field(2, b"\x98\x02\x01"), "cut short|byte_fallback|wanted"),
        (UNKNOWN + field(2, b"\x18\x03"), "type is word"),
        (UNKNOWN + field(3, field(2, b"rules")), "damaged"),
        (UNKNOWN + field(5, field(2, b"rules")), "denormalizer"),
    ],
)
def test_each_fault_is_named(data: bytes, wanted: str) -> None:
    with pytest.raises(TokenizerError, match=wanted):
        files.read(data, "bad.model")


def test_a_zero_piece_beside_byte_fallback_is_unused() -> None:
    """Some converters write one; sentencepiece opens such files."""
    model = files.read(UNKNOWN + piece(b"\0") + BYTES + field(2, b"\x18\x02\x98\x02\x01"), "zero.model")
    assert model.kinds[1] == Kind.UNUSED
    assert model.pieces[1] == ""


def test_what_the_format_cannot_hold_is_refused() -> None:
    for changed in (
        replace(SMALL, steps=(Form("nfc"), Spaces())),
        replace(SMALL, added_tokens={"x": 3}),
        replace(SMALL, merges=((5, 6, 7),)),
        replace(SMALL, fuse_unknown=False),
    ):
        with pytest.raises(TokenizerError, match="no place"):
            files.write(changed)


def test_a_model_without_extension_or_a_missing_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="none"):
        Tokenizer.load(tmp_path / "none.model")


def test_convert_between_model_and_json(tmp_path: Path) -> None:
    path = tmp_path / "small.model"
    path.write_bytes(files.write(SMALL))
    tokenizer = Tokenizer.load(path)
    convert(tokenizer, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == path.read_bytes()
    tokenizer.save(tmp_path / "json")
    assert Tokenizer.load(tmp_path / "json").encode("ab a") == tokenizer.encode("ab a")
    with pytest.raises(TokenizerError, match="byte-level BPE only"):
        convert(tokenizer, tmp_path / "x.tiktoken")
