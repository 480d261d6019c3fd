"""`Tokenizer.explain`: every merge that encoding a text does, as data. For teaching; not used when encoding."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tinylm.tokenizer._engines.vocabulary import Vocabulary


@dataclass(frozen=True)
class Merge:
    """One merge: `left + right = result` (bytes), learned as number `rank`, at byte `position` of the text."""

    left: bytes
    right: bytes
    result: bytes
    rank: int
    position: int


def explain_pieces(pieces: list[str], vocabulary: Vocabulary) -> list[Merge]:
    """The merges of each piece in the order in which they are done.

    A piece that is one token from the start (`whole_piece_first`) needs no merge and adds nothing.
    """
    ranks = {(left, right): (rank, result) for rank, (left, right, result) in enumerate(vocabulary.merges)}
    whole = set(vocabulary.tokens.values()) if vocabulary.whole_piece_first else set()
    byte_ids = vocabulary.byte_ids()
    merges: list[Merge] = []
    start = 0
    for piece in pieces:
        data = piece.encode()
        ids = [] if data in whole else [byte_ids[byte] for byte in data]
        while found := [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(ids)) if pair in ranks]:
            (rank, result), at = min(found)
            left, right = vocabulary.tokens[ids[at]], vocabulary.tokens[ids[at + 1]]
            position = start + sum(len(vocabulary.tokens[id]) for id in ids[:at])
            merges.append(Merge(left, right, left + right, rank, position))
            ids[at : at + 2] = [result]
        start += len(data)
    return merges
