"""convert and inspect with GGUF: there and back by the command, the tokenizer's pairs, and what is shown."""

from __future__ import annotations

import json

import pytest
import torch

from tinylm.model import ModelError, Transformer
from tinylm.model._contents import read_contents
from tinylm.model._convert import convert
from tinylm.model.gguf.reader import GGUF
from tinylm.model.gguf.tokenizer import tokenizer_pairs

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [first, BYTE_LEVEL | {"use_regex": False}]}


def tokenizer_json(**changes):
    model = {"type": "BPE", "vocab": {"Ġ": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]], "ignore_merges": False}
    added = [{"id": 4, "content": "<|end|>", "special": True}, {"id": 5, "content": "<tool>", "special": False}]
    content = {"model": model, "added_tokens": added, "pre_tokenizer": BYTE_LEVEL, "normalizer": None}
    return {**content, **changes, "model": model | changes.get("model", {})}


@pytest.fixture
def folder(small, tmp_path):
    small("llama", vocab_size=8).save(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text('{"eos_token_id": 4}')
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages }}")
    return tmp_path / "model"


def put(folder, content):
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_there_and_back(folder, tmp_path):
    put(folder, tokenizer_json())
    said = convert(folder, tmp_path / "x.gguf", "gguf", None)
    assert "float32, with its tokenizer" in said[0]
    assert len(said) == 1
    file = GGUF(tmp_path / "x.gguf")
    assert file.get("tokenizer.ggml.tokens") == ["Ġ", "a", "b", "ab", "<|end|>", "<tool>", "[PAD6]", "[PAD7]"]
    assert file.get("tokenizer.ggml.token_type").tolist() == [1, 1, 1, 1, 3, 4, 5, 5]
    assert file.get("tokenizer.ggml.merges") == ["a b"]
    assert (file.get("tokenizer.ggml.pre"), file.get("tokenizer.ggml.eos_token_id")) == ("gpt-2", 4)
    assert file.get("tokenizer.ggml.add_eos_token") is False
    assert file.get("tokenizer.chat_template") == "{{ messages }}"

    said = convert(tmp_path / "x.gguf", tmp_path / "again", "huggingface", None)
    assert "tinylm-tokenizer convert" in said[1]
    assert json.loads((tmp_path / "again/generation_config.json").read_text()) == {"eos_token_id": 4}
    first, second = Transformer.load(folder), Transformer.load(tmp_path / "again")
    assert first.config == second.config
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

    convert(tmp_path / "x.gguf", tmp_path / "y.gguf", "gguf", "bfloat16")
    same = GGUF(tmp_path / "y.gguf")
    assert same.get("tokenizer.ggml.tokens") == file.get("tokenizer.ggml.tokens")
    assert same.tensors["token_embd.weight"].kind.name == "BF16"


def test_a_name_in_capitals_is_a_gguf_file_too(folder, tmp_path):
    convert(folder, tmp_path / "x.GGUF", "gguf", None)
    assert Transformer.load(tmp_path / "x.GGUF").config == Transformer.load(folder).config


def test_special_ids_and_tokenizer_files_go_along(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config |= {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": -1}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).write_bytes(name.encode())
    convert(folder, tmp_path / "a", "huggingface", None)
    assert json.loads((tmp_path / "a/generation_config.json").read_text()) == {"eos_token_id": 4, "bos_token_id": 1}
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"):
        assert (tmp_path / "a" / name).read_bytes() == name.encode()
    (folder / "generation_config.json").unlink()
    convert(folder, tmp_path / "b", "huggingface", None)
    said = json.loads((tmp_path / "b/generation_config.json").read_text())
    assert said == {"bos_token_id": 1, "eos_token_id": [2, 3]}


def test_the_sources_type_is_kept(small, tmp_path):
    small("qwen3").to(torch.bfloat16).save(tmp_path / "model")
    assert "bfloat16" in convert(tmp_path / "model", tmp_path / "x.gguf", "gguf", None)[0]
    assert torch.equal(
        Transformer.load(tmp_path / "x.gguf").embed.weight, Transformer.load(tmp_path / "model").embed.weight.float()
    )
    small("qwen3").double().save(tmp_path / "wide")
    with pytest.raises(ModelError, match="got float64"):
        convert(tmp_path / "wide", tmp_path / "y.gguf", "gguf", None)


@pytest.mark.parametrize(
    ("changes", "pre"),
    [
        ({}, "gpt-2"),
        ({"pre_tokenizer": split(LLAMA3)}, "dbrx"),
        ({"pre_tokenizer": split(LLAMA3), "model": {"ignore_merges": True}}, "llama-bpe"),
        ({"pre_tokenizer": split(LLAMA3.replace("{1,3}", "")), "normalizer": {"type": "NFC"}}, "qwen2"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}},
            "smollm",
        ),
        (  # as tinylm-tokenizer writes it
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, *split(GPT2)["pretokenizers"]]}},
            "smollm",
        ),
    ],
)
def test_how_text_is_cut_has_a_name(changes, pre, folder):
    put(folder, tokenizer_json(**changes))
    pairs, notes = tokenizer_pairs(folder, 8)
    assert pairs["tokenizer.ggml.pre"].value == pre
    assert notes == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pre_tokenizer": split(r"\s+")}, "has no name in llama.cpp"),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "has no name in llama.cpp"),
        ({"pre_tokenizer": None}, "has no name in llama.cpp"),
        ({"model": {"type": "Unigram"}}, "got Unigram"),
        ({"model": {"byte_fallback": True}}, "byte-level BPE"),
        ({"model": {"ignore_merges": True}}, "ignore_merges"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"added_tokens": [{"id": 8, "content": "x", "special": True}]}, "got 8"),
        ({"added_tokens": [{"id": 5, "content": "ab", "special": True}]}, "twice"),
    ],
)
def test_what_llama_cpp_has_no_name_for_is_said(changes, words, folder, tmp_path):
    put(folder, tokenizer_json(**changes))
    said = convert(folder, tmp_path / "x.gguf", "gguf", None)
    assert words in said[1]
    assert "carries no vocabulary" in said[1]
    assert GGUF(tmp_path / "x.gguf").get("tokenizer.ggml.model") == "no_vocab"
    assert "carries no tokenizer" in convert(tmp_path / "x.gguf", tmp_path / "b", "huggingface", None)[-1]


