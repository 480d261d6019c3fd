"""The tokenizer.json of SentencePiece's kind: BPE over characters (Llama, Mistral, Gemma) and Unigram (T5, XLM-R).

Reading accepts what this package encodes exactly and refuses everything else by name. Writing turns the scores of a
SentencePiece BPE into ranked merges, as the field does: every way in which two pieces make a third, in the order of the
third's score. Some things are then a little different from the *.model: of several ways to make the same piece the
merge's rank decides instead of the place; every part of a text between special tokens gets the dummy space; compiled
rules are applied by grapheme cluster; all white space at the ends goes, not just spaces. Steps of normalisation are in
`json_steps.py`. Does not encode (`_engines/sentencepiece.py`) and does not touch the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tinylm.tokenizer._engines.sentencepiece_data import SPACE, Charsmap, Kind, Only, SentencePieceModel, Spaces
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats import json_steps
from tinylm.tokenizer._formats.json_parts import Reader, boolean, dump, short, write_added_tokens, write_template
from tinylm.tokenizer._text.sentencepiece_words import byte_scores, ranked_merges

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.vocabulary import Merge3

_BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(256)}


def read(content: Mapping[str, Any], where: str) -> SentencePieceModel:
    """The model of a parsed tokenizer.json; `where` names the file in error messages.

    Errors: TokenizerError for each part that is not understood; KeyError, TypeError and the like for another schema.
    """
    reader = Reader(where)
    reader.no_limits(content)
    model = content["model"]
    special, added, flags = reader.added_tokens(content)
    is_unigram = model.get("type", "BPE") == "Unigram"
    if is_unigram:
        texts, scores, unk_id = _unigram_vocabulary(reader, model)
    else:
        texts = _bpe_vocabulary(reader, model)
        scores = dict.fromkeys(texts, 0.0)
        unk_id = _unknown(reader, model.get("unk_token"), texts)
    byte_fallback = boolean(model.get("byte_fallback") or False)
    known = {text for text in texts.values() if len(text) == 1}
    missing = _BYTE_PIECES.difference(texts.values())
    if byte_fallback and missing:
        raise reader.refuse("byte_fallback", f"true with {len(missing)} byte tokens missing", "all 256, or false")
    kinds = {id: Kind.BYTE if byte_fallback and text in _BYTE_PIECES else Kind.NORMAL for id, text in texts.items()}
    if unk_id is not None:
        kinds[unk_id] = Kind.UNKNOWN
    in_vocabulary = set(texts.values())
    for text, id in {**special, **added}.items():
        if texts.setdefault(id, text) != text or (id not in kinds and text in in_vocabulary):
            raise TokenizerError(
                f"{where}: the added token {text!r} (id {id}) has another text or id in the vocabulary"
            )
        if id not in kinds or (text in special and kinds[id] == Kind.NORMAL):
            kinds[id] = Kind.CONTROL
    if unk_id is not None and texts[unk_id] not in special:
        if is_unigram and byte_fallback:  # tokenizers takes it and unknown characters beside it for one
            raise reader.refuse("the unknown token beside byte_fallback", texts[unk_id], "a special token")
        kinds[unk_id] = Kind.NORMAL  # tokenizers finds it in text like any other piece
    size = max(texts) + 1
    if size > 2 * len(texts) + 10_000:
        raise reader.refuse("the vocabulary", f"{len(texts)} tokens with ids up to {size - 1}", "ids with fewer gaps")
    steps, words = json_steps.read(reader, content)
    merges = None if is_unigram else _merges(reader, model["merges"], texts, kinds, unk_id)
    if not is_unigram and unk_id is None and not byte_fallback:
        steps += (Only(frozenset(known | ({SPACE} if words else set()))),)  # which starts a word
    prefix, suffix = reader.template(content.get("post_processor"), special)
    return SentencePieceModel(
        algorithm="unigram" if is_unigram else "sentencepiece-bpe",
        pieces=tuple(texts.get(id, "") for id in range(size)),
        scores=tuple(scores.get(id, 0.0) for id in range(size)),
        kinds=tuple(kinds.get(id, Kind.UNUSED) for id in range(size)),
        merges=merges,
        unk_id=unk_id,
        unk_surface="" if unk_id is None else texts[unk_id],
        byte_fallback=byte_fallback,
        fuse_unknown=is_unigram or boolean(model.get("fuse_unk") or False),
        double=is_unigram,
        steps=steps,
        words=words,
        drop_space=json_steps.read_decoder(reader, content.get("decoder")),
        special_tokens=special,
        added_tokens=added,
        flags=flags,
        prefix=prefix,
        suffix=suffix,
    )


def _bpe_vocabulary(reader: Reader, model: Mapping[str, Any]) -> dict[int, str]:
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(option):
            raise reader.refuse(f"the model's {option}", model[option], "none")
    texts: dict[int, str] = {}
    for text, number in model["vocab"].items():
        id = reader.id(number)
        if id in texts or not text:
            raise TokenizerError(f"{reader.where}: the token {text!r} is empty, or its id {id} is there twice")
        texts[id] = text
    return texts


def _merges(
    reader: Reader, rows: Iterable[Any], texts: Mapping[int, str], kinds: Mapping[int, Kind], unk_id: int | None
) -> tuple[Merge3, ...]:
    """The merges, without those of special tokens: what is written like one stays text."""
    ids = {text: id for id, text in texts.items() if kinds[id] != Kind.BYTE}
    merges = reader.merges(rows, ids, str)
    for merge in merges:
        if unk_id in merge:  # tokenizers would join unknown characters
            raise reader.refuse("a merge", [texts[id] for id in merge[:2]], "none of or into the unknown token")
    return tuple(merge for merge in merges if not any(kinds[id] == Kind.CONTROL for id in merge))


def _unknown(reader: Reader, text: Any, texts: Mapping[int, str]) -> int | None:
    if text is None:
        return None
    for id, known in texts.items():
        if known == text:
            return id
    raise reader.refuse("unk_token", text, "a token of the vocabulary")


def _unigram_vocabulary(
    reader: Reader, model: Mapping[str, Any]
) -> tuple[dict[int, str], dict[int, float], int | None]:
    texts: dict[int, str] = {}
    scores: dict[int, float] = {}
    for id, (text, score) in enumerate(model["vocab"]):
        if not isinstance(text, str) or not text or not isinstance(score, (int, float)) or not abs(score) < 1e30:
            raise TokenizerError(f"{reader.where}: entry {id} of the vocabulary is {short([text, score])}")
        texts[id], scores[id] = text, float(score)
    if len(set(texts.values())) < len(texts):
        raise TokenizerError(f"{reader.where}: a token is in the vocabulary twice")
    unk_id = model.get("unk_id")
    if unk_id is not None and reader.id(unk_id) not in texts:
        raise reader.refuse("unk_id", unk_id, "an id of the vocabulary")
    return texts, scores, unk_id


# ---- writing ----


def write(model: SentencePieceModel) -> bytes:
    """The bytes of the tokenizer.json: always the same for the same model.

    Errors: TokenizerError for what the format has no place for: unused pieces.
    """
    if any(kind == Kind.UNUSED and text for text, kind in zip(model.pieces, model.kinds, strict=True)):
        raise TokenizerError("a tokenizer.json has no place for unused pieces, which this vocabulary has")
    normalizer, pre_tokenizer = json_steps.write(model)
    special = dict(model.special_tokens)
    unknown = model.unk_id is not None and model.kinds[model.unk_id] == Kind.UNKNOWN
    if model.unk_id is not None and unknown and model.unk_id not in model.added_tokens.values():
        special.setdefault(model.pieces[model.unk_id], model.unk_id)
    added = dict(model.added_tokens)
    for id, (text, kind) in enumerate(zip(model.pieces, model.kinds, strict=True)):
        if kind == Kind.USER_DEFINED:
            added[text] = id
    return dump(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": write_added_tokens(special, added, model.flags),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": write_template(model.prefix, model.suffix, special),
            "decoder": json_steps.write_decoder(model),
            "model": _unigram(model) if model.algorithm == "unigram" else _bpe(model),
        }
    )


def otherwise(model: SentencePieceModel) -> list[str]:
    """What the tokenizer.json of `model` does in another way than SentencePiece's own files, a line each."""
    lines = []
    if any(isinstance(step, Charsmap) and not step.by_grapheme for step in model.steps):
        lines.append("it applies the rules of normalisation to grapheme clusters: some rare texts get other ids")
    if any(isinstance(step, Spaces) and step.dummy_prefix for step in model.steps):
        lines.append("it puts a space before each part between special tokens and user-defined symbols, not one alone")
    named = [text for text, kind in zip(model.pieces, model.kinds, strict=True) if kind == Kind.USER_DEFINED]
    if symbols := [text for text in named if text.strip(SPACE) and {SPACE, " "} & {*text}]:
        lines.append(f"it finds these as they are written, where a ▁ is no space: {', '.join(map(repr, symbols))}")
    return lines


