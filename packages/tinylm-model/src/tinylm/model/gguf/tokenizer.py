"""The pairs `tokenizer.*` of a GGUF file, made of the tokenizer.json beside a checkpoint, so that llama.cpp opens it.

Byte-level BPE whose way of cutting text has a name in llama.cpp; anything else is said, and the file then carries no
vocabulary. This reads JSON and writes pairs: it knows nothing of text, and reading a tokenizer out of a GGUF file is
tinylm-tokenizer's. Source: llama-vocab.cpp and convert_hf_to_gguf.py of llama.cpp. Next: files.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinylm.model._errors import ModelError
from tinylm.model._files import read_json
from tinylm.model.gguf.reader import ARRAY, BOOL, INT32, STRING, UINT32, Pair

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # types of a token
NO_VOCABULARY = {"tokenizer.ggml.model": Pair(STRING, "no_vocab")}

_CONTRACTION, _SPACE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD, _OTHER = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# a pattern as tokenizer.json has it -> llama.cpp's name for it ("dbrx" is Llama 3's pattern without ignore_merges)
_NAMES = {
    _GPT2: "gpt-2",
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}": "dbrx",
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_OTHER}|{_SPACE}": "qwen2",
    # cl100k differs from it in one thing: white space that ends a text stays one piece, line ends or not
    rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|\s++(?!\S)|\s*[\r\n]|\s+(?!\S)|\s": "dbrx",
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"
    ): "gpt-4o",
}


def tokenizer_pairs(folder: Path, vocab_size: int) -> tuple[dict[str, Pair], list[str]]:
    """The pairs of `folder`'s tokenizer, for a model of `vocab_size` rows, and what the user should know of them."""
    if not (folder / "tokenizer.json").exists():
        return dict(NO_VOCABULARY), ["no tokenizer.json beside the checkpoint: the file carries no vocabulary"]
    content = read_json(folder / "tokenizer.json")
    try:
        return _pairs(folder, content, vocab_size)
    except ModelError as error:
        return dict(NO_VOCABULARY), [f"{error}: the file carries no vocabulary"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(f"{folder / 'tokenizer.json'}: wanted Hugging Face's schema, got {error!r}") from None


def _pairs(folder: Path, content: Mapping[str, Any], vocab_size: int) -> tuple[dict[str, Pair], list[str]]:
    model, notes = content["model"], []
    if model.get("type", "BPE") != "BPE" or "Ġ" not in model["vocab"] or model.get("byte_fallback"):
        raise ModelError(f"tokenizer.json: wanted byte-level BPE, got {model.get('type')} of another kind")
    normalizer = (content.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise ModelError(f"tokenizer.json: wanted text taken as it is, got the normalizer {normalizer}")
    pre = _cut(content.get("pre_tokenizer") or {})
    if model.get("ignore_merges"):
        if pre != "dbrx":
            raise ModelError(f"tokenizer.json: wanted merges to be honoured with {pre}, got ignore_merges")
        pre = "llama-bpe"
    tokens, types = _tokens(model["vocab"], content.get("added_tokens") or [], vocab_size)
    merges = _texts("merges", [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    pairs = {
        "tokenizer.ggml.model": Pair(STRING, "gpt2"),
        "tokenizer.ggml.pre": Pair(STRING, pre),
        "tokenizer.ggml.tokens": Pair(ARRAY, tokens, STRING),
        "tokenizer.ggml.token_type": Pair(ARRAY, types, INT32),
        "tokenizer.ggml.merges": Pair(ARRAY, merges, STRING),
    }
    settings = _optional(folder / "tokenizer_config.json")
    special = _special_ids(folder, settings, tokens)
    if "eos" not in special:
        notes.append("no end of text is named beside the checkpoint: llama.cpp then takes id 11 for it")
    pairs |= {f"tokenizer.ggml.{name}_token_id": Pair(UINT32, number) for name, number in special.items()}
    for name in ("bos", "eos"):
        added = name in special and _is_put_around(content, settings, name, tokens[special[name]])
        pairs[f"tokenizer.ggml.add_{name}_token"] = Pair(BOOL, added)
    template = _template(folder, settings)
    if template is not None:
        pairs["tokenizer.chat_template"] = Pair(STRING, _texts("chat_template", [template])[0])
    return pairs, notes


def _cut(pre_tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which text is cut into pieces."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space", True):
        own = last.get("use_regex", True)  # GPT-2's pattern
        if kinds == ["ByteLevel"] and own:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and own and steps[0].get("individual_digits"):
            return "smollm"
        split = steps[-2] if len(steps) > 1 else {}
        isolated = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
        name = _NAMES.get(split["pattern"].get("Regex", "")) if isolated and not own else None
        if name is not None and kinds == ["Split", "ByteLevel"]:
            return name
        digits = kinds == ["Digits", "Split", "ByteLevel"] and steps[0].get("individual_digits")
        if name == "gpt-2" and digits:  # as tinylm-tokenizer writes it
            return "smollm"
    raise ModelError(
        f"tokenizer.json: text is cut in a way that has no name in llama.cpp ({', '.join(map(str, kinds))})"
    )


def _tokens(vocab: Mapping[str, int], added: list[Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Tokens and their types by id; an id that no token has is filled, since llama.cpp wants one for every row."""
    tokens = {id: (text, _NORMAL) for text, id in vocab.items()}
    if len(tokens) != len(vocab):
        raise ModelError("tokenizer.json: wanted each id once, got one of them twice in vocab")
    for token in added:
        id, text = token["id"], token["content"]
        if tokens.get(id, (text,))[0] != text:
            raise ModelError(
                f"tokenizer.json: wanted each id once, got {id} for {tokens[id][0]!r:.40} and {text!r:.40}"
            )
        tokens[id] = (text, _CONTROL if token.get("special") else _USER_DEFINED)
    if not all(type(id) is int for id in tokens):
        raise ValueError("an id that is no whole number")
    if max(tokens) >= vocab_size or min(tokens) < 0:
        raise ModelError(f"tokenizer.json: wanted ids below the model's {vocab_size:,} rows, got {max(tokens):,}")
    filled = [tokens.get(id, (f"[PAD{id}]", _UNUSED)) for id in range(vocab_size)]
    if len({text for text, _ in filled}) != vocab_size:
        raise ModelError("tokenizer.json: wanted each token once, got one of them twice")
    return _texts("tokens", [text for text, _ in filled]), [kind for _, kind in filled]


def _texts(name: str, values: list[Any]) -> list[str]:
    """The values, if each is a text that UTF-8 has: JSON can hold half a surrogate pair."""
    for value in values:
        if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{name}: {value!r:.80}, which is no text")
    return values


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _special_ids(folder: Path, settings: Mapping[str, Any], tokens: list[str]) -> dict[str, int]:
    """Begin, end, unknown, padding: by name in tokenizer_config.json, else by id in one of the other two files."""
    numbered = [_optional(folder / name) for name in ("generation_config.json", "config.json")]
    found: dict[str, int] = {}
    for ours, theirs in {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}.items():
        named = settings.get(f"{theirs}_token")
        named = named.get("content") if isinstance(named, dict) else named
        ids = [fields.get(f"{theirs}_token_id") for fields in numbered]
        candidates: list[Any] = [tokens.index(named)] if named in tokens else []
        candidates += [id[0] if isinstance(id, list) and id else id for id in ids]
        valid = [id for id in candidates if type(id) is int and 0 <= id < len(tokens)]
        if valid:
            found[ours] = valid[0]
    return found


def _is_put_around(content: Mapping[str, Any], settings: Mapping[str, Any], name: str, token: str) -> bool:
    """Whether a text gets the token put before (bos) or after it (eos)."""
    stated = settings.get(f"add_{name}_token")
    if isinstance(stated, bool):
        return stated
    processor = content.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing" and step["single"]:
            edge = step["single"][0 if name == "bos" else -1]
            return bool(edge.get("SpecialToken", {}).get("id") == token)
    return False


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{path.name}: wanted UTF-8, got {error}") from None
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None
