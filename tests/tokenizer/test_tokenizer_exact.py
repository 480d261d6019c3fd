"""Ids against the references: tiktoken with our ranks, and Hugging Face's tokenizers with files of either side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, byte_bpe_fast
from tinylm.tokenizer.patterns import PATTERNS

# Characters that this Python's Unicode knows: newer ones depend on the tables that each library was built with.
ASSIGNED = st.characters(exclude_categories=["Cn", "Cs"])

# Text that pre-tokenisation has to think about: spaces of all kinds, line ends, quotes, digits, marks, any character.
tricky = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\x85", "\x1c", "'s", "'LL", "'ſ", "x", "Été", "42", "½"]
        ),
        st.sampled_from(
            ["日本", "e\u0301", "👩‍👧", "!?", "/", "<|im_start|>", "ⅷ", "ǅ", "ʰ", "किं", "\u200d", "_", "’s"]
        ),
        st.text(ASSIGNED, max_size=4),
    ),
    max_size=30,
).map("".join)


def tiktoken_of(tokenizer: Tokenizer) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    (name,) = tokenizer.engine.vocabulary.stages
    patterns = {
        "gpt2": public.r50k_pat_str,
        # the pattern as tiktoken 0.14 has it, from its source
        "cl100k": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
        r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
        "o200k": PATTERNS["o200k"],
        "llama3": PATTERNS["llama3"],
        "qwen2": PATTERNS["qwen2"],
    }
    ranks = {token: id for id, token in tokenizer.engine.vocabulary.tokens.items()}
    return tiktoken.Encoding(
        name, pat_str=patterns[name], mergeable_ranks=ranks, special_tokens=tokenizer.special_tokens
    )


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "llama3", "qwen2"])
def test_ids_equal_tiktoken(pattern: str, crossing: dict[str, Tokenizer], mixed: str) -> None:
    tokenizer = crossing[pattern]
    reference = tiktoken_of(tokenizer)

    @given(tricky)
    @settings(deadline=None, max_examples=300)
    def equal(text: str) -> None:
        assert tokenizer.encode(text) == reference.encode_ordinary(text)
        assert tokenizer.encode(text, allowed_special="all") == reference.encode(text, allowed_special="all")

    equal()
    for text in (mixed, " " * 1000, "\n" * 700 + "x", " \n" * 300, "a" * 5000):
        assert tokenizer.encode(text) == reference.encode_ordinary(text)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
def test_every_assigned_character_is_cut_as_tiktoken_does(pattern: str, crossing: dict[str, Tokenizer]) -> None:
    """Characters that Unicode has had since 2015: newer ones depend on the tables that each library was built with."""
    import unicodedata

    old = unicodedata.ucd_3_2_0
    characters = [chr(code) for code in range(0x110000) if old.category(chr(code)) not in ("Cn", "Cs")]
    tokenizer, reference = crossing[pattern], tiktoken_of(crossing[pattern])
    for start in range(0, len(characters), 2000):
        text = "".join(f"a{character} {character}1{character}.\n" for character in characters[start : start + 2000])
        assert tokenizer.encode(text) == reference.encode_ordinary(text)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "llama3", "qwen2"])
def test_saved_file_gives_the_same_ids_in_hugging_face(
    pattern: str, crossing: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = crossing[pattern]
    tokenizer.save(tmp_path)
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reference.get_vocab_size() == tokenizer.vocab_size

    @given(tricky)
    @settings(deadline=None, max_examples=150)
    def equal(text: str) -> None:
        assert tokenizer.encode(text, allowed_special="all") == reference.encode(text).ids
        assert reference.decode(reference.encode(text).ids, skip_special_tokens=False) == text

    equal()


SPECIAL = ["<s>", "<|endoftext|>"]


def hugging_face_made(corpus: list[str], pre_tokenizer: Any, normalizer: Any = None, bos: bool = False) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer = pre_tokenizer
    reference.decoder = tokenizers.decoders.ByteLevel()
    if normalizer:
        reference.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(corpus, trainer)
    if bos:
        reference.post_processor = tokenizers.processors.Sequence(
            [
                tokenizers.processors.ByteLevel(trim_offsets=False),
                tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
            ]
        )
    return reference


@pytest.mark.parametrize("style", ["gpt2", "llama3", "qwen", "smollm"])
def test_files_of_hugging_face_load_with_the_same_ids(
    style: str, corpus: list[str], write_json: Callable[[bytes], Path], tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    pre = tokenizers.pre_tokenizers
    name = {"llama3": "llama3", "qwen": "qwen2"}.get(style, "gpt2")
    by_pattern = pre.Sequence(
        [
            pre.Split(tokenizers.Regex(PATTERNS[name]), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    by_style = {
        "gpt2": pre.ByteLevel(add_prefix_space=False),
        "smollm": pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
    }
    normalizer = tokenizers.normalizers.NFC() if style == "qwen" else None
    reference = hugging_face_made(corpus, by_style.get(style, by_pattern), normalizer, bos=style == "llama3")
    path = write_json(reference.to_str().encode())
    tokenizer = Tokenizer.load(path)

    @given(tricky.filter(lambda text: not any(special in text for special in SPECIAL)))  # theirs stay special in text
    @settings(deadline=None, max_examples=150)
    def equal(text: str) -> None:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=True) == reference.encode(text).ids

    equal()
    assert tokenizer.encode("a<s>b", allowed_special="all", add_special_tokens=True) == reference.encode("a<s>b").ids
    python = byte_bpe_fast.Encoder(tokenizer.engine.vocabulary)
    assert python.encode(corpus[0]) == reference.encode(corpus[0], add_special_tokens=False).ids
    tokenizer.save(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == path.read_bytes()


def test_a_token_that_merges_cannot_reach(write_json: Callable[[bytes], Path], tok: Tokenizer, tmp_path: Path) -> None:
    """ "ignore_merges" (Llama 3) finds it as a whole piece; without it nobody does. Both as in tokenizers."""
    tokenizers = pytest.importorskip("tokenizers")
    tok.save(tmp_path / "plain")
    content = json.loads((tmp_path / "plain" / "tokenizer.json").read_text("utf-8"))
    content["model"]["vocab"]["zqzq"] = 9000
    for ignore in (True, False):
        content["model"]["ignore_merges"] = ignore
        path = write_json(json.dumps(content).encode())
        expected = tokenizers.Tokenizer.from_file(str(path)).encode("zqzq").ids
        assert (expected == [9000]) is ignore
        loaded = Tokenizer.load(path)
        assert loaded.encode("zqzq") == byte_bpe_fast.Encoder(loaded.engine.vocabulary).encode("zqzq") == expected
        assert loaded.vocab_size == 9001


def test_our_directory_opens_in_transformers(tok: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tok.save(tmp_path)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert reference.encode("Hello there") == tok.encode("Hello there")
