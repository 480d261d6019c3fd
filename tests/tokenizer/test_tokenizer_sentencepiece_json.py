"""tokenizer.json of SentencePiece's kind: ids equal to tokenizers' on files of both sides; what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, sentencepiece_bpe_training
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import Charsmap, SentencePieceModel
from tinylm.tokenizer._formats import sentencepiece_model as files
from tinylm.tokenizer._text.sentencepiece_words import ranked_merges
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.ladder import made_text

parts = st.sampled_from(
    [
        "  ",
        " ",
        "▁",
        "\n\n",
        "the",
        " and",
        "ing",
        "aaa",
        "é",
        "日本",
        "ﬁ",
        "é",
        "🎉",
        "<0x0A>",
        "<s>",
        "</s>",
        "<extra>",
        "<bos>",
        "<unused3>",
        "[multimodal]",
        "``",
        "\xa0",
        "ｶﾞ",
        "12,",
    ]
)
tricky = st.lists(st.one_of(parts, st.text(max_size=2)), max_size=20).map("".join)


def same_ids(path: Path, tokenizer: Tokenizer, more: list[str]) -> None:
    reference = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))

    def check(text: str) -> None:
        assert tokenizer.encode(text, allowed_special="all", add_special_tokens=True) == reference.encode(text).ids

    given(tricky)(settings(deadline=None, max_examples=50)(lambda text: check(text)))()
    for text in [
        *more,
        "",
        " ",
        "a" * 300,
        " " * 99,
        "  a  b ",
        "▁ ▁a",
        "<s>a</s> b<extra> c",
        "日本" * 99,
        "a\x1f",
        "\x1c a\x85",
    ]:
        check(text)


def test_gemma(vocabulary: Callable[[str], Path], mixed: str) -> None:
    path = vocabulary("gemma3")
    tokenizer = Tokenizer.load(path)
    same_ids(path, tokenizer, [mixed])
    assert tokenizer.decode(tokenizer.encode(mixed)) == mixed
    assert tokenizer.bos_id == 2
    assert tokenizer.encode("<start_of_turn>") != tokenizer.encode("<start_of_turn>", allowed_special="all")


@pytest.mark.parametrize("name", ["botchan-bpe", "botchan-unigram", "mistral-v1"])
def test_what_is_saved_opens_elsewhere(
    name: str, vocabulary: Callable[[str], Path], mixed: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    original = Tokenizer.load(vocabulary(name))
    original.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    assert tokenizer.encode("Hello world, of 12") == original.encode("Hello world, of 12")
    same_ids(path, tokenizer, [mixed])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    assert fast.encode(mixed) == tokenizer.encode(mixed, add_special_tokens=True)
    assert tokenizer.engine.files() == Tokenizer(tokenizer.engine).engine.files()


@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
def test_spaces_that_sentencepiece_drops_are_dropped_by_a_saved_file(normalization: str, tmp_path: Path) -> None:
    """And no other white space: Strip of a tokenizer.json would take line ends, too."""
    lib = pytest.importorskip("tokenizers")
    options = Options(400, normalization, dummy_prefix=True, remove_extra_spaces=True)
    original = Tokenizer(SentencePieceEngine(sentencepiece_bpe_training.train([made_text(5_000)], options)))
    original.save(tmp_path)
    saved, reference = Tokenizer.load(tmp_path), lib.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @given(st.lists(st.sampled_from([" ", "  ", "\n", "\t", "\u3000", "\u200b", "▁", "a", "the "]), max_size=8))
    def check(chosen: list[str]) -> None:
        text = "".join(chosen)
        ids = original.encode(text)
        assert saved.encode(text) == ids == reference.encode(text, add_special_tokens=False).ids
        assert list(saved.encode_stream([*chosen])) == ids
        assert len(saved.offsets(text)) == len(ids)

    check()


def shapes() -> dict[str, Callable[[Any, bytes], tuple[Any, Any, Any]]]:
    """What converters make for the models of the field: (normalizer, pre-tokenizer, decoder) by tokenizers' classes."""

    def metaspace(scheme: str, split: bool) -> Callable[[Any, bytes], tuple[Any, Any, Any]]:
        return lambda lib, rules: (
            None,
            lib.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split),
            lib.decoders.Metaspace(prepend_scheme=scheme),
        )

    def llama(lib: Any, rules: bytes) -> tuple[Any, Any, Any]:
        norm, dec = lib.normalizers, lib.decoders
        steps = [dec.Replace("▁", " "), dec.ByteFallback(), dec.Fuse(), dec.Strip(" ", 1, 0)]
        return norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")]), None, dec.Sequence(steps)

    def t5(lib: Any, rules: bytes) -> tuple[Any, Any, Any]:
        pre = lib.pre_tokenizers
        words = pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])
        return lib.normalizers.Precompiled(rules), words, lib.decoders.Metaspace()

    def xlm_r(lib: Any, rules: bytes) -> tuple[Any, Any, Any]:
        norm = lib.normalizers
        steps = [norm.Precompiled(rules), norm.Strip(False, True), norm.Replace(lib.Regex(" {2,}"), "▁")]
        return norm.Sequence(steps), lib.pre_tokenizers.Metaspace(), lib.decoders.Metaspace()

    def albert(lib: Any, rules: bytes) -> tuple[Any, Any, Any]:
        norm = lib.normalizers
        steps = [norm.Replace("``", '"'), norm.NFKD(), norm.StripAccents(), norm.Lowercase(), norm.Precompiled(rules)]
        return norm.Sequence(steps), lib.pre_tokenizers.Metaspace(), lib.decoders.Metaspace()

    spaces = {
        f"{scheme}-{split}": metaspace(scheme, split) for scheme in ("first", "always") for split in (True, False)
    }
    return {**spaces, "llama": llama, "t5": t5, "xlm-r": xlm_r, "albert": albert}


