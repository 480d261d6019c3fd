"""GGUF files (llama.cpp): their tokenizer is read, and nothing else of them.

A GGUF file is a header, then key-value pairs, then tensors. The pairs `tokenizer.ggml.*` hold the vocabulary: tokens,
their types, merges (byte-level BPE, model "gpt2") or scores (SentencePiece: BPE "llama", Unigram "t5"); "bert" is
WordPiece. How byte-level text is cut has only a name there (`pre`): names whose pattern is known are accepted. The
bytes are read by `gguf_pairs.py`. Source: the GGUF specification in the ggml project.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tinylm.tokenizer._engines.byte_level import byte_level_engine
from tinylm.tokenizer._engines.sentencepiece import SentencePieceEngine
from tinylm.tokenizer._engines.sentencepiece_data import (
    SPACE,
    Charsmap,
    Kind,
    Prepend,
    Replace,
    SentencePieceModel,
    Spaces,
    Step,
)
from tinylm.tokenizer._engines.vocabulary import Vocabulary
from tinylm.tokenizer._engines.wordpiece import WordPieceEngine
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats import sentencepiece_model
from tinylm.tokenizer._formats.gguf_pairs import Damaged, read_pairs
from tinylm.tokenizer._formats.json_byte_level import from_printable
from tinylm.tokenizer._formats.json_parts import Around
from tinylm.tokenizer._text import charsmap
from tinylm.tokenizer._text.wordpiece_text import Rules
from tinylm.tokenizer.wordpiece import CONTINUES, WordPieces

if TYPE_CHECKING:
    from tinylm.tokenizer._engines.protocol import Engine


class _Pre(NamedTuple):
    """What a name in tokenizer.ggml.pre stands for: stages of patterns.py, NFC first, a piece that is a token is that
    token, and whether BOS is put before a text where the file does not say."""

    stages: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    bos: bool = False


# The names with which llama.cpp (src/llama-vocab.cpp) cuts text by one of our patterns. llama.cpp never normalises;
# Qwen2 and its successors do in their own tokenizer.json, and so it is done here. For o200k it has a simpler expression
# than the models' own, which is used here.
_NAMES: dict[_Pre, str] = {
    _Pre(
        ("gpt2",)
    ): "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 mpt olmo "
    "jais trillion granite-docling",
    _Pre(("digits", "gpt2")): "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
    _Pre(
        ("llama3",), whole=True, bos=True
    ): "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    _Pre(("llama3",)): "dbrx smaug-bpe glm4 chatglm-bpe",
    _Pre(("qwen2",), nfc=True): "qwen2",
    _Pre(("qwen2",)): "deepseek-r1-qwen stablelm2 hunyuan solar-open megrez kormo f2llmv2 grok-2",
    _Pre(("o200k",)): "gpt-4o llama4 kanana2 talkie minimax-m2",
}
_PRE = {name: pre for pre, names in _NAMES.items() for name in names.split()}
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # token types


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file says about its tokenizer."""

    engine: Engine
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None


