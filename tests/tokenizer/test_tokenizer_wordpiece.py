"""WordPiece: ids identical to Hugging Face's on bert-base-uncased, both rungs; explain, offsets, streams, training."""

import json
import random
import re
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, kernels, wordpiece
from tinylm.tokenizer._text.wordpiece_text import Rules, Splitter
from tinylm.tokenizer.kernels.wordpiece import Encoder as Kernel
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.wordpiece import WordPieces

transformers = pytest.importorskip("transformers")

CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
SPECIAL = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK|unused\d+)\]")
# What basic tokenisation treats apart: controls, spaces, punctuation of several Unicodes, accents and others that are
# sorted by their class, decompositions, upper case of every kind, Chinese, Hangul.
POOL = (
    "\0\ufffd\u00ad\u200d\u08e2\x85\x0b\x7f \u00a0\u2003\u3000\n\t.,'¿\u2260\u166d\u1734\u111c9\u2e43aAbtheéÉİẞſK"
    "\u0300\u0334\u0345\u0344\u0f73\u0901\u034f\u302e\u302f\u1b44\U0001d165\U0001d16d\U0001d15e\U0001d1bf\U0001e000"
    "\U0001e94a\uac01\uac00\u4e00\uf900\U0002f800\u09cb\u1c89\U00010d50\u0661"
)


def hugging_face(pieces: WordPieces) -> Any:
    """The reference over the same vocabulary: a transformers tokenizer."""
    vocab = {**pieces.tokens, **pieces.special_tokens}
    rules = pieces.rules
    return transformers.BertTokenizerFast(
        vocab=vocab,
        do_lower_case=rules.lower,
        strip_accents=rules.accents,
        tokenize_chinese_chars=rules.cjk,
        clean_text=rules.clean,
    ).backend_tokenizer


