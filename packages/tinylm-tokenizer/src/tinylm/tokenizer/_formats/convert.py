"""Rewrite a tokenizer in another format, and say in words what that format has no place for.

What would change ids is refused; what a caller can say again when loading, or does not need for ids, becomes a line.
The formats: `json_*.py`, `tiktoken_format.py`, `sentencepiece_model.py`, and `tokenizer/wordpiece.py` (vocab.txt).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.tokenizer import wordpiece
from tinylm.tokenizer._atomic import write_atomic
from tinylm.tokenizer._engines.byte_level import ByteLevelEngine
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import Prepend
from tinylm.tokenizer._engines.wordpiece import WordPieceEngine
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats import sentencepiece_model, tiktoken_format

if TYPE_CHECKING:
    from tinylm.tokenizer.tokenizer import Tokenizer


def convert(tokenizer: Tokenizer, target: Path) -> list[str]:
    """Write `tokenizer` to `target`: *.model, *.tiktoken, a file called vocab.json (merges.txt beside it), vocab.txt or
    tokenizer.json, or a directory (of a tokenizer.json).

    Returns one line for each thing that the format has no place for. Errors: TokenizerError where ids would change, and
    for a format that cannot hold the algorithm.
    """
    writers = {".model": _model, ".tiktoken": _ranks, "vocab.json": _gpt2, "vocab.txt": _vocab_txt}
    write = writers.get(target.suffix) or writers.get(target.name)
    if write is None:
        if target.suffix == ".gguf":
            raise TokenizerError("a GGUF file is read here, not written: give a directory, and convert with llama.cpp")
        if target.suffix in (".json", ".txt") and target.name != "tokenizer.json":
            raise TokenizerError(
                "wanted a directory, or a file called tokenizer.json, vocab.json, vocab.txt, *.tiktoken or *.model, "
                f"got {target}"
            )
        tokenizer._write(target.parent if target.name == "tokenizer.json" else target)
        return tokenizer._otherwise()
    files, lines = write(tokenizer, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomic(target.with_name(name), data)
    except OSError as error:
        raise TokenizerError(f"cannot write {target}: {error.strerror or error}") from None
    if tokenizer.chat_template is not None:
        lines.append(f"{target.name} has no place for the chat template")
    return lines


Written = tuple[dict[str, bytes], list[str]]  # file name → bytes; what is lost


def _model(tokenizer: Tokenizer, target: Path) -> Written:
    engine = tokenizer.engine
    if not isinstance(engine, SentencePieceEngine):
        raise TokenizerError(f"a .model file holds SentencePiece's algorithms; this tokenizer is {tokenizer.algorithm}")
    data = sentencepiece_model.write(engine.model)
    again = SentencePieceEngine(sentencepiece_model.read(data, target.name))
    lines = _around(tokenizer, (again.prefix, again.suffix))
    if engine.model.double:
        lines.append(
            "SentencePiece adds scores in float32: of two ways to cut that are as likely it may take the other"
        )
    if any(isinstance(step, Prepend) for step in engine.model.steps):
        lines.append("it puts a space before a text only, not before each part between special tokens")
    return {target.name: data}, lines


def _ranks(tokenizer: Tokenizer, target: Path) -> Written:
    engine = _byte_level(tokenizer, target)
    specials = f"load it with special_tokens={tokenizer.special_tokens} (--special TEXT=ID)"
    lines = [_pattern(engine, target), f"a .tiktoken file names no special tokens: {specials}"]
    return {target.name: tiktoken_format.write(engine.written())}, lines + _lost(tokenizer, engine)


def _gpt2(tokenizer: Tokenizer, target: Path) -> Written:
    engine = _byte_level(tokenizer, target)
    vocab, merges = tiktoken_format.write_gpt2(engine.written())
    lines = [_pattern(engine, target)]
    if tokenizer.special_tokens.keys() - {"<|endoftext|>"}:
        lines.append("vocab.json does not say which tokens are special: only <|endoftext|> is recognised")
    return {"merges.txt": merges, "vocab.json": vocab}, lines + _lost(tokenizer, engine)


def _vocab_txt(tokenizer: Tokenizer, target: Path) -> Written:
    engine = tokenizer.engine
    if not isinstance(engine, WordPieceEngine):
        raise TokenizerError(f"vocab.txt holds WordPiece only; this tokenizer is {tokenizer.algorithm}")
    data = wordpiece.write_vocab(engine.pieces)
    again = wordpiece.read_vocab(data, target.name)
    for what in ("tokens", "special_tokens", "added_tokens", "flags", "unknown", "longest", "rules", "cleanup"):
        was, got = getattr(engine.pieces, what), getattr(again, what)
        if was != got:
            shown = f"{was} would be read as {got}" if len(str(was)) < 200 else "other ones would be read"
            raise TokenizerError(f"vocab.txt does not say the {what} of this tokenizer: {shown}")
    return {target.name: data}, _around(tokenizer, (again.prefix, again.suffix))


def _byte_level(tokenizer: Tokenizer, target: Path) -> ByteLevelEngine:
    if not isinstance(tokenizer.engine, ByteLevelEngine):
        raise TokenizerError(f"{target.name} holds byte-level BPE only; this tokenizer is {tokenizer.algorithm}")
    return tokenizer.engine


def _pattern(engine: ByteLevelEngine, target: Path) -> str:
    stages = engine.vocabulary.stages
    if len(stages) > 1:
        raise TokenizerError(
            f"this tokenizer cuts text by {' and then '.join(stages)}, and who reads {target.name} can name one only: "
            "ids would change"
        )
    held = "a .tiktoken file names" if target.suffix == ".tiktoken" else "vocab.json and merges.txt name"
    them = "it" if target.suffix == ".tiktoken" else "them"
    return f"{held} no pattern: load {them} with pattern={stages[-1]!r} (--pattern {stages[-1]})"


def _lost(tokenizer: Tokenizer, engine: ByteLevelEngine) -> list[str]:
    lines = _around(tokenizer, ((), ()))
    if engine.vocabulary.nfc:
        lines.append("it does not say that text is normalised to NFC first: do that yourself")
    if engine.flags:
        lines.append(f"it does not say how these are found (lstrip and the like): {', '.join(engine.flags)}")
    if engine.added_tokens:
        lines.append(f"it does not say which tokens stand for themselves in any text: {', '.join(engine.added_tokens)}")
    return lines


def _around(tokenizer: Tokenizer, got: tuple[tuple[int, ...], tuple[int, ...]]) -> list[str]:
    engine = tokenizer.engine
    if (engine.prefix, engine.suffix) == got:
        return []
    return [f"it does not say which ids are put around a text: {[*engine.prefix]} before and {[*engine.suffix]} after"]
