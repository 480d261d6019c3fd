"""Training byte-level BPE: the same merges on every rung, for any cut of the corpus and any number of threads."""

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError, byte_bpe, byte_bpe_fast, kernels
from tinylm.tokenizer._text.pretokenize import count_pieces
from tinylm.tokenizer._trainers import byte_level, choose, counting
from tinylm.tokenizer._trainers import corpus as _corpus
from tinylm.tokenizer._trainers.corpus import Chunk, Head, batches
from tinylm.tokenizer.ladder import made_text
from tinylm.tokenizer.patterns import TRAINABLE

# Everything that decides where a piece ends: letters of both cases and of none, marks, digits, spaces, line ends.
PARTS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u3000",
    "\u00a0",
    "\u2003",
    "\x1c",
    "\x85",
    "'",
    "'s",
    "'LL",
    "x",
    "word",
]
PARTS += [
    "Ab",
    "ABC",
    "é",
    "e\u0301",
    "12",
    "3456",
    "!",
    "...",
    "/",
    "//",
    "日本",
    "，",
    "。\n",
    "ｱ",
    "Я",
    "ß",
    "👩‍👧",
    "\ufeff",
]


@pytest.fixture
def requires_kernel() -> None:
    if not kernels.available():
        pytest.skip("the compiled kernel is not installed")


texts = st.lists(st.sampled_from(PARTS), max_size=60).map("".join)
piece_counts = st.dictionaries(
    st.one_of(st.text("ab", min_size=1, max_size=12), st.text("aabc ", max_size=40), st.text(max_size=8)),
    st.one_of(st.integers(1, 5), st.integers(1, 10**7)),
    max_size=10,
)


@given(piece_counts, st.integers(0, 60))
@example({"ab" * 100: 1, "a" * 300: 2, "abc": 5}, 30)  # words of more than 128 bytes lie apart
@example({"a" * 7: 3, "aa": 10**12, "aaab": 1, "ba": 2**40}, 20)  # counts beyond 32 bits, pairs that overlap
@example({"xy": 10**9, "ab": 3, "abc": 2}, 10)  # what is below the first threshold is found later
@settings(deadline=None)
def test_every_rung_learns_the_same_merges(pieces: dict[str, int], wanted: int) -> None:
    plain = byte_bpe.train_merges(pieces, wanted)
    assert byte_bpe_fast.train_merges(pieces, wanted) == plain
    assert kernels.train_merges(pieces, wanted) == plain


def test_counts_have_64_bits(requires_kernel: None) -> None:
    most = 2**61
    assert len(kernels.train_merges({"ab": most, "cd": most - 1}, 2)) == 2
    a, b, c, d = (byte_bpe.ID_OF_BYTE[ord(letter)] for letter in "abcd")
    assert kernels.train_merges({"ab": most - 1, "cd": most}, 2) == [(c, d), (a, b)]


def test_merges_of_long_text_equal_hugging_face(corpus: list[str]) -> None:
    """In order, with the ids: a vocabulary could be equal by chance."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = [*corpus, made_text(200_000, seed=7), "the cat sat " * 50]
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    reference.train_from_iterator(texts, trainer)
    mine = Tokenizer.train(texts, vocab_size=3000, pattern="gpt2", special_tokens=[])
    model = json.loads(reference.to_str())["model"]
    merges = [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]
    assert [(left, right) for left, right, _ in mine.engine.vocabulary.merges] == merges  # type: ignore[attr-defined]


@given(st.lists(st.text("aab ", max_size=30), min_size=1, max_size=4), st.integers(1, 40))
@settings(deadline=None)
def test_merges_equal_hugging_face_on_small_corpora(corpus: list[str], wanted: int) -> None:
    """Nearly every count is a tie."""
    tokenizers = pytest.importorskip("tokenizers")
    reference = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=256 + wanted, initial_alphabet=alphabet, show_progress=False)
    reference.train_from_iterator(corpus, trainer)
    model = json.loads(reference.to_str())["model"]
    merges = [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]
    assert kernels.train_merges(count_pieces(corpus, ("gpt2",)), wanted) == merges


@pytest.mark.parametrize("pattern", TRAINABLE)
@given(text=texts, size=st.integers(4, 40))
@example(text="a.\n//b c.\n/d", size=4)  # o200k takes the "/" after a line end with what precedes it
@example(text="日本ABCDEFGHIJKLMNOPQRSTUVWXYZ日 ABCdef", size=8)
@settings(deadline=None)
def test_a_chunk_ends_where_no_piece_does_not(pattern: str, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_corpus, "CHUNK", size)
        chunks = [chunk for batch in batches([text + " "]) for chunk in batch]
        assert "".join(chunk.data[: chunk.stop].decode() for chunk in chunks) == text + " "
        python = byte_level._PythonCounter(pattern)
        python.count(chunks)
        whole = count_pieces([text + " "], (pattern,))
        assert python.counts == whole
        if kernels.available():
            counter = kernels.PieceCounter(pattern)
            counter.count(chunks)
            assert counter.distinct == len(whole)
            assert counter.learn(50, lambda done: None) == byte_bpe.train_merges(whole, 50)


def test_text_is_cut_into_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would pass if nothing were ever cut."""
    monkeypatch.setattr(_corpus, "CHUNK", 100)
    for text in (made_text(10_000), "日本語。\n" * 1000, "def f(x):\n\treturn x\n" * 200, "слово, " * 500):
        assert sum(len(batch) for batch in batches([text])) > len(text.encode()) / 400