@pytest.fixture(scope="session")
def bert(vocabulary: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocab.txt of bert-base-uncased, out of a list that marks the beginning of words instead of their rest."""
    marked = json.loads(vocabulary("bert").read_bytes())
    marked[1] = "[unused0]"
    lines = [
        token.removeprefix("▁") if token[0] == "▁" or SPECIAL.fullmatch(token) else f"##{token}" for token in marked
    ]
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


@pytest.fixture(scope="session")
def pieces(bert: Path) -> WordPieces:
    return wordpiece.read_vocab(bert.read_bytes(), "vocab.txt")


@pytest.fixture(scope="session")
def reference(pieces: WordPieces) -> Any:
    return hugging_face(pieces)


@pytest.fixture(scope="session")
def encoders(pieces: WordPieces) -> list[Any]:
    """Every rung that is here."""
    return [wordpiece.Encoder(pieces), *([Kernel(pieces)] if kernels.available() else [])]


@pytest.fixture(scope="session")
def bert_tok(bert: Path) -> Tokenizer:
    return Tokenizer.load(bert)


def check(texts: list[str], reference: Any, encoders: list[Any]) -> None:
    wanted = [one.ids for one in reference.encode_batch(texts, add_special_tokens=False)]
    for encoder in encoders:
        got = [encoder.encode(text) for text in texts]
        assert got == wanted, next((text, a, b) for text, a, b in zip(texts, got, wanted, strict=True) if a != b)


# ---- ids ----


def test_the_vocabulary_is_bert_s(pieces: WordPieces, encoders: list[Any]) -> None:
    assert len(pieces.tokens) + len(pieces.special_tokens) == 30522
    assert (pieces.rules, pieces.unknown_id, pieces.prefix, pieces.suffix) == (Rules(), 100, (101,), (102,))
    for encoder in encoders:
        assert encoder.encode("Hello, WÖRLD! unaffable") == [7592, 1010, 2088, 999, 14477, 20961, 3468]


@pytest.mark.parametrize("context", ["a{}b", "Ab {} c", "1{}\u0301.", "\u0915{}\u1b44\u0300\u302e"])
def test_every_code_point_in_contexts(context: str, reference: Any, encoders: list[Any]) -> None:
    """All on the top rung; the Python rung, whose table is the kernel's, on half of them."""
    named = [
        character for character in CHARACTERS if not 0xE000 <= ord(character) < 0xF900 and ord(character) < 0x2FB00
    ]
    named += CHARACTERS[-0x100000::199]
    texts = [" ".join(map(context.format, named[at : at + 1000])) for at in range(0, len(named), 1000)]
    check(texts, reference, encoders[-1:])
    check(texts[::2], reference, encoders[:1])


@settings(max_examples=150)
@given(st.text(st.sampled_from(POOL), max_size=20))
@example("\u0915\u302e\u0301\u1b44")
@example("a\U0001d15e\U0001d16d\U0001d165")
def test_what_is_treated_apart(reference: Any, encoders: list[Any], text: str) -> None:
    check([text], reference, encoders)


@settings(max_examples=150)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text(reference: Any, encoders: list[Any], text: str) -> None:
    check([SPECIAL.sub("", text)], reference, encoders)


def test_many_made_texts(reference: Any, encoders: list[Any]) -> None:
    chance = random.Random(0)
    texts = ["".join(chance.choices(POOL, k=chance.randint(1, 14))) for _ in range(5000)]
    texts += ["".join(chance.choices(CHARACTERS, k=12)) for _ in range(1000)]
    check(texts, reference, encoders)


@pytest.mark.parametrize("word", ["a", "é", "e\u0301", "the", "人", "한", "q", "\U0001d165", "\U0001d16d\U0001d165"])
def test_words_about_as_long_as_a_limit(word: str, reference: Any, encoders: list[Any]) -> None:
    lengths = [1, 2, 4, 5, 6, 7, 8, 9, 14, 15, 16, 17, 31, 32, 33, 34, 50, 99, 100, 101, 102, 5000]
    check([word * n for n in lengths] + [f"x {word * n}. y" for n in lengths], reference, encoders)


def test_natural_text(fetched_text: Callable[[str], Path], reference: Any, encoders: list[Any]) -> None:
    text = fetched_text("shakespeare").read_bytes().decode()[:300_000]
    check([text, *text.split("\n")[:5000]], reference, encoders)


def test_many_scripts(mixed: str, reference: Any, encoders: list[Any]) -> None:
    check([mixed, mixed * 20, *mixed.split(" ")], reference, encoders)


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("accents", [True, False])
@pytest.mark.parametrize("cjk", [True, False])
def test_every_combination_of_rules(lower: bool, accents: bool, cjk: bool, pieces: WordPieces) -> None:
    from dataclasses import replace

    changed = replace(pieces, rules=Rules(True, cjk, accents, lower))
    encoders = [wordpiece.Encoder(changed), *([Kernel(changed)] if kernels.available() else [])]
    chance = random.Random(1)
    texts = ["".join(chance.choices(POOL, k=chance.randint(1, 14))) for _ in range(2000)] + CHARACTERS[:0x3400:3]
    check(texts, hugging_face(changed), encoders)


def test_a_lone_surrogate_is_refused(bert_tok: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="U\\+D800 at character 2"):
        bert_tok.encode("ab\ud800")


def test_threads_share_one_encoder(pieces: WordPieces, encoders: list[Any]) -> None:
    texts = [made_text(3000, seed) for seed in range(8)]
    wanted = [encoders[0].encode(text) for text in texts]
    got: dict[int, bool] = {}

    def work(number: int) -> None:
        got[number] = all([encoders[-1].encode(text) for text in texts] == wanted for _ in range(20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(got.values()) == [True] * 6


def test_more_words_than_are_remembered(encoders: list[Any], reference: Any) -> None:
    chance = random.Random(2)
    text = " ".join("".join(chance.choices("abcdefgh", k=7)) for _ in range(80_000))
    check([text], reference, encoders)


# ---- the class ----


def test_ids_to_text_as_the_reference(bert_tok: Tokenizer, reference: Any) -> None:
    chance = random.Random(3)
    for text in [
        "Hello, world! It's (quite) nice? Yes.",
        "don't, won't ' s",
        *(made_text(300, seed) for seed in range(5)),
    ]:
        ids = bert_tok.encode(text, add_special_tokens=True)
        assert bert_tok.decode(ids) == reference.decode(ids, skip_special_tokens=False)
        stream = bert_tok.stream_decoder()
        assert "".join(map(stream.push, ids)) + stream.finish() == bert_tok.decode(ids)
    for _ in range(300):
        ids = [chance.randrange(30522) for _ in range(8)]
        assert bert_tok.decode(ids) == reference.decode(ids, skip_special_tokens=False)


def test_special_tokens_are_text_unless_allowed(bert_tok: Tokenizer, reference: Any) -> None:
    text = "A [MASK] and [SEP]\u0301 [CLS]."
    assert not set(bert_tok.encode(text)) & set(bert_tok.special_tokens.values())
    assert bert_tok.encode(text, allowed_special="all", add_special_tokens=True) == reference.encode(text).ids


@settings(max_examples=150)
@given(
    st.text(
        st.sampled_from([c for c in POOL if not unicodedata.combining(unicodedata.normalize("NFD", c)[0])]), max_size=16
    )
)
def test_offsets_are_the_references(bert_tok: Tokenizer, reference: Any, text: str) -> None:
    """Where nothing is sorted: the reference then says the place of the neighbour that a character changed with."""
    assert bert_tok.offsets(text) == reference.encode(text, add_special_tokens=False).offsets


@settings(max_examples=100)
@given(st.text(st.sampled_from(POOL), max_size=60), st.integers(0, 60))
def test_a_text_may_be_cut_where_cut_says(bert_tok: Tokenizer, text: str, more: int) -> None:
    start = text[:more]
    cut = bert_tok.engine.cut(start)
    assert bert_tok.encode(text) == bert_tok.encode(text[:cut]) + bert_tok.encode(text[cut:])


def test_a_stream_has_the_ids_of_the_whole(bert_tok: Tokenizer, mixed: str) -> None:
    text = (mixed + made_text(2000)) * 30
    chunks = [text[at : at + 777] for at in range(0, len(text), 777)]
    assert list(bert_tok.encode_stream(chunks)) == bert_tok.encode(text)


def test_explain_says_what_was_tried(bert_tok: Tokenizer) -> None:
    steps = bert_tok.explain("é unaffable")
    assert [(step.piece, step.position, step.word) for step in steps] == [
        ("e", 0, "e"),
        ("una", 3, "unaffable"),
        ("##ffa", 6, "unaffable"),
        ("##ble", 9, "unaffable"),
    ]
    assert steps[1].tried[0] == "unaffable"
    assert steps[1].tried[-1] == "unaf"
    assert [step.id for step in steps] == bert_tok.encode("é unaffable")
    assert bert_tok.explain("q" * 101)[0].piece == "[UNK]"


def test_without_the_kernel_the_ids_are_the_same(bert: Path, mixed: str, without_kernel: None) -> None:
    tok = Tokenizer.load(bert)
    assert tok.backend == "python"
    assert tok.encode_batch([mixed, "a"]) == [tok.encode(mixed), tok.encode("a")]
    assert tok.encode_array(mixed).tolist() == tok.encode(mixed)


def test_words_of_rules_that_clean_nothing() -> None:
    assert Splitter(Rules(False, False, False, False)).words("A\0b\x85c 你好 É") == ["A\0b", "c", "你好", "É"]
