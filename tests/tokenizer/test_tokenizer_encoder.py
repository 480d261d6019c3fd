"""The encoder of the kernel where it is not simple: long texts, long pieces, a full cache, threads, wrong input."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, byte_bpe, byte_bpe_fast, kernels
from tinylm.tokenizer._engines.vocabulary import RankedMerges, Vocabulary
from tinylm.tokenizer._text.pretokenize import split

ALPHABETS = ["a", "ab", "etaoin", "abcdefghijklmnopqrstuvwxyz", "é日本ab", "e\u0301", " ", "0", "=-", "😀🎉"]


@pytest.fixture(scope="module")
def ranked(trained: dict[str, Tokenizer]) -> Vocabulary:
    """A vocabulary as tiktoken has them: the merges follow from the tokens."""
    tokens = trained["cl100k"].engine.vocabulary.tokens
    return Vocabulary(dict(tokens), RankedMerges(tokens), {}, ("cl100k",), whole_piece_first=True)


def made_words(seed: int, count: int) -> str:
    chance = random.Random(seed)
    return " ".join("".join(chance.choices("abcdeéß日😀", k=chance.randint(1, 12))) for _ in range(count))


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_long_pieces_are_merged_alike(alphabet: str, ranked: Vocabulary, tok: Tokenizer) -> None:
    chance = random.Random(0)
    for vocabulary in (ranked, tok.engine.vocabulary):
        kernel, python = kernels.make_encoder(vocabulary), byte_bpe_fast.Encoder(vocabulary)
        for size in (15, 16, 17, 62, 63, 239, 240, 241, 3000, 8191, 8192, 20_000):
            text = "".join(chance.choices(alphabet, k=size))
            ids = kernel.encode(text)
            assert ids == python.encode(text)
            assert kernel.decode_bytes(ids) == text.encode()


@pytest.mark.parametrize("ranked", [False, True], ids=["merge list", "ranks"])
def test_a_token_that_merges_cannot_make_is_a_whole_piece_or_nothing(ranked: bool) -> None:
    """The kernel cuts "語日本" after its first character, and looks up what is left."""
    tokens = {id: bytes([id]) for id in range(256)} | {256: "日本".encode(), 257: b"abc", 258: "語".encode()[:2]}
    merges = RankedMerges(tokens) if ranked else [("語".encode()[0], "語".encode()[1], 258)]
    vocabulary = Vocabulary(tokens, merges, {}, ("cl100k",), whole_piece_first=True)
    kernel, python = kernels.make_encoder(vocabulary), byte_bpe_fast.Encoder(vocabulary)
    for text in ("日本", "abc", "語日本", "日本語", "語abc", "語 日本 abc", "語日本abc" * 50):
        ids = python.encode(text)
        assert kernel.encode(text) == ids
        assert kernel.encode_array(text).tolist() == ids
    assert kernel.encode("日本") == [256]
    assert 256 not in kernel.encode("語日本")
    assert 257 not in kernel.encode("語abc")


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k"])
def test_where_a_stretch_of_a_long_text_ends_makes_no_difference(pattern: str, crossing: dict[str, Tokenizer]) -> None:
    """ASCII is encoded in stretches of 131,072 characters, everything else in stretches of 65,536."""
    vocabulary = crossing[pattern].engine.vocabulary
    kernel, python = kernels.make_encoder(vocabulary), byte_bpe_fast.Encoder(vocabulary)

    @given(st.text(max_size=20), st.integers(-8, 8), st.sampled_from([65_536, 131_072]))
    @settings(deadline=None, max_examples=8)
    def same(text: str, shift: int, stretch: int) -> None:
        for critical in ("I'll 'tis", "don't", "x'ReY", "!\n/ \n  x", "12345", " \u3000 \n", text):
            for filler in ("ab cd. ", "aé"):
                before = stretch + shift - len(critical)
                long = (filler * (before // len(filler) + 1))[:before] + critical + filler
                ids = python.encode(long)
                assert kernel.encode(long) == ids
                assert kernel.encode_array(long).tolist() == ids
                assert kernel.count(long) == len(ids)

    same()


CHARACTERS = "ab éßd日本語，。한글नि😀🎉"  # of one to four bytes


@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([20, 100, 300]))
@settings(deadline=None, max_examples=30)
def test_tokens_that_hold_parts_of_characters(seed: int, by_rank: bool, wanted: int) -> None:
    """Pieces are cut where no token goes across; tokens may begin and end inside of a character."""
    chance = random.Random(seed)
    kinds = chance.sample(CHARACTERS, 6)
    text, other = ("".join(chance.choices(kinds, k=200)) for _ in range(2))
    ids = list(text.encode())
    tokens = {byte: bytes([byte]) for byte in range(256)}
    merges: list[tuple[int, int, int]] = []
    while len(merges) < wanted and len(ids) > 1:  # any two neighbours
        at = chance.randrange(len(ids) - 1)
        pair, new = (ids[at], ids[at + 1]), len(tokens)
        if tokens[pair[0]] + tokens[pair[1]] in tokens.values():
            break
        merges.append((*pair, new))
        tokens[new] = tokens[pair[0]] + tokens[pair[1]]
        ids = byte_bpe.merge(ids, pair, new)
    rules = RankedMerges(tokens) if by_rank else merges
    vocabulary = Vocabulary(tokens, rules, {}, ("cl100k",), whole_piece_first=by_rank)
    for each in (text, other):
        assert kernels.make_encoder(vocabulary).encode(each) == byte_bpe_fast.Encoder(vocabulary).encode(each)


def distinct_words(seed: int, count: int, letters: int) -> str:
    chance = random.Random(seed)
    return "".join(" " + "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=letters)) for _ in range(count))


def test_a_full_table_forgets_and_stays_right(ranked: Vocabulary) -> None:
    kernel = kernels.make_encoder(ranked)  # 700 tokens: room for 163,840 pieces
    for text in (distinct_words(0, 60_000, 5), distinct_words(1, 120_000, 7), distinct_words(0, 60_000, 5)):
        assert kernel.encode(text) == byte_bpe_fast.Encoder(ranked).encode(text)
        assert kernel.encode(text) == kernel.encode(text)


@pytest.fixture
def of_bytes() -> Any:
    tokens = {id: bytes([id]) for id in range(256)}
    return kernels.make_encoder(Vocabulary(tokens, RankedMerges(tokens), {}, ("cl100k",), whole_piece_first=True))


@pytest.mark.parametrize(("letters", "count"), [(12, 90_000), (15, 50_000), (48, 20_000), (63, 15_000), (64, 1000)])
def test_a_full_store_begins_again_and_stays_right(letters: int, count: int, of_bytes: Any) -> None:
    """Every byte is an id, so none of these pieces fits a slot, and together they have more than a million."""
    first, second = distinct_words(0, count, letters), distinct_words(1, count, letters)
    for text in (first, second, first, first):
        assert of_bytes.encode(text) == list(text.encode())


@given(st.lists(st.tuples(st.integers(0, 40), st.text(st.characters(exclude_categories=["Cs"]), max_size=3))))
def test_every_width_of_character_among_ascii(parts: list[tuple[int, str]]) -> None:
    """16 characters are made UTF-8 at once where they are ASCII, whatever Python keeps them in."""
    tokens = {id: bytes([id]) for id in range(256)}
    vocabulary = Vocabulary(tokens, RankedMerges(tokens), {}, ("cl100k",), whole_piece_first=True)
    of_bytes = kernels.make_encoder(vocabulary)
    text = "".join("abcdefghijklmnopqrstuvwxyz0123456789,.;:-"[:count] + other for count, other in parts)
    for widest in ("", "\x80", "\xff", "\u0100", "\u7fff", "\u8000", "\uffff", "\U00010000", "\U0010ffff"):
        for each in (text + widest, widest + text, text + widest + text):
            assert of_bytes.encode(each) == of_bytes.encode_array(each).tolist() == list(each.encode())


def test_threads_share_one_encoder(ranked: Vocabulary) -> None:
    kernel = kernels.make_encoder(ranked)
    texts = [made_words(seed, 3000) for seed in range(40)]
    wanted = [byte_bpe_fast.Encoder(ranked).encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(kernel.encode, texts)) == wanted
    for threads in (1, 2, 4):
        assert kernel.encode_batch(texts * 10, threads) == wanted * 10
    assert kernel.encode_batch([], 4) == []
    assert kernel.encode_batch([""], 4) == [[]]


def test_threads_share_one_store(of_bytes: Any) -> None:
    """What one thread reads another may just be writing over: a few times around for each text."""
    texts = [2 * distinct_words(seed, 400, letters) for letters in (12, 30, 60) for seed in range(40)]
    wanted = [list(text.encode()) for text in texts]
    assert of_bytes.encode_batch(texts * 4, 4) == wanted * 4
    random.Random(0).shuffle(both := list(zip(texts, wanted, strict=True)))
    assert of_bytes.encode_batch([text for text, _ in both] * 4, 4) == [ids for _, ids in both] * 4


@pytest.mark.parametrize("before", ["", "a" * 20_000, "é" * 20_000, "日" * 9000, "😀" * 9000])
def test_a_lone_surrogate_anywhere_is_an_error(before: str, ranked: Vocabulary) -> None:
    for encoder in (kernels.make_encoder(ranked), byte_bpe_fast.Encoder(ranked)):
        for method in (encoder.encode, encoder.encode_array, encoder.count):
            with pytest.raises(UnicodeEncodeError) as caught:
                method(before + "\udc80 x")
            assert caught.value.start == len(before)
        with pytest.raises(UnicodeEncodeError):
            encoder.encode_batch(["fine", before + "\udc80"], 2)
        assert encoder.decode_bytes(encoder.encode("fine")) == b"fine"


@pytest.mark.parametrize("wrong", [-1, 99_999, 2**31, 2**32, 2**70])
def test_an_unknown_id_is_named(wrong: int, ranked: Vocabulary) -> None:
    for encoder in (kernels.make_encoder(ranked), byte_bpe_fast.Encoder(ranked)):
        with pytest.raises(KeyError, match=str(wrong)):
            encoder.decode_bytes([65, wrong])


def test_ids_far_above_all_others(ranked: Vocabulary) -> None:
    far = {2**30: b"far", 2**32 - 2: b"farther"}
    vocabulary = Vocabulary({**ranked.tokens, **far}, RankedMerges({**ranked.tokens, **far}), {}, ("gpt2",), True)
    for encoder in (kernels.make_encoder(vocabulary, {3_000_000_000: b"<end>"}), byte_bpe_fast.Encoder(vocabulary)):
        assert encoder.encode("far") == [2**30]
        assert encoder.encode("farther farther")[0] == 2**32 - 2
        assert encoder.decode_bytes([2**30, 2**32 - 2]) == b"farfarther"


@pytest.mark.parametrize("rules", ["list of merges", "ranks"])
def test_pieces_merged_side_by_side_have_the_ids_they_have_alone(
    rules: str, ranked: Vocabulary, tok: Tokenizer
) -> None:
    """Enough new pieces of every length for the tables of `side_by_side.py`, repeated letters and "é日" among them."""
    vocabulary = ranked if rules == "ranks" else tok.engine.vocabulary
    chance = random.Random(5)
    lengths = [*range(1, 40), *range(40, 140, 7)] * 20
    words = ["".join(chance.choices(chance.choice(["aab", "etaoins", "the é日😀"]), k=length)) for length in lengths]
    pieces = sorted({piece for word in words for piece in split(word, vocabulary.stages)})
    alone = byte_bpe_fast.Encoder(vocabulary)
    wanted = {piece: alone.encode(piece) for piece in pieces}

    many = byte_bpe_fast.Encoder(vocabulary)
    known = many._prepared(pieces)
    assert len(known) > 1000
    assert max(len(piece.encode()) for piece in known) > 64
    assert {piece: memoryview(ids).cast("I").tolist() for piece, ids in known.items()} == {
        piece: wanted[piece] for piece in known
    }
    text = " ".join(f"{word}Q" for word in words)  # so that none is a piece that is a token
    assert many.encode(text) == many.encode_array(text).tolist() == kernels.make_encoder(vocabulary).encode(text)
    assert many.count(text) == len(many.encode(text))


def ranked_by(tokens: dict[int, bytes]) -> Vocabulary:
    return Vocabulary(tokens, RankedMerges(tokens), {}, ("gpt2",), whole_piece_first=True)


def made_ranks(seed: int, count: int, alphabet: str, longest: int) -> dict[int, bytes]:
    """A vocabulary of ranks: all bytes, and made-up tokens of 2 to `longest` characters; few of them can be made."""
    chance = random.Random(seed)
    made = {"".join(chance.choices(alphabet, k=chance.randint(2, longest))).encode(): None for _ in range(count)}
    return {id: bytes([id]) for id in range(256)} | {256 + i: token for i, token in enumerate(made)}


@pytest.mark.parametrize(
    ("alphabet", "longest"),
    [("abcdefghijklmnopqrstuvwxyz", 6), ("abcd", 9), ("aé日😀", 5), ("ab", 16), ("abcd\x07\0", 9)],
)
def test_pieces_merged_side_by_side_are_merged_alike(alphabet: str, longest: int) -> None:
    """merge_lanes.hpp, where the processor can; so many tokens that some share their places and their tag there."""
    tokens = made_ranks(7, 60_000, alphabet, longest)
    vocabulary = ranked_by(tokens)
    kernel, python = kernels.make_encoder(vocabulary), byte_bpe_fast.Encoder(vocabulary)
    chance = random.Random(8)
    texts = [
        " ".join("".join(chance.choices(alphabet, k=chance.randint(2, most))) for _ in range(words))
        for words, most in [(5, 8), (17, 16), (100, 31), (300, 40), (20_000, 12), (2000, 31)]
    ]
    for text in [*texts, " ".join(texts)]:
        ids = python.encode(text)
        assert kernel.encode_array(text).tolist() == ids
        assert kernel.encode(text) == ids  # what is remembered now
    fresh = kernels.make_encoder(vocabulary)
    assert fresh.encode_batch(texts, threads=2) == [python.encode(text) for text in texts]


def strings(letters: str, size: int) -> list[str]:
    return ["".join(letter) for letter in itertools.product(letters, repeat=size)]


def test_tokens_that_hash_alike_are_told_apart() -> None:
    """Of so many tokens some pairs share their places and their tag in merge_lanes.hpp. The lower rank has to stand
    there, though it comes second here: two ids of this text depend on it."""
    chance = random.Random(5)
    tokens = [part for size in (3, 4, 5) for part in strings("abcdefgh", size)]
    tokens += chance.sample(strings("abcdefgh", 6), 150_000)
    chance.shuffle(tokens)
    tokens = [*strings("abcdefgh", 2), *tokens]
    ranks = dict(reversed([*enumerate([*(bytes([byte]) for byte in range(256)), *map(str.encode, tokens)])]))
    vocabulary = ranked_by(ranks)
    text = " ".join("".join(chance.choices("abcdefgh", k=chance.randint(7, 12))) for _ in range(150_000))
    assert kernels.make_encoder(vocabulary).encode(text) == byte_bpe_fast.Encoder(vocabulary).encode(text)


def test_bytes_that_hash_as_a_token_of_the_same_beginning_are_none() -> None:
    """Half of what follows "ABCDEFGH" is no token; four of these have the place and the tag of one that is."""
    beginning, parts = "ABCDEFGH", [part for size in range(2, 6) for part in strings("abcdefgh", size)]
    words = [beginning + letter + part for letter in "IJKLMNOP" for part in parts if len(part) == 5]
    chance = random.Random(0)
    chance.shuffle(words)
    halves = [beginning[at : at + size] for size in (2, 4, 8) for at in range(0, 8, size)]
    tokens = [*parts, *halves, *(beginning + letter for letter in "IJKLMNOP"), *words[:100_000]]
    ranks = dict(enumerate([*(bytes([byte]) for byte in range(256)), *map(str.encode, tokens)]))
    vocabulary = ranked_by(ranks)
    text = " ".join(words)
    assert kernels.make_encoder(vocabulary).encode(text) == byte_bpe_fast.Encoder(vocabulary).encode(text)


def doubled(word: str, most: int) -> list[str]:
    """All beginnings of `word` that are tokens where each takes in what is as long: of 2, 4, 8 ... characters."""
    return [word[at : at + size] for size in (2, 4, 8, 16, 32) if size <= most for at in range(0, most, size)]


def test_merging_side_by_side_is_where_it_should_be() -> None:
    """Up to 2 ** 18 - 2 ids; whatever the memory held before; tokens of up to 31 bytes; bytes that no text has."""
    compiled = kernels._compiled() or pytest.skip("the compiled kernel is not installed")
    can = compiled.masks_agree(bytes(64)) is not None  # the processor has AVX-512
    letters = "abcdefghijklmnopqrstuvwxyzABCDEF"
    pieces = list(dict.fromkeys([*doubled(letters, 16), *doubled(letters[::-1], 16), "xyz"]))
    few = [*map(str.encode, pieces), b"\xff\xfe", b"abcdefg\xff", b"\0\0", b"\0\0\0"]
    text = " ".join(f"{letters[i:]} GH{letters[j:i]}\0\0\0\0{letters[:i]}" for i in range(32) for j in range(i))
    expected = None
    for highest, side_by_side in [(256 + len(few), can), (2**18 - 3, can), (2**18 - 2, False), (2**22 + 7, False)]:
        for _ in range(3):  # the memory of the one before is the next one's
            tokens = {id: bytes([id]) for id in range(256)} | {256 + i: token for i, token in enumerate(few)}
            tokens[highest] = b"GH"
            vocabulary = ranked_by(tokens)
            kernel, python = kernels.make_encoder(vocabulary), byte_bpe_fast.Encoder(vocabulary)
            expected = python.encode(text)
            assert highest in expected
            assert kernel.encode(text) == expected
            assert kernel._encoder.side_by_side() == side_by_side
    tokens = made_ranks(1, 180_000, "abcdefghijklmnopqrstuvwxyz", 9)
    tokens = {id: tokens[id] for id in range(2**17)}  # as many as would fill half of a table
    assert kernels.make_encoder(ranked_by(tokens))._encoder.side_by_side() == can