def load(path: Path) -> Gguf:
    """The tokenizer of a GGUF file. Errors: TokenizerError for a damaged file, and for what is not supported."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            pairs = read_pairs(data)
        return _Reader(str(path), pairs).read()
    except OSError as error:
        raise TokenizerError(f"wanted a GGUF file, got {path}: {error.strerror or error}; check the path") from None
    except (Damaged, UnicodeDecodeError, ValueError, TypeError, IndexError, KeyError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(
            f"wanted a GGUF file with a tokenizer, got something else in {path}: {error or 'it is empty'}; the file is "
            "damaged or cut short"
        ) from None


class _Reader:
    """Makes an engine of the pairs."""

    def __init__(self, where: str, pairs: Mapping[str, Any]) -> None:
        self.where = where
        self._pairs = pairs
        self.tokens: list[str] = [token.decode() for token in self.get("tokens", [])]
        self.types: Sequence[int] = self.get("token_type", None) or [1] * len(self.tokens)
        if not self.tokens:
            raise TokenizerError(f"{where}: wanted a GGUF file with a tokenizer, got one that carries no vocabulary")
        if len(self.types) != len(self.tokens):
            raise TokenizerError(f"{where}: wanted a type for each token, got {len(self.tokens)} and {len(self.types)}")

    def get(self, name: str, default: Any) -> Any:
        return self._pairs.get(f"tokenizer.ggml.{name}", default)

    def read(self) -> Gguf:
        model = self.get("model", b"").decode()
        makers = {"gpt2": self.byte_level, "llama": self.bpe, "t5": self.unigram, "bert": self.wordpiece}
        if model not in makers:
            raise TokenizerError(
                f"{self.where}: the tokenizer's model is {model!r}, which is not supported; wanted one of "
                f"{', '.join(makers)}"
            )
        template = self._pairs.get("tokenizer.chat_template")
        names = [self.token(self.get(f"{name}_token_id", None)) for name in ("bos", "eos")]
        return Gguf(makers[model](), template.decode() if isinstance(template, bytes) else None, *names)

    def token(self, id: int | None) -> str | None:
        if id is None:
            return None
        if not isinstance(id, int) or not 0 <= id < len(self.tokens):
            raise TokenizerError(f"{self.where}: wanted the id of a token below {len(self.tokens)}, got {id!r}")
        return self.tokens[id]

    def named(self, *kinds: int) -> dict[str, int]:
        named = {text: id for id, text in enumerate(self.tokens) if self.types[id] in kinds}
        if "" in named or len(named) != sum(kind in kinds for kind in self.types):
            raise TokenizerError(f"{self.where}: a special token is empty, or there twice")
        return named

    def around(self, special: Mapping[str, int], usual: tuple[str, ...] = ()) -> Around:
        """BOS and EOS, where the file says that they are put around a text, or does not say and it is usual."""
        ids: list[tuple[int, ...]] = []
        for name in ("bos", "eos"):
            asked = self.get(f"add_{name}_token", name in usual)
            text = self.token(self.get(f"{name}_token_id", None)) if asked else None
            ids.append((special[text],) if text is not None and text in special else ())
        return ids[0], ids[1]

    def byte_level(self) -> Engine:
        pre = self.get("pre", b"").decode()
        if pre not in _PRE:
            raise TokenizerError(
                f"{self.where}: its text is cut by {pre or 'an unnamed pattern'!r}, which is not known here; known are "
                f"{', '.join(_PRE)}; use the tokenizer.json that the model came with"
            )
        stages, nfc, whole, bos = _PRE[pre]
        special, added = self.named(_CONTROL), self.named(_USER_DEFINED)
        apart = {*special.values(), *added.values(), *(id for id, kind in enumerate(self.types) if kind == _UNUSED)}
        try:
            tokens = {id: from_printable(text) for id, text in enumerate(self.tokens) if id not in apart}
            ids = {token: id for id, token in tokens.items()}
            pairs = [tuple(map(from_printable, merge.decode().split(" "))) for merge in self.get("merges", [])]
            merges = [(ids[left], ids[right], ids[left + right]) for left, right in pairs]
        except KeyError as error:
            raise TokenizerError(
                f"{self.where}: a merge or a token holds {error.args[0]!r}, which the vocabulary does not have"
            ) from None
        if len(ids) != len(tokens) or b"" in ids:
            raise TokenizerError(f"{self.where}: a token is empty, or there twice")
        prefix, suffix = self.around(special, ("bos",) if bos else ())
        return byte_level_engine(
            Vocabulary(tokens, merges, special, stages, whole, nfc, prefix, suffix, added_tokens=added)
        )

    def bpe(self) -> Engine:
        """SentencePiece's BPE: nothing is normalised but spaces, of which one comes before the text and each part of it
        that follows a special token, as in llama.cpp. BOS is put before a text unless the file denies."""
        before = (Prepend(SPACE),) if self.get("add_space_prefix", True) else ()
        drop: Literal["once", "never"] = "once" if before else "never"
        return self.sentencepiece("sentencepiece-bpe", (*before, Replace(" ", SPACE)), drop, ("bos",))

    def unigram(self) -> Engine:
        """SentencePiece's Unigram, with the compiled rules of normalisation; EOS is put after a text."""
        rules = bytes(self.get("precompiled_charsmap", []))
        if rules:
            charsmap.read(rules)  # refuses what is damaged
        remove = bool(self.get("remove_extra_whitespaces", True))
        spaces = Spaces(dummy_prefix=bool(self.get("add_space_prefix", True)), remove_extra=remove)
        drop: Literal["all", "once", "never"] = "all" if remove else "once" if spaces.dummy_prefix else "never"
        return self.sentencepiece("unigram", (Charsmap(rules), spaces) if rules else (spaces,), drop, ("eos",))

    def sentencepiece(
        self,
        algorithm: Literal["sentencepiece-bpe", "unigram"],
        steps: tuple[Step, ...],
        drop_space: Literal["all", "once", "never"],
        around: tuple[str, ...],
    ) -> Engine:
        kinds, scores = [int(kind) for kind in self.types], [float(score) for score in self.get("scores", [])]
        if len(scores) != len(kinds) or not set(kinds) <= {int(kind) for kind in Kind}:
            raise TokenizerError(
                f"{self.where}: wanted a score and a known type for each token, got {len(scores)} scores"
            )
        byte_fallback = Kind.BYTE in kinds
        sentencepiece_model.check(self.tokens, scores, kinds, byte_fallback, self.where)
        special = self.named(_CONTROL)
        prefix, suffix = self.around(special, around)
        return SentencePieceEngine(
            SentencePieceModel(
                algorithm=algorithm,
                pieces=tuple(self.tokens),
                scores=tuple(scores),
                kinds=tuple(kinds),
                unk_id=kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else None,
                byte_fallback=byte_fallback,
                steps=steps,
                drop_space=drop_space,
                special_tokens=special,
                prefix=prefix,
                suffix=suffix,
            )
        )

    def wordpiece(self) -> Engine:
        """A piece that begins a word is written with "▁" before it, one inside a word without "##"."""
        special, added = self.named(_CONTROL), self.named(_USER_DEFINED)
        tokens: dict[str, int] = {}
        for id, text in enumerate(self.tokens):
            if text in special or text in added:
                continue
            bracketed = text.startswith("[") and text.endswith("]") and len(text) > 1
            piece = text[1:] if text.startswith("▁") else text if bracketed else CONTINUES + text
            if piece in tokens or not piece:
                raise TokenizerError(f"{self.where}: the token {text!r} is empty, or there twice")
            tokens[piece] = id
        for name in ("unknown", "bos", "cls", "eos", "seperator", "padding", "mask"):
            known = self.token(self.get(f"{name}_token_id", None))
            if known is not None and known in tokens:
                special[known] = tokens.pop(known)
        unknown = self.token(self.get("unknown_token_id", None)) or "[UNK]"
        around = [self.token(self.get(f"{name}_token_id", None)) for name in ("cls", "seperator")]
        before, after = (text or default for text, default in zip(around, ("[CLS]", "[SEP]"), strict=True))
        lower = bool(self.get("normalizer.lowercase", True))
        rules = Rules(accents=bool(self.get("normalizer.strip_accents", lower)), lower=lower)
        if missing := [text for text in (unknown, before, after) if text not in special]:
            raise TokenizerError(f"{self.where}: wanted the special token {missing[0]}, which is not there")
        prefix, suffix = (special[before],), (special[after],)
        return WordPieceEngine(
            WordPieces(tokens, special, added, unknown=unknown, rules=rules, prefix=prefix, suffix=suffix)
        )