def test_ends_and_begins(folder):
    put(folder, tokenizer_json())
    settings = {
        "bos_token": {"content": "<tool>"},
        "eos_token": "<|end|>",
        "add_bos_token": True,
        "pad_token": "absent",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pairs, _ = tokenizer_pairs(folder, 8)
    assert (pairs["tokenizer.ggml.bos_token_id"].value, pairs["tokenizer.ggml.add_bos_token"].value) == (5, True)
    assert "tokenizer.ggml.padding_token_id" not in pairs
    (folder / "tokenizer_config.json").unlink()
    (folder / "generation_config.json").unlink()
    assert "no end of text" in tokenizer_pairs(folder, 8)[1][0]
    single = [{"SpecialToken": {"id": "<|end|>"}}, {"Sequence": {"id": "A"}}]
    put(folder, tokenizer_json(post_processor={"type": "TemplateProcessing", "single": single}))
    (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), "bos_token_id": 4})
    )
    assert tokenizer_pairs(folder, 8)[0]["tokenizer.ggml.add_bos_token"].value is True


@pytest.mark.parametrize("content", [[], {}, {"model": 3}, tokenizer_json(model={"merges": 1}), "no object"])
def test_a_broken_tokenizer_json(content, folder, tmp_path):
    put(folder, content)
    with pytest.raises(ModelError, match="wanted"):
        convert(folder, tmp_path / "x.gguf", "gguf", None)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"vocab": {"Ġ": 0, "a": 1, "b\ud800": 2}}},
        {"model": {"merges": ["a \udc80"]}},
        {"added_tokens": [{"id": 5, "content": 5}]},
        {"added_tokens": [{"id": 1.5, "content": "<x>"}]},
    ],
)
def test_tokens_that_are_no_text_or_have_no_id(changes, folder, tmp_path):
    put(folder, tokenizer_json(**changes))
    with pytest.raises(ModelError, match=r"tokenizer\.json: wanted Hugging Face's schema"):
        convert(folder, tmp_path / "x.gguf", "gguf", None)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"vocab": {"Ġ": 0, "a": 1, "b": 1}}},
        {"added_tokens": [{"id": 5, "content": "<x>"}, {"id": 5, "content": "<y>"}]},
        {"added_tokens": [{"id": 2, "content": "<x>"}]},
    ],
)
def test_an_id_of_two_tokens_is_said(changes, folder, tmp_path):
    put(folder, tokenizer_json(**changes))
    assert "wanted each id once" in convert(folder, tmp_path / "x.gguf", "gguf", None)[1]


def test_a_template_that_is_not_utf_8_is_named(folder, tmp_path):
    put(folder, tokenizer_json())
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "chat_template.jinja: wanted UTF-8" in convert(folder, tmp_path / "x.gguf", "gguf", None)[1]


def test_contents(small, tmp_path):
    model = small("gpt2")
    model.save(tmp_path / "a", {"tokenizer_sha256": "abc"})
    convert(tmp_path / "a", tmp_path / "x.gguf", "gguf", "float16")
    plain, packed = read_contents(tmp_path / "a"), read_contents(tmp_path / "x.gguf")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for found, kind in ((plain, "float32"), (packed, "F16")):
        assert {name: shape for name, (shape, _, _) in found.parameters.items()} == shapes
        assert found.dtype == kind
        assert sum(count for _, _, count in found.parameters.values()) == model.config.parameter_count()
    assert plain.size == 4 * model.config.parameter_count()
    assert plain.notes == {"written with tokenizer_sha256": "abc"}
    assert packed.notes["tokenizer"] == "none"
    with torch.no_grad():
        model.final_norm.weight[0] = torch.nan
    model.save(tmp_path / "a")
    with pytest.raises(ModelError, match="NaN"):
        read_contents(tmp_path / "a")
