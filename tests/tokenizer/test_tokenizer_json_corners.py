"""Corners of tokenizer.json that a comparison of made-up files with tokenizers found: the same ids on both rungs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError, kernels
from tinylm.tokenizer._formats.json_byte_level import to_printable

BYTES = {to_printable(bytes([byte])): byte for byte in range(256)}
BYTE_PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)}
BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}


def added(id: int, content: str, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": id, "content": content, **plain, **flags}


def file(model: dict[str, Any], *tokens: dict[str, Any], **parts: Any) -> dict[str, Any]:
    rest = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    return {"version": "1.0", **dict.fromkeys(rest), "added_tokens": list(tokens), "model": model, **parts}


def bpe(vocab: dict[str, int], merges: list[list[str]], **options: Any) -> dict[str, Any]:
    names = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **dict.fromkeys(names), **flags, "vocab": vocab, "merges": merges, **options}


def byte_level(extra: list[str], merges: list[list[str]], *tokens: dict[str, Any], **options: Any) -> dict[str, Any]:
    vocab = {**BYTES, **{text: 256 + number for number, text in enumerate(extra)}}
    return file(bpe(vocab, merges, **options), *tokens, pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL)


def unigram(vocab: list[str], *tokens: dict[str, Any], **parts: Any) -> dict[str, Any]:
    scored = [["<unk>", 0.0], *([piece, -2.0] for piece in vocab)]
    return file({"type": "Unigram", "unk_id": 0, "vocab": scored, "byte_fallback": False}, *tokens, **parts)


def wordpiece(vocab: list[str], *tokens: dict[str, Any], lowercase: bool = False) -> dict[str, Any]:
    normal = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": {text: id for id, text in enumerate(["[UNK]", *vocab])}}
    return file(
        model,
        *tokens,
        normalizer={**normal, "lowercase": lowercase},
        pre_tokenizer={"type": "BertPreTokenizer"},
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": True}


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


STRIP_BOTH = {"type": "Strip", "strip_left": True, "strip_right": True}
SPELLED = ["<", "u", "n", "k", ">", "0", "x", "A", "a", "▁"]
HE = ["he", "hel", "helo"]
MAKE_HE = [["h", "e"], ["he", "l"], ["hel", "o"]]
# name → a file, and texts whose ids were other ones
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a byte-level added token inside a word": (
        byte_level(HE, MAKE_HE, added(258, "helo", single_word=True)),
        ["helo", "helos", "xhelo helo", "hel"],
    ),
    "an added token that merges cannot make": (byte_level(["日本"], [], added(256, "日本")), ["日本", "a日本b"]),
    "a WordPiece added token inside a word": (
        wordpiece(["a", "##a", "##b"], added(1, "a", single_word=True)),
        ["a", "ab", "aab", "a,a"],
    ),
    "a WordPiece added token in upper case": (
        wordpiece(["hello", "##s"], added(1, "hello"), lowercase=True),
        ["hello", "Hello", "HELLOS", "hellos"],
    ),
    "a merge that is there twice": (
        byte_level(["ll", "lo"], [["l", "l"], ["l", "o"], ["l", "l"]]),
        ["llo", "ll", "llol"],
    ),
    "white space between two that take it": (
        byte_level([], [], added(256, "\n", lstrip=True, rstrip=True)),
        ["\n\n", "x\n\n \ny", "\n"],
    ),
    "white space that the token before took": (
        byte_level([], [], added(256, "aa", rstrip=True), added(257, "  b", lstrip=True, rstrip=True)),
        ["aa    b c", "aa  b", "  b"],
    ),
    "the unknown token written out": (unigram(SPELLED), ["<unk>", "a<unk>é", "é<unk>", "<unk><unk>é"]),
    "a byte written out": (
        file(
            {
                "type": "Unigram",
                "unk_id": 0,
                "vocab": [["<unk>", 0.0], ["a", -1.0], *([piece, -20.0] for piece in BYTE_PIECES)],
                "byte_fallback": True,
            },
            added(0, "<unk>", special=True),
        ),
        ["<0x0A>", "a<0x0A>\n", "<0x0"],
    ),
    "no unknown token": (
        file(bpe({"a": 0, "b": 1, "ab": 2}, [["a", "b"]])),
        ["ab", "acb", "céacccbé", "c"],
    ),
    "no unknown token and words": (
        file(bpe({"a": 0, "b": 1, "ab": 2}, [["a", "b"]]), pre_tokenizer=metaspace("always")),
        ["a b", "acb", "ca cb", " "],
    ),
    "an unknown token of one letter": (
        file(bpe({"u": 0, "a": 1}, [], unk_token="u", fuse_unk=True)),
        ["xu", "uxxu", "axx"],
    ),
    "a first character that goes": (
        unigram(
            SPELLED,
            normalizer={
                "type": "Sequence",
                "normalizers": [STRIP_BOTH],
            },
            pre_tokenizer=metaspace("first"),
        ),
        [" a", "a", "a ", " ", "\n a b"],
    ),
    "a first character that goes, but was not there": (
        unigram(
            SPELLED,
            normalizer={
                "type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": " "}, {"type": "StripAccents"}, STRIP_BOTH],
            },
            pre_tokenizer=metaspace("first"),
        ),
        ["a", " a", "\u0301a", "n\u0301 "],
    ),
    "a first accent that goes": (
        unigram(SPELLED, normalizer={"type": "StripAccents"}, pre_tokenizer=metaspace("first")),
        ["\u0301a", "a\u0301"],
    ),
    "first characters that become one": (
        unigram(SPELLED, normalizer=replace("nn", "x"), pre_tokenizer=metaspace("first")),
        ["nna", "nnn", "ann"],
    ),
    "a first character that becomes another": (
        unigram(SPELLED, normalizer=replace("n", "xk"), pre_tokenizer=metaspace("first")),
        ["na", "nna"],
    ),
    "first spaces that become one": (
        unigram(
            SPELLED,
            normalizer={"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "x"},
            pre_tokenizer=metaspace("first"),
        ),
        ["  a", " a", "a  "],
    ),
}


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_same_ids(
    name: str, kernel: bool, write_json: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = pytest.importorskip("tokenizers")
    content, texts = CASES[name]
    path = write_json(json.dumps(content).encode())
    if not kernel:
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
    tokenizer, reference = Tokenizer.load(path), lib.Tokenizer.from_file(str(path))
    for text in texts:
        assert tokenizer.encode(text) == reference.encode(text).ids, text
        assert list(tokenizer.encode_stream([*text])) == tokenizer.encode(text), text
        assert len(tokenizer.offsets(text)) == len(tokenizer.encode(text))


TIDY = [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
DECODERS: dict[str, dict[str, Any]] = {
    "metaspace": metaspace("always"),
    "metaspace, never": metaspace("never"),
    "strip": {"type": "Sequence", "decoders": [*TIDY, STRIP]},
    "as it is": {"type": "Sequence", "decoders": TIDY},
}


@pytest.mark.parametrize("name", DECODERS)
def test_same_text(name: str, write_json: Callable[[bytes], Path]) -> None:
    lib = pytest.importorskip("tokenizers")
    content = unigram(["▁▁a▁b", "▁", " ", " b", "a", "日"], decoder=DECODERS[name])
    path = write_json(json.dumps(content).encode())
    tokenizer, reference = Tokenizer.load(path), lib.Tokenizer.from_file(str(path))
    path.write_bytes(tokenizer.engine.files()["tokenizer.json"])
    again = Tokenizer.load(path)
    for ids in ([1, 1], [2, 2, 5], [3, 3], [4, 1, 2], [5, 4], [6, 2], [2], [], [0, 2, 0]):
        text = reference.decode(ids)
        assert tokenizer.decode(ids) == text, ids
        assert again.decode(ids) == text, ids
        decoder = tokenizer.stream_decoder()
        assert "".join(map(decoder.push, ids)) + decoder.finish() == text, ids


SEP = added(256, "[SEP]", special=True)
AROUND = {"type": "BertProcessing", "cls": ["[SEP]", 256], "sep": ["[SEP]", 256]}
U_MERGE = bpe({"u": 0, "a": 1, "au": 2}, [["a", "u"]], unk_token="u")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (
            byte_level([], [], SEP) | {"post_processor": {"type": "Sequence", "processors": [AROUND, AROUND]}},
            "the post-processor",
        ),
        (file(U_MERGE), "unknown token"),
        (unigram([], decoder={"type": "Sequence", "decoders": [TIDY[0], STRIP]}), "Strip in the decoder"),
        (unigram([], normalizer={"type": "Prepend", "prepend": ""}), "a step of the normalizer"),
        (
            unigram(
                [],
                normalizer={"type": "Sequence", "normalizers": [replace(" ", "▁"), {"type": "NFKC"}]},
                pre_tokenizer={
                    "type": "Split",
                    "pattern": {"String": " "},
                    "behavior": "MergedWithPrevious",
                    "invert": False,
                },
            ),
            "the pre-tokenizer",
        ),
        (
            file(
                {
                    "type": "Unigram",
                    "unk_id": 0,
                    "vocab": [["<unk>", 0.0], *([piece, -20.0] for piece in BYTE_PIECES)],
                    "byte_fallback": True,
                }
            ),
            "unknown token beside byte_fallback",
        ),
    ],
)
def test_what_would_be_different_is_refused(
    content: dict[str, Any], wanted: str, write_json: Callable[[bytes], Path]
) -> None:
    with pytest.raises(TokenizerError, match=wanted):
        Tokenizer.load(write_json(json.dumps(content).encode()))


@pytest.mark.parametrize("kernel", [True, False])
def test_merges_do_not_make_special_tokens(
    kernel: bool, write_json: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays text where it is not allowed, whatever the merges say; tokenizers always finds it."""
    content = file(bpe({"a": 0, "b": 1, "ab": 2, "u": 3}, [["a", "b"]], unk_token="u"), added(2, "ab", special=True))
    if not kernel:
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
    tokenizer = Tokenizer.load(write_json(json.dumps(content).encode()))
    assert tokenizer.encode("abx") == [0, 1, 3]
    assert tokenizer.encode("abx", allowed_special="all") == [2, 3]