def _unigram(model: SentencePieceModel) -> dict[str, Any]:
    if "" in model.pieces:
        raise TokenizerError("a tokenizer.json has no place for ids without a piece, which this Unigram vocabulary has")
    scores = byte_scores(model.scores, model.kinds)
    vocab = [[text, score] for text, score in zip(model.pieces, scores, strict=True)]
    return {"type": "Unigram", "unk_id": model.unk_id, "vocab": vocab, "byte_fallback": model.byte_fallback}


def _bpe(model: SentencePieceModel) -> dict[str, Any]:
    pieces = model.pieces
    merges = (*_symbol_merges(model), *(model.merges if model.merges is not None else ranked_merges(model)))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if model.unk_id is None else pieces[model.unk_id],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": model.fuse_unknown,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {text: id for id, text in enumerate(pieces) if text},
        "merges": [[pieces[left], pieces[right]] for left, right, _ in merges],
    }


def _symbol_merges(model: SentencePieceModel) -> list[Merge3]:
    """What makes user-defined symbols of spaces: added tokens are found as they are written, "▁▁" not in "a  b". The
    longest first: then a run of spaces becomes what SentencePiece finds, the longest from the left."""
    spaces = {text: id for id, text in enumerate(model.pieces) if text and not text.strip(SPACE)}
    return [
        (spaces[text[:cut]], spaces[text[cut:]], spaces[text])
        for text in sorted(spaces, key=len, reverse=True)
        for cut in range(1, len(text))
        if model.kinds[spaces[text]] == Kind.USER_DEFINED and text[:cut] in spaces and text[cut:] in spaces
    ]