@pytest.fixture(scope="module")
def book(corpus: list[str]) -> str:
    return ("".join(corpus).replace("\0", "") + made_text(60_000, seed=3)) * 2


@pytest.fixture(scope="module")
def merges(book: str) -> object:
    return learned([book])


def learned(corpus: object, **options: object) -> object:
    made = Tokenizer.train(corpus, vocab_size=900, special_tokens=[], **options)  # type: ignore[arg-type]
    return made.engine.vocabulary.merges  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_and_files_make_no_difference(
    threads: int, book: str, merges: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_corpus, "CHUNK", 5000)
    assert learned([book], threads=threads) == merges
    words = [part if number == 0 else " " + part for number, part in enumerate(book.split(" "))]
    chance = random.Random(threads)
    texts: list[str] = [""]
    for word in words:  # cut before single spaces that follow a letter
        if texts[-1][-1:].isalpha() and word[1:2].isalpha() and chance.random() < 0.01:
            texts.append("")
        texts[-1] += word
    assert len(texts) > 20
    chance.shuffle(texts)
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    assert learned(paths, threads=threads) == merges
    assert learned(iter(texts), threads=threads) == merges


def test_the_python_rung_learns_the_same(book: str, merges: object, tmp_path: Path, without_kernel: None) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(book.encode())
    assert learned([path], threads=4) == merges


def test_threads_share_the_words(requires_kernel: None) -> None:
    """Enough places for each of the first merges that they are divided between threads, and words that are long."""
    chance = random.Random(0)
    words = {"".join(chance.choices("abcdefgh", weights=range(1, 9), k=chance.randint(2, 12))) for _ in range(20_000)}
    pieces = {word: chance.randint(1, 1000) for word in sorted(words)}
    pieces |= {"gh" * 5000: 3, "h" * 4000: 5, "".join(chance.choices("gh", k=6000)): 7}
    alone = kernels.train_merges(pieces, 500)
    assert alone == byte_bpe_fast.train_merges(pieces, 500)
    for threads in (2, 3, 5):
        assert kernels.train_merges(pieces, 500, threads=threads) == alone


@pytest.mark.parametrize("letters", ["a", "ab", "abc", "abcdefghijklm"])
def test_merges_made_in_one_go_are_those_made_one_by_one(letters: str, requires_kernel: None) -> None:
    """Few letters, small counts: many pairs are as frequent as each other, overlap, or follow one another."""
    chance = random.Random(len(letters))
    for _ in range(40):
        words = {"".join(chance.choices(letters, k=chance.randint(2, 20))) for _ in range(chance.randint(1, 60))}
        pieces = {word: chance.randint(1, 3) for word in sorted(words)}
        expected = byte_bpe_fast.train_merges(pieces, 200)
        for threads in (1, 2, 3):
            assert kernels.train_merges(pieces, 200, threads=threads) == expected


