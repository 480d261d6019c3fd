"""`Tokenizer`: round trips, special tokens, streams, offsets, and what it refuses."""

import copy
import itertools
import os
import pickle
import re
import signal
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, _streaming, kernels, naive_bpe
from tinylm.tokenizer._engines.byte_level import ByteLevelEngine, byte_level_engine
from tinylm.tokenizer._engines.vocabulary import from_training
from tinylm.tokenizer._trainers import choose
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.patterns import TRAINABLE

# What streams must not be cut wrongly at, half special tokens included.
PARTS = [" ", "  ", "\n", "\r\n", "'", "'LL", "x", "Ab", "é", "12", "3", "!", "/", "日", "\u0301", "<|im_", "start|>"]

texts = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "\n", "\r", "'", "'LL", "  x", "<|im_start|>", "<|im_", "日本", "12", "3", "\u0301", "Ab", "!", "/"]
        ),
        st.text(max_size=6),
    ),
    max_size=25,
).map("".join)


@pytest.fixture(params=["kernels", "python"])
def any_tok(request: pytest.FixtureRequest, tok: Tokenizer, python_tok: Tokenizer) -> Tokenizer:
    if request.param == "kernels" and not kernels.available():
        pytest.skip("the compiled kernel is not installed")
    chosen = tok if request.param == "kernels" else python_tok
    assert chosen.backend == request.param
    return chosen


def test_what_the_readme_types_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinylm.tokenizer._chat import CHATML

    readme = Path(__file__).parents[2] / "packages" / "tinylm-tokenizer" / "README.md"
    use, chat = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(made_text(20_000), encoding="utf-8")
    namespace: dict[str, Tokenizer] = {}
    with pytest.warns(UserWarning, match="no pair left"):
        exec(use, namespace)
    assert namespace["tok"].vocab_size > 500
    marks = ["<|im_start|>", "<|im_end|>"]
    Tokenizer.train(["book.txt"], vocab_size=300, special_tokens=marks, chat_template=CHATML).save("my-tokenizer")
    exec(chat, namespace)


def test_round_trip_on_both_backends(any_tok: Tokenizer, tok: Tokenizer, mixed: str) -> None:
    @given(texts)
    @settings(deadline=None)
    def back(text: str) -> None:
        ids = any_tok.encode(text)
        assert any_tok.decode(ids) == text
        assert ids == tok.encode(text)
        array = any_tok.encode_array(text)
        assert array.dtype == np.uint32
        assert array.tolist() == ids
        assert any_tok.count(text) == len(ids)
        special = any_tok.encode(text, allowed_special="all")
        assert any_tok.decode(special) == text
        assert any_tok.encode_array(text, allowed_special="all").tolist() == special

    back()
    assert any_tok.decode(any_tok.encode(mixed)) == mixed
    assert any_tok.encode("") == []
    assert any_tok.encode_array("").shape == (0,)


def test_what_a_tokenizer_is_can_be_read(any_tok: Tokenizer) -> None:
    assert repr(any_tok) == f"<Tokenizer: bpe, {any_tok.vocab_size} ids, {any_tok.backend}>"


def test_special_tokens_are_text_unless_allowed(tok: Tokenizer) -> None:
    text = "a<|im_start|>b<|im_end|>"
    start, end = tok.special_tokens["<|im_start|>"], tok.special_tokens["<|im_end|>"]
    assert not {start, end} & set(tok.encode(text))
    assert tok.encode(text, allowed_special=["<|im_end|>"])[-1] == end
    assert start not in tok.encode(text, allowed_special=["<|im_end|>"])
    assert tok.encode(text, allowed_special="all") == [*tok.encode("a"), start, *tok.encode("b"), end]
    assert tok.encode("<|im_end|>", allowed_special="<|im_end|>") == [end]
    with pytest.raises(TokenizerError, match="no special token"):
        tok.encode(text, allowed_special=["<nope>"])
    assert tok.eos_id == tok.special_tokens["<|endoftext|>"]
    assert tok.bos_id is None


