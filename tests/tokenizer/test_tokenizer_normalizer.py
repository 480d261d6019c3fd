"""Normalisation: SentencePiece's rules over every code point, its offsets, and the forms of tokenizers."""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import TokenizerError
from tinylm.tokenizer._engines import sentencepiece_data as data
from tinylm.tokenizer._text import charsmap, nfkc_rules
from tinylm.tokenizer.normalizer import normalize, normalize_with_starts

KNOWN = [chr(code) for code in range(1, 0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
texts = st.lists(
    st.one_of(st.sampled_from(["  ", " ", "▁", "e\u0301\u0323", "ﬁ", "ｶﾞ", "각", "ㄱㅏ", "👩‍👧"]), st.text(max_size=4)),
    max_size=12,
).map("".join)
STEPS: dict[str, tuple[data.Step, ...]] = {
    "nfkc": (data.Form("nfkc"),),
    "nfd": (data.Form("nfd"), data.Form("strip_accents"), data.Form("lower"), data.Form("nfc")),
    "spaces": (data.Spaces(),),
    "plain": (data.Spaces(remove_extra=False),),
    "suffix": (data.Spaces(suffix=True),),
    "llama": (data.Prepend("▁"), data.Replace(" ", "▁")),
    "t5": (data.Strip(False, True), data.ReplaceSpaces("▁"), data.Replace(" ", "▁"), data.Prepend("▁", False, True)),
    "words": (data.WhiteSpace(),),
}


@pytest.fixture(scope="module")
def nmt() -> data.Charsmap:
    return data.Charsmap(nfkc_rules.compiled("nmt_nfkc"))


def test_nmt_nfkc_equals_sentencepiece_on_every_character(nmt: data.Charsmap) -> None:
    """Every character that this Python knows, between letters and after a space."""
    spm = pytest.importorskip("sentencepiece")
    reference = spm.SentencePieceNormalizer(
        rule_name="nmt_nfkc", add_dummy_prefix=False, remove_extra_whitespaces=False, escape_whitespaces=False
    )
    for start in range(0, len(KNOWN), 500):
        text = "".join(f"a{character}b {character}." for character in KNOWN[start : start + 500])
        assert normalize(text, (nmt,)) == reference.normalize(text)


def _texts(tree: charsmap.Tree, start: str = "") -> Iterator[str]:
    """Every text that has a rule."""
    if tree.value is not None:
        yield start
    for character, child in tree.children.items():
        yield from _texts(child, start + character)


def test_sequences_are_composed_as_sentencepiece_does(nmt: data.Charsmap) -> None:
    spm = pytest.importorskip("sentencepiece")
    reference = spm.SentencePieceNormalizer(rule_name="nmt_nfkc")
    sequences = sorted(_texts(nfkc_rules.tree("nmt_nfkc")))[::40]
    for start in range(0, len(sequences), 200):
        text = " x".join(sequences[start : start + 200])
        assert normalize(text, (nmt, data.Spaces())) == reference.normalize(text)


@pytest.mark.parametrize("name", STEPS)
@given(texts, st.booleans())
@settings(deadline=None, max_examples=60)
def test_places_belong_to_the_normalised_text(name: str, text: str, first: bool) -> None:
    normal, starts = normalize_with_starts(text, STEPS[name], first)
    assert normal == normalize(text, STEPS[name], first)
    assert len(starts) == len(normal) + 1
    assert starts == sorted(starts)
    assert starts[0] >= 0
    assert starts[-1] <= len(text)


def of_old(text: str) -> str:
    """What tokenizers knows for sure: its tables are of an older Unicode than ours."""
    return "".join(character for character in text if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs"))


@pytest.fixture(scope="module")
def forms_of_tokenizers() -> dict[str, Any]:
    normalizers: Any = pytest.importorskip("tokenizers").normalizers
    forms = {"lower": normalizers.Lowercase(), "strip_accents": normalizers.StripAccents()}
    return forms | {name: getattr(normalizers, name.upper())() for name in ("nfc", "nfd", "nfkc", "nfkd")}


@given(texts)
@settings(deadline=None, max_examples=150)
def test_forms_equal_tokenizers(forms_of_tokenizers: dict[str, Any], text: str) -> None:
    text = of_old(text)
    for name, reference in forms_of_tokenizers.items():
        assert normalize(text, (data.Form(name),)) == reference.normalize_str(text), name


@pytest.mark.parametrize("name", ["lower", "strip_accents", "nfc", "nfd", "nfkc", "nfkd"])
def test_forms_equal_tokenizers_on_every_code_point(forms_of_tokenizers: dict[str, Any], name: str) -> None:
    reference = forms_of_tokenizers[name]
    for before in ("", "e", "\u0915"):
        text = "\n".join(before + character for character in of_old("".join(map(chr, range(32, 0x110000)))))
        assert normalize(text, (data.Form(name),)) == reference.normalize_str(text)


def test_lower_case_is_of_the_same_unicode(forms_of_tokenizers: dict[str, Any]) -> None:
    """Newer than that of the Python that runs this, perhaps."""
    reference = forms_of_tokenizers["lower"]
    for start in range(0, 0x20000, 0x800):
        text = "\n".join(chr(code) for code in range(start, start + 0x800) if not 0xD800 <= code < 0xE000)
        assert normalize(text, (data.Form("lower"),)) == reference.normalize_str(text)


@given(st.text("aAｱｶﾞ가각e\u0301\u0323\u0327ﬁ½①👩\u200d👧🏽 \u00a0\u200b", max_size=12))
@settings(deadline=None, max_examples=150)
def test_rules_by_grapheme_equal_tokenizers(text: str) -> None:
    normalizers: Any = pytest.importorskip("tokenizers").normalizers
    rules = nfkc_rules.compiled("nmt_nfkc")
    assert normalize(text, (data.Charsmap(rules, True),)) == normalizers.Precompiled(rules).normalize_str(text)


# Letters, consonants, marks, viramas, numerals that belong to what follows, emoji, Hangul.
CLUSTERED = "a\xa0\xb4\u0301\u0915\u0937\u094d\u0ccd\u1039\u1cf6\u0600\u0903\u200d\xae가\u1100\n"


@given(st.text(CLUSTERED, max_size=6))
@example("\xa0\u094d\u0937")
@example("\u094d\u0915\u0301")
@example("\u0600\u1cf6\u0937")
@settings(deadline=None, max_examples=500)
def test_grapheme_clusters_equal_tokenizers(text: str) -> None:
    normalizers: Any = pytest.importorskip("tokenizers").normalizers
    rules = charsmap.build({character: f"<{ord(character):x}>" for character in CLUSTERED})
    assert normalize(text, (data.Charsmap(rules, True),)) == normalizers.Precompiled(rules).normalize_str(text)


def test_rules_survive_the_way_into_bytes_and_back() -> None:
    rules = {"a": "b", "ab": "", "abc": "xyz", "日": "本", "🎉": "!", " ": "_"}
    found = charsmap.Rules(charsmap.build(rules))
    for key, value in rules.items():
        assert found.longest(f"x{key}", 1) == (1 + len(key), value)
    assert found.longest("abd", 0) == (2, "")
    assert found.longest("\0b", 0) is None
    assert found.longest("c", 0) is None


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_rules_are_refused_or_harmless(chosen: st.DataObject) -> None:
    blob = bytearray(charsmap.build({"a": "b", "ab": "c", "é": "e", "日本": "x"}))
    for _ in range(chosen.draw(st.integers(1, 8))):
        blob[chosen.draw(st.integers(0, len(blob) - 1))] = chosen.draw(st.integers(0, 255))
    blob = blob[: chosen.draw(st.integers(0, len(blob)))] if chosen.draw(st.booleans()) else blob
    with suppress(TokenizerError):
        rules = charsmap.Rules(bytes(blob))
        for at in range(6):
            rules.longest("abé日本\0", at)


def test_user_defined_text_is_not_normalised(nmt: data.Charsmap) -> None:
    import re

    assert normalize("\uff21 \uff22 \uff21", (nmt,), keep=re.compile("\uff22")) == "A \uff22 A"


def test_offsets_equal_sentencepiece(vocabulary: Callable[[str], Path], fetched_text: Callable[[str], Path]) -> None:
    from tinylm.tokenizer import Tokenizer

    spm = pytest.importorskip("sentencepiece")
    for name in ("botchan-bpe", "botchan-unigram", "kyoto-unigram"):
        path = vocabulary(name)
        tokenizer, reference = Tokenizer.load(path), spm.SentencePieceProcessor(model_file=str(path))
        for text in ["  two  spaces ", "a\u200bb ﬁ ①½ ｶﾞ", "日本語 テキスト", "\t tab", "", "   ", "▁▁ x"]:
            proto = reference.encode(text, return_type="proto")
            assert tokenizer.offsets(text, "byte") == [(piece.begin, piece.end) for piece in proto.pieces], text
