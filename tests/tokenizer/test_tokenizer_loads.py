"""`Tokenizer.load` on every format that is named, with real files: the ids of the library that each comes from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError, byte_bpe_fast

tiktoken = pytest.importorskip("tiktoken")
tokenizers = pytest.importorskip("tokenizers")

Find = Callable[[str], Path]

TEXTS = [
    "",
    " ",
    "Hello there, it's 12345 degrees; DON'T!\r\n\r\n\tdef f(x):  return x ** 2   \n",
    "Überraschung über Größe, naïve café. Привет, мир! Γειά σου Κόσμε",
    "日本語のテキスト 你好，世界。 한국어 नमस्ते दुनिया مرحبا بالعالم שלום",
    "👩‍👩‍👧 🎉🎉 e\u0301 ﬁ Ⅷ ½ \u00a0\u2003\u200b\x00\x1c\x85 C'ſ'Sm",
    "a" * 300 + " " * 600 + "\n" * 20,
]


@pytest.fixture(params=["r50k", "p50k", "cl100k", "o200k"])
def ranks(request: pytest.FixtureRequest, vocabulary: Find) -> tuple[Path, Any]:
    import tiktoken_ext.openai_public as public

    path = vocabulary(request.param)
    with pytest.MonkeyPatch.context() as patch:
        read = public.load_tiktoken_bpe
        patch.setattr(public, "load_tiktoken_bpe", lambda _, expected_hash: read(str(path), expected_hash))
        arguments = getattr(public, f"{request.param}_base")()
    return path, tiktoken.Encoding(**arguments)


def test_a_tiktoken_file_is_known_by_its_sum(ranks: tuple[Path, Any]) -> None:
    path, reference = ranks
    tok = Tokenizer.load(path)
    for text in TEXTS:
        ids = tok.encode(text)
        assert ids == reference.encode_ordinary(text)
        assert tok.decode(ids) == text
    for name in reference.special_tokens_set:
        ids = [*tok.encode("a"), reference.encode_single_token(name)]
        assert tok.encode(f"a{name}", allowed_special="all") == ids


def test_merges_make_every_token_of_the_known_tiktoken_files(ranks: tuple[Path, Any]) -> None:
    """So the kernel is spared from looking when it loads one."""
    vocabulary = Tokenizer.load(ranks[0]).engine.vocabulary
    assert vocabulary.merges_make_all
    merges, byte_ids = byte_bpe_fast._Merges(vocabulary), vocabulary.byte_ids()
    for id, token in vocabulary.tokens.items():
        assert byte_bpe_fast._merge_short([byte_ids[byte] for byte in token], merges) == [id]


def test_a_tiktoken_file_that_is_not_known_wants_a_pattern(vocabulary: Find, tmp_path: Path) -> None:
    lines = vocabulary("cl100k").read_bytes().splitlines(keepends=True)
    (tmp_path / "mine.tiktoken").write_bytes(b"".join(lines[:5000]))
    with pytest.raises(TokenizerError, match="pattern"):
        Tokenizer.load(tmp_path / "mine.tiktoken")
    tok = Tokenizer.load(tmp_path / "mine.tiktoken", pattern="cl100k")
    assert tok.decode(tok.encode(TEXTS[4])) == TEXTS[4]


def test_vocab_json_and_merges_of_gpt2(vocabulary: Find) -> None:
    path = vocabulary("gpt2")
    tok = Tokenizer.load(path)
    reference = tokenizers.ByteLevelBPETokenizer(str(path), str(path.with_name("merges.txt")))
    for text in TEXTS:
        assert tok.encode(text) == reference.encode(text).ids


def test_an_id_by_itself_has_the_bytes_that_it_decodes_to(vocabulary: Find) -> None:
    tok = Tokenizer.load(vocabulary("gemma3"))
    assert tok.id_to_bytes(tok.encode("a  b")[1]) == b"  "  # an added token, written "▁▁" in the file
    assert tok.vocab_size == 262145
    for id in (262145, -1, "1", None):
        with pytest.raises(TokenizerError, match="wanted an id"):
            tok.id_to_bytes(id)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3"])
def test_tokenizer_json(name: str, vocabulary: Find) -> None:
    path = vocabulary(name)
    tok, reference = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    added: list[dict[str, Any]] = json.loads(path.read_bytes())["added_tokens"]
    literals = "x".join(f" {entry['content']} " for entry in added[:40])
    for text in TEXTS:
        ids = tok.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False).ids
    for text in [*TEXTS, literals]:
        with_specials = tok.encode(text, allowed_special="all", add_special_tokens=True)
        assert with_specials == reference.encode(text).ids


@pytest.mark.parametrize(
    "name",
    ["botchan-bpe", "botchan-unigram", "kyoto-unigram", "mistral-v1", "mistral-v2", "mistral-v3", "mistral-v7"],
)
def test_sentencepiece_model(name: str, vocabulary: Find) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = vocabulary(name)
    tok, reference = Tokenizer.load(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in TEXTS:
        if "\0" not in text:
            assert tok.encode(text) == reference.encode(text)


def test_a_folder_with_one_file_is_that_file(vocabulary: Find) -> None:
    path = vocabulary("botchan-bpe")
    assert Tokenizer.load(path.parent).encode("Hello") == Tokenizer.load(path).encode("Hello")