def test_ids_of_our_own_training(tok: Tokenizer) -> None:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    assert [tok.id_to_bytes(id)[0] for id in range(188)] == printable
    assert list(tok.special_tokens.values()) == [697, 698, 699]
    assert tok.vocab_size == 700


@given(text=st.lists(st.sampled_from(PARTS), min_size=8, max_size=25).map("".join), data=st.data())
@settings(deadline=None, max_examples=300)
@pytest.mark.parametrize("pattern", TRAINABLE)
def test_stream_equals_whole(pattern: str, crossing: dict[str, Tokenizer], text: str, data: st.DataObject) -> None:
    """Any cut into chunks, at the smallest possible buffer, gives the ids of the whole text."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    chunks = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streaming, "_ENOUGH", 1)
        tokenizer = crossing[pattern]
        assert list(tokenizer.encode_stream(chunks)) == tokenizer.encode(text)
        parts = list(tokenizer.encode_parts(chunks, threads=2))
        assert [id for ids, _ in parts for id in ids.tolist()] == tokenizer.encode(text)
        lengths = [length or 0 for _, length in parts]
        assert sum(lengths) == len(text)
        half = len(parts) // 2  # what follows a part can be encoded without what precedes it
        rest = tokenizer.encode_parts([text[sum(lengths[:half]) :]])
        assert [id for ids, _ in rest for id in ids.tolist()] == [id for ids, _ in parts[half:] for id in ids.tolist()]
        for allowed in ("all", ["<|im_start|>"]):
            ids = list(tokenizer.encode_stream(chunks, allowed_special=allowed))
            assert ids == tokenizer.encode(text, allowed_special=allowed)


def test_parts_that_lean_on_each_other_are_encoded_in_one_go() -> None:
    pieces = Tokenizer.train(["some words and some more"], vocab_size=290, algorithm="unigram")
    text = "some words\n and more " * 5000
    parts = list(pieces.encode_parts([text[i : i + 7000] for i in range(0, len(text), 7000)], threads=2))
    assert [id for ids, _ in parts for id in ids.tolist()] == pieces.encode(text)
    assert {length for _, length in parts} == {None}
    with pytest.raises(TokenizerError, match="threads"):
        pieces.encode_parts([text], threads=0)


def test_stream_of_characters_and_its_memory(tok: Tokenizer, mixed: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streaming, "_ENOUGH", 20)
        assert list(tok.encode_stream(mixed * 2)) == tok.encode(mixed * 2)
        held = 0
        encode = tok.engine.encode

        def watch(text: str, first: bool = True) -> list[int]:
            nonlocal held
            held = max(held, len(text))
            return encode(text)

        patch.setattr(tok.engine, "encode", watch)
        assert sum(1 for _ in tok.encode_stream(mixed for _ in range(50))) > 50 * 100
        assert 0 < held < 3 * len(mixed)


@given(text=texts)
def test_stream_decoder_never_gives_half_a_character(tok: Tokenizer, text: str) -> None:
    decoder = tok.stream_decoder()
    given_out = [decoder.push(id) for id in tok.encode(text)]
    assert "".join(given_out) == text
    assert all("\ufffd" not in part for part in given_out) or "\ufffd" in text
    assert decoder.finish() == ""


def test_stream_decoder_at_a_broken_end(tok: Tokenizer) -> None:
    decoder = tok.stream_decoder()
    first = next(id for id in range(256) if tok.id_to_bytes(id) == "é".encode()[:1])
    assert decoder.push(first) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.push(tok.encode("x")[0]) == "x"


@given(text=texts, n=st.integers(0, 30))
def test_truncate_and_offsets(tok: Tokenizer, text: str, n: int) -> None:
    start = tok.truncate(text, n)
    assert text.startswith(start)
    assert tok.count(start) <= n
    assert tok.count(text) > n or start == text
    ids = tok.encode(text)
    spans = tok.offsets(text, "byte")
    assert [text.encode()[begin:end] for begin, end in spans] == [tok.id_to_bytes(id) for id in ids]
    for (begin, end), (first, last) in zip(spans, tok.offsets(text), strict=True):
        assert len(text[:first].encode()) <= begin < end <= len(text[:last].encode())
        assert last - first <= end - begin


def test_truncate_keeps_what_fits(tok: Tokenizer) -> None:
    text = "the quick brown fox " * 20
    for n in (1, 7, 50):
        assert tok.count(tok.truncate(text, n)) == n
    with pytest.raises(TokenizerError, match="0 or more"):
        tok.truncate(text, -1)


def test_batch_equals_one_by_one(any_tok: Tokenizer, corpus: list[str]) -> None:
    lines = [line for text in corpus for line in text.splitlines(keepends=True)]
    expected = [any_tok.encode(line) for line in lines]
    assert any_tok.encode_batch(lines) == any_tok.encode_batch(iter(lines), threads=4) == expected
    assert any_tok.encode_batch([]) == []
    with pytest.raises(TokenizerError, match="threads"):
        any_tok.encode_batch(lines, threads=0)


def test_explain_ends_in_the_tokens(tok: Tokenizer, mixed: str) -> None:
    merges = tok.explain(mixed)
    made = {(merge.position, merge.result) for merge in merges}
    for id, (start, end) in zip(tok.encode(mixed), tok.offsets(mixed, "byte"), strict=True):
        assert end - start == 1 or (start, tok.id_to_bytes(id)) in made
    for merge in merges:
        assert merge.left + merge.right == merge.result
        assert mixed.encode()[merge.position :].startswith(merge.result)
        assert tok.engine.vocabulary.tokens[tok.engine.vocabulary.merges[merge.rank][2]] == merge.result


@pytest.mark.parametrize("id", [-1, 700, 10**12, "5", None, 1.5])
def test_ids_out_of_range_are_named(tok: Tokenizer, id: object) -> None:
    for decode in (tok.decode, tok.decode_bytes):
        with pytest.raises(TokenizerError, match="from 0 to 699, got"):
            decode([1, id])  # type: ignore[list-item]  # wrong on purpose
    with pytest.raises(TokenizerError, match="from 0 to 699, got"):
        tok.stream_decoder().push(id)  # type: ignore[arg-type]  # wrong on purpose


def test_texts_that_are_none_are_refused(any_tok: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+DC80 at character 1"):
        any_tok.encode("a\udc80")
    with pytest.raises(TokenizerError, match="wanted a string, got bytes"):
        any_tok.encode(b"a")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TokenizerError, match="wanted a string, got int"):
        any_tok.encode(3, allowed_special="all")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TokenizerError, match="unit"):
        any_tok.offsets("a", "word")  # type: ignore[arg-type]  # wrong on purpose


def test_decode_takes_arrays_and_error_handlers(tok: Tokenizer) -> None:
    ids = tok.encode_array("héllo")
    assert tok.decode(ids) == "héllo"
    assert tok.decode(ids.astype(np.int64)) == "héllo"
    half = [id for id in range(256) if tok.id_to_bytes(id) == b"\xc3"]
    assert tok.decode(half) == "\ufffd"
    assert tok.decode(half, errors="ignore") == ""
    with pytest.raises(UnicodeDecodeError):
        tok.decode(half, errors="strict")


def test_a_stream_is_not_cut_where_a_far_letter_decides() -> None:
    merges = kernels.train_merges({"日A": 1}, 3)  # across the place that is a cut only while no lower case follows
    tokenizer = Tokenizer(ByteLevelEngine(from_training(merges, [], "o200k")))
    for text in ("日" + "A" * 40 + "b日", "日" + "A" * 40 + "日" * 9, "日" + "A" * 40):
        for size in (1, 7, 30):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_streaming, "_ENOUGH", 1)
                chunks = [text[start : start + size] for start in range(0, len(text), size)]
                assert list(tokenizer.encode_stream(chunks)) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def normalizing(trained: dict[str, Tokenizer]) -> Tokenizer:
    """Qwen's kind: text is brought to NFC first."""
    return Tokenizer(ByteLevelEngine(replace(trained["qwen2"].engine.vocabulary, nfc=True)))


