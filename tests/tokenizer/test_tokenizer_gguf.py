"""GGUF tokenizers: the real SmolLM2 file, made files of each kind, hostile files."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError
from tinylm.tokenizer.ladder import made_text

tokenizers = pytest.importorskip("tokenizers")


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return string(key) + struct.pack("<I", 8) + string(value)
    if isinstance(value, bool):
        return string(key) + struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return string(key) + struct.pack("<II", 4, value)
    if isinstance(value[0], float):
        return string(key) + struct.pack("<IIQ", 9, 6, len(value)) + struct.pack(f"<{len(value)}f", *value)
    if isinstance(value[0], str):
        return string(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(string, value))
    return string(key) + struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)


def gguf(pairs: dict[str, Any], version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + b"".join(pair(*item) for item in pairs.items())


def byte_level_pairs(tok: Tokenizer, **changes: Any) -> dict[str, Any]:
    content = json.loads(tok.engine.files()["tokenizer.json"])
    vocab = {**content["model"]["vocab"], **tok.special_tokens}
    texts = sorted(vocab, key=vocab.__getitem__)
    pairs = {
        "general.architecture": "gpt2",
        "general.numbers": [1, 2, 3],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if text in tok.special_tokens else 1 for text in texts],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tok.special_tokens["<|im_start|>"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ messages }}",
    }
    return {key: value for key, value in {**pairs, **changes}.items() if value is not None}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(data: bytes) -> Path:
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        return path

    return written


def test_smollm2(vocabulary: Callable[[str], Path], tmp_path: Path) -> None:
    tok = Tokenizer.load(vocabulary("smollm2"))
    assert (tok.vocab_size, tok.algorithm) == (49152, "bpe")
    assert [tok.special_tokens[text] for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert (tok.bos_id, tok.eos_id) == (1, 2)
    tok.save(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (made_text(3000), "def f(x):\n\treturn 12345 + x  # ½ Größe 你好 🎉", "It's 2024."):
        assert tok.encode(text) == reference.encode(text, add_special_tokens=False).ids
        assert tok.decode(tok.encode(text)) == text
    ids = tok.apply_chat_template([{"role": "user", "content": "Hi <|im_end|>"}], add_generation_prompt=True)
    assert ids[0] == 1
    assert tok.decode(ids).endswith("<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert ids.count(2) == 2  # the system turn's and the user's: what the user wrote is text
    for method in (tok.encode, tok.encode_array, lambda text: tok.encode_batch([text])):
        with pytest.raises(TokenizerError, match=r"U\+0004 \(at character 1\)"):
            method("a\x04b")


def test_byte_level(trained: dict[str, Tokenizer], mixed: str, write: Callable[[bytes], Path]) -> None:
    for version in (2, 3):
        tok = Tokenizer.load(write(gguf(byte_level_pairs(trained["llama3"]), version)))
        assert tok.encode(mixed, add_special_tokens=True)[0] == tok.bos_id == tok.special_tokens["<|im_start|>"]
        assert tok.special_tokens == trained["llama3"].special_tokens
        assert tok.decode(tok.encode(mixed)) == mixed
        assert tok.chat_template == "{{ messages }}"
    same = Tokenizer.load(write(gguf(byte_level_pairs(trained["gpt2"], **{"tokenizer.ggml.pre": "gpt-2"}))))
    assert same.encode(mixed) == trained["gpt2"].encode(mixed)


@pytest.mark.parametrize(
    ("pre", "stages", "nfc", "whole", "bos"),
    [
        ("gpt-2", ("gpt2",), False, False, False),
        ("olmo", ("gpt2",), False, False, False),
        ("smollm", ("digits", "gpt2"), False, False, False),
        ("command-r", ("digits", "gpt2"), False, False, False),
        ("llama-bpe", ("llama3",), False, True, True),
        ("falcon3", ("llama3",), False, True, True),
        ("glm4", ("llama3",), False, False, False),
        ("qwen2", ("qwen2",), True, False, False),
        ("deepseek-r1-qwen", ("qwen2",), False, False, False),
        ("llama4", ("o200k",), False, False, False),
    ],
)
def test_how_text_is_cut_has_llama_cpp_s_names(
    pre: str,
    stages: tuple[str, ...],
    nfc: bool,
    whole: bool,
    bos: bool,
    trained: dict[str, Tokenizer],
    write: Callable[[bytes], Path],
) -> None:
    """BOS goes before a text as the file says, or as llama.cpp does for that name."""
    pairs = byte_level_pairs(trained["gpt2"], **{"tokenizer.ggml.pre": pre})
    pairs = {key: value for key, value in pairs.items() if "add_" not in key}
    tok = Tokenizer.load(write(gguf(pairs)))
    vocabulary = tok.engine.vocabulary
    assert (vocabulary.stages, vocabulary.nfc, vocabulary.whole_piece_first) == (stages, nfc, whole)
    assert tok.engine.prefix == ((tok.bos_id,) if bos else ())
    denied = Tokenizer.load(write(gguf({**pairs, "tokenizer.ggml.add_bos_token": False})))
    assert denied.engine.prefix == ()


def test_wordpiece(mixed: str, write: Callable[[bytes], Path]) -> None:
    tok = Tokenizer.train([made_text(20_000), mixed], vocab_size=500, algorithm="wordpiece")
    named = {id: text for text, id in {**tok.engine.pieces.tokens, **tok.special_tokens}.items()}
    texts = [named[id] for id in sorted(named)]
    marked = [text if text in tok.special_tokens else text[2:] if text[:2] == "##" else f"▁{text}" for text in texts]
    names = {"unknown": 1, "cls": 2, "seperator": 3, "padding": 0, "mask": 4}
    pairs = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": marked}
    pairs |= {f"tokenizer.ggml.{name}_token_id": id for name, id in names.items()}
    again = Tokenizer.load(write(gguf({**pairs, "tokenizer.ggml.token_type": [1] * len(marked)})))
    assert again.encode(mixed, add_special_tokens=True) == tok.encode(mixed, add_special_tokens=True)
    assert again.special_tokens == tok.special_tokens
    cased = Tokenizer.load(write(gguf({**pairs, "tokenizer.ggml.normalizer.lowercase": False})))
    assert (cased.engine.pieces.rules.lower, cased.engine.pieces.rules.accents) == (False, False)


def sentencepiece_pairs(tok: Tokenizer, model: str) -> dict[str, Any]:
    data = tok.engine.model
    pairs = {"model": model, "tokens": list(data.pieces), "scores": list(data.scores), "token_type": list(data.kinds)}
    pairs |= {"bos_token_id": data.pieces.index("<s>"), "eos_token_id": data.pieces.index("</s>")}
    return {f"tokenizer.ggml.{key}": value for key, value in pairs.items()}


@pytest.mark.parametrize(("name", "model"), [("botchan-bpe", "llama"), ("botchan-unigram", "t5")])
def test_sentencepiece(
    name: str, model: str, vocabulary: Callable[[str], Path], mixed: str, write: Callable[[bytes], Path]
) -> None:
    tok = Tokenizer.load(vocabulary(name))
    pairs = sentencepiece_pairs(tok, model)
    rules = [step.rules for step in tok.engine.model.steps if hasattr(step, "rules")]
    if model == "t5" and rules:
        pairs["tokenizer.ggml.precompiled_charsmap"] = list(rules[0])
    again = Tokenizer.load(write(gguf(pairs)))
    for text in ("Hello world, a  b.", made_text(2000), mixed if model == "t5" else "a   b "):
        if model == "llama":
            text = " ".join(text.split())  # "llama" normalises nothing
        assert again.encode(text) == tok.encode(text)
        ids = again.encode(text, add_special_tokens=True)
        assert (ids[0] == again.bos_id) if model == "llama" else (ids[-1] == again.eos_id)
    if model == "llama":  # as llama.cpp has it: a space before each part
        whole = again.encode("Hello</s>world", allowed_special="all")
        assert whole == [*again.encode("Hello"), again.eos_id, *again.encode("world")]
        assert again.encode("Hello</s>", allowed_special="all") == [*again.encode("Hello"), again.eos_id]
    del pairs["tokenizer.ggml.scores"]
    with pytest.raises(TokenizerError, match="a score"):
        Tokenizer.load(write(gguf(pairs)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "strange"}, "'strange', which is not known"),
        ({"tokenizer.ggml.pre": None}, "unnamed"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv'"),
        ({"tokenizer.ggml.model": None}, "model is ''"),
        ({"tokenizer.ggml.tokens": None}, "carries no vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, "a type for each token"),
        ({"tokenizer.ggml.merges": ["a zzzzzzzz"]}, "does not have"),
        ({"tokenizer.ggml.merges": ["abc"]}, "damaged"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "id of a token"),
        ({"tokenizer.ggml.tokens": 3}, "damaged"),
    ],
)
def test_what_is_not_understood_is_refused(
    changes: dict[str, Any], message: str, tok: Tokenizer, write: Callable[[bytes], Path]
) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(write(gguf(byte_level_pairs(tok, **changes))))


HEAD = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("tokenizer.ggml.tokens")
HUGE = 2**63


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE),
        HEAD + struct.pack("<IIQ", 9, 8, HUGE),
        HEAD + struct.pack("<IIQ", 9, 4, HUGE),
        HEAD + struct.pack("<IIQ", 9, 9, 2),
        HEAD + struct.pack("<I", 99),
        HEAD + struct.pack("<IQ", 8, HUGE),
    ],
)
def test_hostile_files(data: bytes, write: Callable[[bytes], Path]) -> None:
    with pytest.raises(TokenizerError, match="wanted a"):
        Tokenizer.load(write(data))


@given(cut=st.integers(0, 2000), flip=st.integers(0, 2000), byte=st.integers(0, 255))
def test_damaged_files_are_refused_or_load(
    tok: Tokenizer, tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, byte: int
) -> None:
    data = bytearray(gguf(byte_level_pairs(tok)))
    data[flip] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(data[: len(data) - cut])
    try:
        Tokenizer.load(path).encode("a b")
    except TokenizerError:
        return
