"""What both algorithms of the SentencePiece family share: which pieces text may hold, and what pieces become.

The algorithms: `sentencepiece_bpe.py` and `unigram.py`. The data: `_engines/sentencepiece_data.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tinylm.tokenizer._engines.sentencepiece_data import SPACE, Kind, SentencePieceModel

Found = tuple[str, int]  # a part of the normalised text, and its id; -1: no piece covers it

_FINDABLE = (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)


def findable(model: SentencePieceModel) -> dict[str, int]:
    """Text → id of the pieces that are ever found in text. Of two with the same text the first counts.

    In a Unigram model of a tokenizer.json (`double`) the text "<0x0A>" may be taken for the byte piece of that name.
    """
    kinds = (*_FINDABLE, Kind.BYTE) if model.double else _FINDABLE
    ids: dict[str, int] = {}
    for id, (text, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)):
        if kind in kinds and text:
            ids.setdefault(text, id)
    return ids


def user_defined(model: SentencePieceModel) -> re.Pattern[str] | None:
    """Finds the user-defined pieces, the longest first; None if there are none."""
    texts = [text for text, kind in zip(model.pieces, model.kinds, strict=True) if kind == Kind.USER_DEFINED]
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


def cut_out(text: str, whole: re.Pattern[str] | None) -> list[tuple[str, bool]]:
    """`text` in parts; True for those that `whole` found."""
    parts: list[tuple[str, bool]] = []
    done = 0
    for found in whole.finditer(text) if whole else ():
        if done < found.start():
            parts.append((text[done : found.start()], False))
        parts.append((found.group(), True))
        done = found.end()
    return parts + ([(text[done:], False)] if done < len(text) else [])


def words(text: str) -> list[str]:
    """`text` cut before every "▁": "▁▁to▁be" → "▁", "▁to", "▁be"."""
    starts = [place for place, character in enumerate(text) if character == SPACE and place]
    return [text[start:end] for start, end in zip([0, *starts], [*starts, len(text)], strict=True)] if text else []


def byte_ids(model: SentencePieceModel) -> list[int]:
    """The id of the piece for each of the 256 bytes; empty without byte fallback."""
    if not model.byte_fallback:
        return []
    ids = {text: id for id, (text, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)) if kind == Kind.BYTE}
    return [ids[f"<0x{byte:02X}>"] for byte in range(256)]


def fill_in(
    found: Iterable[Found], model: SentencePieceModel, bytes_: Sequence[int], unknown_before: bool = False
) -> list[tuple[str, list[int]]]:
    """Parts of the text, each with its ids: where no piece covers it, its bytes or the unknown id.

    Neighbouring unknown parts become one, if the model fuses them; they vanish if it has no unknown piece. The unknown
    piece itself may have been found (Unigram of a tokenizer.json): it is such a part.
    unknown_before: the text before this one ended with one.
    """
    parts: list[tuple[str, list[int]]] = []
    for text, id in found:
        unknown = not bytes_ and (id < 0 or (model.double and id == model.unk_id))
        if not unknown and id >= 0:
            parts.append((text, [id]))
        elif bytes_:
            parts.append((text, [bytes_[byte] for byte in text.encode()]))
        elif unknown_before and model.fuse_unknown:
            start, ids = parts.pop() if parts else ("", [])
            parts.append((start + text, ids))
        else:
            parts.append((text, [] if model.unk_id is None else [model.unk_id]))
        unknown_before = unknown
    return parts


def ranked_merges(model: SentencePieceModel) -> tuple[tuple[int, int, int], ...]:
    """Every (left, right, result) of pieces, the result with the best score first: scores as merges."""
    ids = findable(model)
    merges = [
        (left, right, id)
        for text, id in ids.items()
        if model.kinds[id] == Kind.NORMAL
        for cut in range(1, len(text))
        if (left := ids.get(text[:cut], -1)) >= 0 and (right := ids.get(text[cut:], -1)) >= 0
    ]
    return tuple(sorted(merges, key=lambda merge: (-model.scores[merge[2]], merge[2], merge[0], merge[1])))


def byte_scores(scores: Sequence[float], kinds: Sequence[int]) -> list[float]:
    """The scores, with those of BYTE pieces so low that the text "<0x0A>" is rather spelled with its six characters."""
    pairs = list(zip(scores, kinds, strict=True))
    lowest = 6 * min((score for score, kind in pairs if kind == Kind.NORMAL), default=0.0) - 1
    return [min(score, lowest) if kind == Kind.BYTE else score for score, kind in pairs]
