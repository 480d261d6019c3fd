"""Byte-level byte-pair encoding as GPT-2 describes it, in plain Python: the rung to read first.

Sources: Sennrich, Haddow and Birch 2016 (byte-pair encoding for words); Radford et al. 2019, section 2.2 (GPT-2: start
from the 256 bytes, so that no text is ever out of vocabulary, and keep merges inside the pieces of a pattern).

    train:   cut the text into pieces; every piece is a list of bytes; then again and again: find the most frequent
             pair of neighbours, give it the next free id, and replace it everywhere.
    encode:  cut the text into pieces; in each one replace the pair that training found first, until none is left.
    decode:  put the bytes of the ids one after the other.

What this file does not do: it counts all pairs again after every merge (see `byte_bpe_fast.py` for the incremental
count), it knows no special tokens and no files (see `tokenizer.py`), and it is slow on purpose.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tinylm.tokenizer._text.pretokenize import count_pieces, split

Pair = tuple[int, int]


def _printable_first() -> list[int]:
    """The 256 bytes in GPT-2's order: the printable ones first, then the rest (its `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return printable + [byte for byte in range(256) if byte not in printable]


BYTE_OF_ID: list[int] = _printable_first()  # ids 0..255 are bytes in this order
ID_OF_BYTE: list[int] = [BYTE_OF_ID.index(byte) for byte in range(256)]


def count_pairs(words: dict[tuple[int, ...], int]) -> Counter[Pair]:
    """How often each pair of neighbouring ids occurs, given how often each word (a tuple of ids) occurs."""
    pairs: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in itertools.pairwise(word):
            pairs[pair] += count
    return pairs


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """Replace every `pair` in `ids` by `new_id`, from left to right: merge([1, 1, 1], (1, 1), 9) == [9, 1]."""
    merged: list[int] = []
    position = 0
    while position < len(ids):
        if tuple(ids[position : position + 2]) == pair:
            merged.append(new_id)
            position += 2
        else:
            merged.append(ids[position])
            position += 1
    return merged


def train(texts: Iterable[str], vocab_size: int, pattern: str = "gpt2") -> list[Pair]:
    """Learn at most `vocab_size - 256` merges; merge number n makes the id 256 + n.

    Of several pairs that are equally frequent the smallest (left id, right id) wins, so the result depends on nothing
    but the text. The list is shorter when the text has no pair left.
    """
    return train_merges(count_pieces(texts, (pattern,)), vocab_size - 256)


def train_merges(pieces: Mapping[str, int], wanted: int) -> list[Pair]:
    """Learn at most `wanted` merges from pieces and how often each occurs."""
    words: dict[tuple[int, ...], int] = {
        tuple(ID_OF_BYTE[byte] for byte in piece.encode()): count for piece, count in pieces.items()
    }
    merges: list[Pair] = []
    while len(merges) < wanted:
        pairs = count_pairs(words)
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        new_id = 256 + len(merges)
        words = {tuple(merge(word, best, new_id)): count for word, count in words.items()}
        merges.append(best)
    return merges


def encode(text: str, merges: Sequence[Pair], pattern: str = "gpt2") -> list[int]:
    """The ids of `text`."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return [id for piece in split(text, (pattern,)) for id in encode_piece(piece.encode(), ranks)]


def encode_piece(piece: bytes, ranks: dict[Pair, int]) -> list[int]:
    """The ids of one piece: again and again, merge the pair of the lowest rank everywhere in it."""
    ids = [ID_OF_BYTE[byte] for byte in piece]
    while len(ids) > 1:
        best = min(itertools.pairwise(ids), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        ids = merge(ids, best, 256 + ranks[best])
    return ids


def token_bytes(merges: Sequence[Pair]) -> list[bytes]:
    """The bytes of every id: first the 256 single bytes, then what each merge joins."""
    tokens = [bytes([byte]) for byte in BYTE_OF_ID]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def decode(ids: Iterable[int], merges: Sequence[Pair]) -> str:
    """The text of `ids`; bytes that are not UTF-8 (half a character) become U+FFFD."""
    tokens = token_bytes(merges)
    return b"".join(tokens[id] for id in ids).decode(errors="replace")
