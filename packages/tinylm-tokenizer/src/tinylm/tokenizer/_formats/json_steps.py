"""How text is normalised, cut into words and put together again, in a tokenizer.json of SentencePiece's kind.

Its normalizer and pre-tokenizer become the steps of `_engines/sentencepiece_data.py`, and the other way round. What is
not known here is refused by name. `json_sentencepiece.py` does the rest of the file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tinylm.tokenizer._engines.sentencepiece_data import (
    SPACE,
    Charsmap,
    Form,
    Only,
    Prepend,
    Replace,
    ReplaceSpaces,
    SentencePieceModel,
    Spaces,
    Step,
    Strip,
    WhiteSpace,
)
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._formats.json_parts import Reader, boolean, flat
from tinylm.tokenizer._text import charsmap

Drop = Literal["never", "first", "space"]
Part = dict[str, Any]

_FORMS = {
    "NFC": "nfc",
    "NFD": "nfd",
    "NFKC": "nfkc",
    "NFKD": "nfkd",
    "Lowercase": "lower",
    "StripAccents": "strip_accents",
    "Nmt": "nmt",
}
_FORM_NAMES = {form: name for name, form in _FORMS.items()}
# What SentencePiece does with spaces, as regular expressions: pattern → which run it stands for.
_RUNS: dict[str, Literal["anywhere", "start", "end"]] = {
    " {2,}": "anywhere",
    r"\A +": "start",
    rf"[ {SPACE}]+\z": "end",
}
_RUN_PATTERNS = {at: pattern for pattern, at in _RUNS.items()}
_ESCAPE = Replace(" ", SPACE)


def read(reader: Reader, content: Mapping[str, Any]) -> tuple[tuple[Step, ...], bool]:
    """The steps, and whether each word is encoded on its own."""
    steps: list[Step] = []
    for part in flat(content.get("normalizer"), "normalizers"):
        steps += flat_step(reader, part)
    words = white_space = False
    for part in flat(content.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "WhitespaceSplit" and not words and not white_space:
            white_space = True
        elif part["type"] == "Metaspace" and not words:
            scheme = _scheme(reader, part)
            words = boolean(part.get("split", True))
            if white_space and (scheme != "always" or not words):
                raise reader.refuse("Metaspace after WhitespaceSplit", part, "prepend_scheme always, split true")
            if white_space:
                steps.append(WhiteSpace())
            else:
                prepend = Prepend(SPACE, first_only=scheme == "first", unless_there=True)
                steps += [_ESCAPE, prepend] if scheme != "never" else [_ESCAPE]
            white_space = False
        elif not (_splits_at_spaces(part) and _no_space_left(steps)):
            raise reader.refuse("the pre-tokenizer", part, "Metaspace, or WhitespaceSplit and then Metaspace")
    if white_space:
        raise reader.refuse("the pre-tokenizer", "WhitespaceSplit", "Metaspace after it")
    return tuple(steps), words


def _scheme(reader: Reader, part: Part) -> str:
    if part["replacement"] != SPACE:
        raise reader.refuse("the replacement of Metaspace", part["replacement"], SPACE)
    if "prepend_scheme" not in part:  # files of older versions
        return "always" if boolean(part.get("add_prefix_space", True)) else "never"
    if part["prepend_scheme"] not in ("always", "first", "never"):
        raise reader.refuse("prepend_scheme", part["prepend_scheme"], "always, first or never")
    return str(part["prepend_scheme"])


def _no_space_left(steps: Sequence[Step]) -> bool:
    """Whether every space has been written as "▁", and nothing after that makes new ones (NFKC would)."""
    at = max((place for place, step in enumerate(steps) if step == _ESCAPE), default=None)
    return at is not None and all(isinstance(step, Prepend) and " " not in step.text for step in steps[at + 1 :])


def _splits_at_spaces(part: Part) -> bool:
    is_split: bool = part["type"] == "Split" and part["pattern"] == {"String": " "}
    return is_split and not part.get("invert") and part["behavior"] != "Removed"


def flat_step(reader: Reader, part: Part) -> list[Step]:
    """One part of the normalizer as steps."""
    match part["type"]:
        case "Sequence":
            return [step for inner in part["normalizers"] for step in flat_step(reader, inner)]
        case "Prepend" if part["prepend"]:
            return [Prepend(_text(part["prepend"]))]
        case "Strip":
            return [Strip(boolean(part["strip_left"]), boolean(part["strip_right"]))]
        case "Precompiled":
            return [_precompiled(reader, part["precompiled_charsmap"])] if part["precompiled_charsmap"] else []
        case "Replace" if "String" in part["pattern"]:
            return [Replace(_text(part["pattern"]["String"]), _text(part["content"]))]
        case "Replace" if (at := _RUNS.get(part["pattern"].get("Regex"))) is not None:
            return [ReplaceSpaces(_text(part["content"]), at)]
        case name if name in _FORMS:
            return [Form(_FORMS[name])]
    known = f"{', '.join(_FORMS)}, Prepend, Replace of a string, Strip or Precompiled"
    raise reader.refuse("a step of the normalizer", part, known)


def _precompiled(reader: Reader, text: str) -> Charsmap:
    try:
        rules = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise reader.refuse("precompiled_charsmap", "damaged", "base64") from None
    charsmap.read(rules)
    return Charsmap(rules, by_grapheme=True)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"wanted a string, got {value!r}")
    return value


def read_decoder(reader: Reader, decoder: Any) -> Drop:
    """Which "▁" at the start of a text the decoder drops."""
    drop: Drop = "never"
    fused = False
    for part in flat(decoder, "decoders"):
        match part["type"]:
            case "Metaspace" if not fused:
                drop = "never" if _scheme(reader, part) == "never" else "first"
            case "Strip" if part["content"] == " " and part["start"] in (0, 1) and part["stop"] == 0:
                if part["start"] and (not fused or drop != "never"):
                    raise reader.refuse("Strip in the decoder", decoder, "Fuse before it, once, and no Metaspace")
                drop = "space" if part["start"] else drop
            case "Replace" if part["pattern"] == {"String": SPACE} and part["content"] == " ":
                pass
            case "ByteFallback":
                pass
            case "Fuse":
                fused = True
            case _:
                raise reader.refuse(
                    "a step of the decoder", part, "Metaspace, Replace of ▁, ByteFallback, Fuse or Strip"
                )
    return drop


# ---- writing ----


def write(model: SentencePieceModel) -> tuple[Part | None, Part | None]:
    """The normalizer and the pre-tokenizer."""
    steps = [inner for step in model.steps if not isinstance(step, Only) for inner in _spelled_out(step)]
    pre_tokenizers: list[Part] = []
    if steps and isinstance(steps[-1], WhiteSpace):
        steps.pop()
        pre_tokenizers = [{"type": "WhitespaceSplit"}, _metaspace("always", True)]
    elif len(steps) > 1 and steps[-2] == _ESCAPE and isinstance(prepend := steps[-1], Prepend) and prepend.unless_there:
        del steps[-2:]
        pre_tokenizers = [_metaspace("first" if prepend.first_only else "always", model.words)]
    elif model.words and steps and steps[-1] == _ESCAPE:
        steps.pop()
        pre_tokenizers = [_metaspace("never", True)]
    elif model.words:
        raise TokenizerError("a tokenizer.json has no place for words cut at ▁ after this normalisation")
    normalizers = [_normalizer(step) for step in steps]
    return _joined("normalizers", normalizers), _joined("pretokenizers", pre_tokenizers)


def _joined(name: str, parts: list[Part]) -> Part | None:
    if len(parts) > 1:
        return {"type": "Sequence", name: parts}
    return parts[0] if parts else None


def _metaspace(scheme: str, split: bool) -> Part:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def _spelled_out(step: Step) -> list[Step]:
    """SentencePiece's spaces in the parts that a tokenizer.json has."""
    if not isinstance(step, Spaces):
        return [step]
    if step.suffix or not step.escape:
        raise TokenizerError("a tokenizer.json has no place for spaces that are written as suffixes or not as ▁")
    steps: list[Step] = []
    if step.remove_extra:  # Strip would take other white space, too
        steps = [ReplaceSpaces("", "start"), ReplaceSpaces("", "end"), ReplaceSpaces(" ")]
    return [*steps, *([Prepend(SPACE)] if step.dummy_prefix else []), _ESCAPE]


def _normalizer(step: Step) -> Part:
    match step:
        case Charsmap():
            return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(step.rules).decode()}
        case Form():
            return {"type": _FORM_NAMES[step.name]}
        case Replace():
            return {"type": "Replace", "pattern": {"String": step.old}, "content": step.new}
        case ReplaceSpaces():
            return {"type": "Replace", "pattern": {"Regex": _RUN_PATTERNS[step.at]}, "content": step.new}
        case Strip():
            return {"type": "Strip", "strip_left": step.left, "strip_right": step.right}
        case Prepend() if not step.unless_there and not step.first_only:
            return {"type": "Prepend", "prepend": step.text}
    raise TokenizerError(f"a tokenizer.json has no place for the normalisation step {step}")


def write_decoder(model: SentencePieceModel) -> Part:
    """Replace ▁ by spaces, join bytes, join all, and drop the space that starts the text if it is a dummy."""
    if model.drop_space == "first" and not model.byte_fallback:
        return _metaspace("always", True)
    parts: list[Part] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.drop_space != "never":
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}