decomposed = st.text(
    st.sampled_from([*"ab e\u0301\u0327\u1100\u1161\u11a8\u0958\u212b 日\n"]) | st.characters(codec="utf-8")
)


@given(text=decomposed, size=st.integers(1, 40))
def test_normalized_stream_equals_whole(normalizing: Tokenizer, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streaming, "_ENOUGH", 1)
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(normalizing.encode_stream(chunks)) == normalizing.encode(text)


def test_offsets_of_what_normalizing_leaves_are_exact(normalizing: Tokenizer) -> None:
    text = " \u09a4\u65e5"
    plain = normalizing.offsets(text, "byte")
    assert normalizing.offsets(f"{text} e\u0301", "byte")[: len(plain)] == plain


@given(text=decomposed)
def test_offsets_of_normalized_text_point_into_the_text(normalizing: Tokenizer, text: str) -> None:
    ids, spans = normalizing.encode(text), normalizing.offsets(text, "byte")
    data = text.encode()
    assert len(ids) == len(spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert not text or (spans[0][0] == 0 and spans[-1][1] == len(data))
    for id, (start, end) in zip(ids, spans, strict=True):
        stretch = unicodedata.normalize("NFC", data[start:end].decode(errors="ignore")).encode()
        token = normalizing.id_to_bytes(id)
        assert token.decode(errors="ignore").encode() in stretch or len(token) < 4  # it may end inside a character


def test_added_tokens_stand_for_themselves_in_any_text(tok: Tokenizer) -> None:
    added = {"<think>": 9000, "<think>!": 9001, "\n\n\n": 9002}
    other = Tokenizer(ByteLevelEngine(replace(tok.engine.vocabulary, added_tokens=added)))
    text = "a<think>!b<think>\n\n\n\n<|endoftext|>"
    start, middle, end = tok.encode("a"), tok.encode("b"), tok.encode("\n<|endoftext|>")
    wanted = [*start, 9001, *middle, 9000, 9002, *end]
    assert other.encode(text) == wanted == other.encode_array(text).tolist() == other.encode_batch([text])[0]
    assert other.decode(wanted) == text
    assert [text[slice(*span)] for span in other.offsets(text)][1 : 1 + 2] == ["<think>!", "b"]
    assert other.special_tokens == tok.special_tokens
    for size in range(1, 9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_streaming, "_ENOUGH", 1)
            assert list(other.encode_stream(text[i : i + size] for i in range(0, len(text), size))) == wanted


def test_the_files_of_the_naive_rung_open_as_a_tokenizer(tmp_path: Path) -> None:
    text = "low lower lowest, low; don't lower it"
    words = naive_bpe.char_spaced_word_freq(text)
    merges = naive_bpe.learn_merges(words, 12)
    vocab = naive_bpe.build_vocab(words, merges)
    naive_bpe.save_merge_rules(merges, tmp_path / "merge_rules.txt")
    naive_bpe.save_vocab(vocab, tmp_path / "vocab.json")
    loaded = Tokenizer.load(tmp_path)
    ids = naive_bpe.encode(text, merges, vocab)
    assert (loaded.algorithm, loaded.backend, loaded.vocab_size) == ("naive-bpe", "python", len(vocab))
    assert loaded.encode(text) == ids == loaded.encode_array(text).tolist() == loaded.encode_batch([text, text])[1]
    assert loaded.decode(ids) == text
    decoder = loaded.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == text
    assert "".join(text[start:end] for start, end in loaded.offsets(text)) == text.replace(" ", "")
    assert 1 <= loaded.count(loaded.truncate(text, 3)) <= 3
    assert [step.result for step in loaded.explain("low")][-1] in (b"low", b"low</w>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streaming, "_ENOUGH", 1)
        assert list(loaded.encode_stream(text[i : i + 3] for i in range(0, len(text), 3))) == ids
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").encode(text) == ids


def pickled(tok: Tokenizer) -> Tokenizer:
    """As it comes out of a pickle, in a worker of multiprocessing for example."""
    again: Tokenizer = pickle.loads(pickle.dumps(tok))  # noqa: S301  (made here)
    return again


@pytest.mark.parametrize("algorithm", choose.ALGORITHMS)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_tokenizer_can_be_pickled_and_copied(
    algorithm: str, hidden: bool, corpus: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mixed: str
) -> None:
    if hidden:
        monkeypatch.setattr(kernels, "_compiled", lambda: None)
    tok = Tokenizer.train(corpus, vocab_size=600, algorithm=algorithm, chat_template="{{ messages }}")
    tok.encode(mixed, allowed_special=[*tok.special_tokens][:1])  # what is remembered of that is not pickled
    for again in (pickled(tok), copy.deepcopy(tok), copy.copy(tok)):
        assert again.encode(mixed, allowed_special="all") == tok.encode(mixed, allowed_special="all")
        assert again.decode(tok.encode(mixed)) == tok.decode(tok.encode(mixed))
        for name in ("backend", "vocab_size", "special_tokens", "bos_id", "eos_id", "chat_template"):
            assert getattr(again, name) == getattr(tok, name)
    pickled(tok).save(tmp_path / "a")
    tok.save(tmp_path / "b")
    assert all((tmp_path / "a" / path.name).read_bytes() == path.read_bytes() for path in (tmp_path / "b").iterdir())


def test_a_vocabulary_without_some_bytes_can_be_pickled(tok: Tokenizer) -> None:
    vocabulary = tok.engine.vocabulary
    lacking = replace(vocabulary, tokens={id: token for id, token in vocabulary.tokens.items() if token != b"\x01"})
    again = pickled(Tokenizer(byte_level_engine(lacking)))
    assert again.encode("ab") == tok.encode("ab")
    with pytest.raises(TokenizerError, match="no token for a byte"):
        again.encode("\x01")


def test_allowed_special_is_all_or_names(any_tok: Tokenizer) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda allowed: any_tok.encode("a", allowed_special=allowed),
        lambda allowed: any_tok.encode_array("a", allowed_special=allowed).tolist(),
        lambda allowed: any_tok.encode_batch(["a"], allowed_special=allowed)[0],
        lambda allowed: list(any_tok.encode_stream(["a"], allowed_special=allowed)),
    ]
    for call in calls:
        assert call(None) == any_tok.encode("a")
        for wrong in (5, 1.5, True, [["a"]], [None], ["<|nothing|>"]):
            with pytest.raises(TokenizerError, match="special token"):
                call(wrong)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("algorithm", choose.ALGORITHMS)
def test_a_process_that_was_forked_while_threads_encoded_can_encode(algorithm: str, corpus: list[str]) -> None:
    tok = Tokenizer.train(corpus, vocab_size=500, algorithm=algorithm)
    short, long = corpus[0][:200], corpus[0][:5000]
    wanted, done = tok.encode(long), threading.Event()

    def encode() -> None:
        while not done.is_set():
            tok.encode_batch([short] * 200, threads=2)
            tok.encode_array(long * 30)  # the kernels give Python's lock back for it

    threads = [threading.Thread(target=encode) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            if (child := os.fork()) == 0:
                signal.alarm(60)  # one that waits for a lock for ever is ended
                os._exit(0 if tok.encode(long) == wanted == tok.encode_batch([long] * 3, threads=2)[2] else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
