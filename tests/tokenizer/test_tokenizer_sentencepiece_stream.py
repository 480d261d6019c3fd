"""`encode_stream` of the SentencePiece family: the ids of the whole text, and no more of it held than a cut needs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tinylm.tokenizer import Tokenizer, _streaming
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import (
    SPACE,
    Form,
    Prepend,
    Replace,
    ReplaceSpaces,
    SentencePieceModel,
    Spaces,
    Step,
    Strip,
    WhiteSpace,
)
from tinylm.tokenizer._formats.sentencepiece_model import read

CHUNK = 1 << 16  # characters that are held at least
STEPS: dict[str, tuple[Step, ...]] = {
    "model": (),
    "llama": (Prepend(SPACE), Replace(" ", SPACE)),
    "strip": (Strip(True, True), ReplaceSpaces(" "), Prepend(SPACE), Replace(" ", SPACE)),
    "words": (WhiteSpace(),),
}


def made(characters: int, rare: str) -> str:
    """Words of all kinds, most of them between plain spaces."""
    chance = Random(7)
    words = ["the", "Botchan", "of", "red", f"x{rare}", "é", "日本", "a  b", "\n", "z" * 30, "1,000", "<extra>", "<s>"]
    return "".join(chance.choice(words) + " " for _ in range(characters // 4))[:characters]


def variants(vocabulary: Callable[[str], Path]) -> Iterator[tuple[str, SentencePieceModel]]:
    for name in ("botchan-unigram", "botchan-bpe"):
        model = read(vocabulary(name).read_bytes(), name)
        for title, steps in STEPS.items():
            changed = replace(model, steps=steps or model.steps, added_tokens={"<extra>": 3} if steps else {})
            yield f"{name} {title}", replace(changed, words=title == "words", double=title == "words")


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("rung", ["kernels", "python"])
def test_a_stream_has_the_ids_of_the_whole_text(
    number: int, rung: str, vocabulary: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if rung == "python":
        monkeypatch.setattr("tinylm.tokenizer._engines.sentencepiece.make_encoder", lambda model: None)
    title, model = list(variants(vocabulary))[number]
    tokenizer = Tokenizer(SentencePieceEngine(model))
    text = made(900_000 if rung == "kernels" and "model" in title else 150_000, "q~")
    fed = 0

    def chunks() -> Iterator[str]:
        nonlocal fed
        for at in range(0, len(text), 9973):
            fed = at
            yield text[at : at + 9973]

    ids: list[int] = []
    most = 0
    for id in tokenizer.encode_stream(chunks(), allowed_special={"<s>"}):
        if not ids:
            most = fed
        ids.append(id)
    assert ids == tokenizer.encode(text, allowed_special={"<s>"})
    assert most <= CHUNK, "the first ids came late"


def test_the_sum_of_scores_goes_from_part_to_part(vocabulary: Callable[[str], Path]) -> None:
    """Far into a text float32 sums are rounded, which decides near-ties: parts on their own would get other ids."""
    model = read(vocabulary("botchan-unigram").read_bytes(), "botchan-unigram")
    engine = SentencePieceEngine(model)
    pieces = [text.replace(SPACE, " ") for text, kind in zip(model.pieces, model.kinds, strict=True) if kind == 1]
    text = "a" + "".join(Random(5).choices(pieces, k=60_000))
    parts = [text[at : at + 5000] for at in range(0, len(text), 5000)]
    assert list(Tokenizer(engine).encode_stream(parts)) == engine.encode(text)


def test_nothing_is_cut_where_a_piece_crosses(vocabulary: Callable[[str], Path]) -> None:
    model = read(vocabulary("botchan-bpe").read_bytes(), "botchan-bpe")
    crossing = replace(model, pieces=(*model.pieces[:-1], f"e{SPACE}x"))
    assert SentencePieceEngine(model).cut("the red fox") == 7
    assert SentencePieceEngine(crossing).cut("the red fox") == 0


# Kana and voice marks of their own, Korean in its parts, a sigma that is written in another way at the end of a word,
# characters that become several or none.
PARTS = [*"日本語は。、ー！かハﾊ", "か\u3099", "ﾊﾞ", "\u3099", "한", "\u1112\u1161\u11ab", "\u1161", "ΑΣ", "Σ", "α", "."]
PARTS += [*"㍍ªﷺกำ्कि❤", "\u200b", "\u0600", "\u0308", SPACE, " ", " ", " ", "  ", "\u3000", "\n", "é", "a", "the"]
PARTS += ["<s>", "<extra>"]
FORMS = {
    "nmt_nfkc": (),
    "nfc": (Form("nfc"), Prepend(SPACE), Replace(" ", SPACE)),
    "lower": (Form("nfkc"), Form("lower"), Form("strip_accents"), Strip(True, True), Spaces()),
    "end": (Spaces(dummy_prefix=False, suffix=True),),
    **STEPS,
}


@pytest.mark.parametrize("rung", ["kernels", "python"])
@pytest.mark.parametrize("algorithm", ["unigram", "sentencepiece-bpe"])
def test_any_text_may_be_cut_between_what_no_piece_joins(
    algorithm: str, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = Random(3)
    corpus = ["".join(chance.choices(PARTS[:-2], k=12)) for _ in range(300)]
    trained = Tokenizer.train(corpus, vocab_size=420, algorithm=algorithm).engine
    assert isinstance(trained, SentencePieceEngine)
    monkeypatch.setattr(_streaming, "_ENOUGH", 8)
    if rung == "python":
        monkeypatch.setattr("tinylm.tokenizer._engines.sentencepiece.make_encoder", lambda model: None)
    for title, steps in FORMS.items():
        words = title == "words"
        model = replace(trained.model, steps=steps or trained.model.steps, words=words, double=words)
        for fused in (replace(model, byte_fallback=False, fuse_unknown=True), model):
            added = {"か": 9} if fused is model else {}
            tokenizer = Tokenizer(SentencePieceEngine(replace(fused, added_tokens=added)))
            for _ in range(60):
                text = "".join(chance.choices(PARTS, k=40))
                chunks = [text[at : at + 3] for at in range(0, len(text), 3)]
                assert list(tokenizer.encode_stream(chunks)) == tokenizer.encode(text), (title, text)


def test_text_that_is_not_latin_is_not_held(vocabulary: Callable[[str], Path]) -> None:
    """With spaces it is cut before one; without, between two characters that no piece has side by side."""
    engine = SentencePieceEngine(read(vocabulary("botchan-bpe").read_bytes(), "botchan-bpe"))
    for text in ("Это обычный текст из слов", "日本語の文章。これは長い"):
        assert engine.cut(text) >= len(text) - 5
    trained = Tokenizer.train(["日本語"] * 50 + ["文章"] * 50, vocab_size=270, algorithm="sentencepiece-bpe").engine
    assert trained.cut("文日本語") == 1
    assert trained.cut("日本語日本語") == 3
    assert trained.cut("日本語") == 0