def test_special_tokens_keep_their_ids_elsewhere(tmp_path: Path) -> None:
    """tokenizers gives a special token the id behind the vocabulary, unless it stands there with its own."""
    import base64

    lib = pytest.importorskip("tokenizers")
    ranks = tmp_path / "x.tiktoken"
    tokens = [(bytes([byte]), 2 + byte) for byte in range(256)] + [(b"ab", 258)]
    ranks.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % id for token, id in tokens))
    for specials in ({"<a>": 0, "<b>": 300}, {"<a>": 260, "<b>": 259}, {"<a>": 259}, {}):
        tokenizer = Tokenizer.load(ranks, pattern="gpt2", special_tokens=specials)
        tokenizer.save(tmp_path / "saved")
        path = tmp_path / "saved" / "tokenizer.json"
        reference, again = lib.Tokenizer.from_file(str(path)), Tokenizer.load(path)
        text = "".join(f"ab{name}c" for name in specials) + "ab"
        ids = tokenizer.encode(text, allowed_special="all")
        assert ids == reference.encode(text).ids == again.encode(text, allowed_special="all")
        assert tokenizer.encode(text) == again.encode(text)
    with pytest.raises(TokenizerError, match="no place for the token 'ab'"):
        Tokenizer.load(ranks, pattern="gpt2", special_tokens={"ab": 400}).save(tmp_path / "taken")


def test_known_encodings_keep_their_special_ids_elsewhere(vocabulary: Callable[[str], Path], tmp_path: Path) -> None:
    lib = pytest.importorskip("tokenizers")
    for name in ("cl100k", "o200k"):
        tokenizer = Tokenizer.load(vocabulary(name))
        tokenizer.save(tmp_path / name)
        reference = lib.Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        text = " and ".join(tokenizer.special_tokens)
        assert tokenizer.encode(text, allowed_special="all") == reference.encode(text).ids


def test_merges_with_the_line_ends_of_windows(tmp_path: Path) -> None:
    lib = pytest.importorskip("tokenizers")
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text(json.dumps({**BYTES, "ab": 256, "abc": 257}), encoding="utf-8")
    merges.write_bytes(b"#version: 0.2\r\na b\r\nab c\r\n")
    reference = lib.ByteLevelBPETokenizer(str(vocab), str(merges))
    assert Tokenizer.load(tmp_path).encode("abcab c") == reference.encode("abcab c").ids