def made(lib: Any, model: SentencePieceModel, shape: str, rules: bytes) -> Any:
    """A file as the converters of the field make it."""
    if model.algorithm == "unigram":
        core = lib.models.Unigram(list(zip(model.pieces, model.scores, strict=True)), model.unk_id, False)
    else:
        text = model.pieces
        merges = [(text[left], text[right]) for left, right, _ in ranked_merges(model)]
        ids = {piece: id for id, piece in enumerate(text)}
        fallback = model.byte_fallback
        core = lib.models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback)
    tokenizer = lib.Tokenizer(core)
    normalizer, pre_tokenizer, decoder = shapes()[shape](lib, rules)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([lib.AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([lib.AddedToken("<extra>", normalized=False)])
    return tokenizer


@pytest.mark.parametrize("shape", shapes())
@pytest.mark.parametrize("name", ["botchan-unigram", "botchan-bpe"])
def test_files_of_others(name: str, shape: str, vocabulary: Callable[[str], Path], mixed: str, tmp_path: Path) -> None:
    lib = pytest.importorskip("tokenizers")
    model = files.read(vocabulary(name).read_bytes(), name)
    (rules,) = (step.rules for step in model.steps if isinstance(step, Charsmap))
    path = tmp_path / "tokenizer.json"
    made(lib, model, shape, rules).save(str(path))
    tokenizer = Tokenizer.load(path)
    same_ids(path, tokenizer, [mixed])
    (tmp_path / "again.json").write_bytes(tokenizer.engine.files()["tokenizer.json"])
    same_ids(tmp_path / "again.json", tokenizer, [mixed])


UNIGRAM: dict[str, Any] = {
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁", -1.0], ["a", -2.0]]},
}
BPE: dict[str, Any] = UNIGRAM | {
    "model": {"type": "BPE", "unk_token": "u", "vocab": {"u": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]}
}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"normalizer": {"type": "Unheard"}}, "Unheard"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+"}, "content": ""}}, "Regex"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "damaged"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "precompiled_charsmap"),
        ({"pre_tokenizer": {"type": "Punctuation"}}, "Punctuation"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "WhitespaceSplit"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_"}}, "replacement"),
        ({"decoder": {"type": "BPEDecoder"}}, "BPEDecoder"),
        ({"truncation": {"max_length": 3}}, "truncation"),
        ({"model": UNIGRAM["model"] | {"unk_id": 9}}, "unk_id"),
        ({"model": UNIGRAM["model"] | {"byte_fallback": True}}, "byte_fallback"),
        ({"model": UNIGRAM["model"] | {"vocab": [["a", 0.0], ["a", 0.0]]}}, "twice"),
        ({"model": UNIGRAM["model"] | {"vocab": [["a", float("inf")]]}}, "entry 0"),
        ({"model": UNIGRAM["model"] | {"vocab": "abc"}}, "wanted a tokenizer.json"),
        ({"model": BPE["model"] | {"merges": [["a", "c"]]}}, "merge 0"),
        ({"model": BPE["model"] | {"merges": ["a"]}}, "merge 0"),
        ({"model": BPE["model"] | {"dropout": 0.1}}, "dropout"),
        ({"model": BPE["model"] | {"ignore_merges": True}}, "ignore_merges"),
        ({"model": BPE["model"] | {"vocab": {"u": 0, "a": 0}}}, "twice"),
        ({"model": BPE["model"] | {"vocab": {"u": 0, "a": 10**9}, "merges": []}}, "gaps"),
        ({"added_tokens": [{"id": 1, "content": "x", "special": True}]}, "another text or id"),
    ],
)
def test_parts_that_are_not_understood_are_named(
    changed: dict[str, Any], wanted: str, write_json: Callable[[bytes], Path]
) -> None:
    with pytest.raises(TokenizerError, match=wanted):
        Tokenizer.load(write_json(json.dumps(UNIGRAM | changed).encode()))


def test_unused_pieces_have_no_place(vocabulary: Callable[[str], Path]) -> None:
    from dataclasses import replace

    from tinylm.tokenizer._formats import json_sentencepiece

    model = files.read(vocabulary("botchan-bpe").read_bytes(), "botchan")
    with pytest.raises(TokenizerError, match="unused"):
        json_sentencepiece.write(replace(model, kinds=(*model.kinds[:-1], 5)))