def test_only_the_head_of_a_file(book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_corpus, "CHUNK", 777)
    path = tmp_path / "book.txt"
    path.write_bytes(book.encode())
    for fraction in (0.0001, 0.37, 0.5, 0.999, 1.0):
        cut = "".join(chunk.data[: chunk.stop].decode() for batch in batches([Head(path, fraction)]) for chunk in batch)
        assert cut == book[: int(len(book) * fraction)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_has_no_first_part(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TokenizerError, match="read once only"):
        list(batches([Head(tmp_path / "pipe", 0.5)]))


def test_progress_counts_bytes_then_merges(book: str, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(book.encode())
    seen: list[tuple[str, int, int]] = []
    Tokenizer.train([path, path], vocab_size=400, special_tokens=[], progress=lambda *step: seen.append(step))
    size = 2 * path.stat().st_size
    assert ("bytes", size, size) in seen
    assert seen[-1] == ("merges", 144, 144)
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)


@pytest.mark.parametrize("algorithm", choose.ALGORITHMS)
def test_every_algorithm_tells_how_much_it_has_read(algorithm: str, book: str, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(book.encode())
    seen: list[tuple[str, int, int]] = []
    options = {"vocab_size": 700, "algorithm": algorithm}
    Tokenizer.train([path, path], **options, progress=lambda *step: seen.append(step))  # type: ignore[arg-type]
    size = 2 * path.stat().st_size
    assert ("bytes", size, size) in seen
    assert seen[-1][0] != "bytes"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a" * 3000 + b" b\xff c" + b" d" * 3000, "byte 0xff at offset 3002 of .*book.txt"),
        (b"a b " * 1000 + b"\0 x y", "zero byte at offset 4000 of .*book.txt"),
        (b"word " * 900 + b"\xed\xa0\x80 and", "byte 0xed at offset 4500"),
        (b"word " * 900 + b"\xe6\x97", "byte 0xe6 at offset 4500"),
        (b"", "an empty one"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(
    threads: int, data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_corpus, "CHUNK", 256)
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.train([path], vocab_size=300, threads=threads)
    monkeypatch.setattr(kernels, "_compiled", lambda: None)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.train([path], vocab_size=300, threads=threads)


@given(st.binary(max_size=40), st.integers(0, 9))
@settings(deadline=None)
def test_the_kernel_and_python_agree_on_what_is_text(data: bytes, ascii: int) -> None:
    data = b"a" * ascii + data
    chunk = Chunk(data, len(data), of_file=True)
    try:
        text = chunk.text()
    except TokenizerError:
        text = None
    if kernels.available():
        counter = kernels.PieceCounter("gpt2")
        if text is None:
            with pytest.raises(TokenizerError):
                counter.count([chunk])
        else:
            counter.count([chunk])
            assert counter.distinct == len(count_pieces([text], ("gpt2",)))


def test_more_pieces_than_memory_holds_are_refused(book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_memory_limit", lambda: 100_000)
    with pytest.raises(TokenizerError, match=r"more than [\d,]+ different pieces.*train on a part"):
        Tokenizer.train([book], vocab_size=300)


def test_wrong_threads_and_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="1 or more threads"):
        Tokenizer.train(["text"], vocab_size=300, threads=0)
    with pytest.raises(TokenizerError, match=r"nothing\.txt: No such file"):
        Tokenizer.train([tmp_path / "nothing.txt"], vocab_size=300)
    with pytest.raises(TokenizerError, match="directory"):
        Tokenizer.train([tmp_path], vocab_size=300)
    with pytest.raises(TokenizerError, match="empty"):
        Tokenizer.train(["", ""], vocab_size=300)


def test_the_memory_limit_is_part_of_the_machines() -> None:
    limit = counting._memory_limit()
    assert limit > 0
    if hasattr(os, "sysconf"):
        assert limit < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("name", ["a", "\u00e9", "the", "\u0120the", "\u0120"])
def test_a_special_token_has_no_name_of_a_learned_one(name: str) -> None:
    with pytest.raises(TokenizerError, match="the name of a learned token"):  # before it learns: save would refuse
        Tokenizer.train(["the the"], vocab_size=300, special_tokens=[name])


@pytest.mark.parametrize("name", ["<|a|>", "<a>", "\n", "\u65e5", "a b", "\u00c3n"])
def test_other_special_tokens_are_learned_beside(name: str, tmp_path: Path) -> None:
    Tokenizer.train(["the the a b"] * 9, vocab_size=260, special_tokens=[name]).save(tmp_path)
    assert Tokenizer.load(tmp_path).special_tokens[name] == 259
