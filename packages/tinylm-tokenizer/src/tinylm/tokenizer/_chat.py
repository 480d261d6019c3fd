"""Chat templates: a conversation → special ids and text, so that no message can forge a special token.

A template is Jinja, as in Hugging Face's transformers (its helpers and options are here too), run in Jinja's sandbox.
The trouble with rendering to one string is that "<|im_end|>" in a message looks like the template's own. So before
rendering every special token that is written in a message is broken by a sentinel, a character that occurs nowhere
else; after rendering the string is cut at the special tokens that are left, the template's, and the sentinels go.
Text without special tokens in it gets exactly the ids that encoding the rendered string would give.

Does not encode: `Tokenizer.apply_chat_template` does. BOS comes from the template alone, hence never twice.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from numbers import Number
from typing import TYPE_CHECKING, Any, NoReturn

from tinylm.tokenizer._added import Finder, Flags, compiled, whole
from tinylm.tokenizer._errors import TokenizerError

if TYPE_CHECKING:
    import jinja2
    import jinja2.ext

    from tinylm.tokenizer.tokenizer import Tokenizer

# The form of Qwen and SmolLM2, for tokenizers with <|im_start|> and <|im_end|>.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[int | str]:
    """The conversation as ids of special tokens and, between them, text.

    Errors: TokenizerError for no template, a missing extra, messages in the wrong form, a template that fails.
    """
    if tokenizer.chat_template is None:
        raise TokenizerError("this tokenizer has no chat template: put chat_template.jinja beside its tokenizer.json")
    listed = isinstance(messages, Iterable) and not isinstance(messages, (str, Mapping))
    messages = list(messages) if listed else []
    if not listed or not all(isinstance(item, Mapping) and "role" in item for item in messages):
        raise TokenizerError('wanted a list of messages like {"role": "user", "content": "Hello"}')
    template = _compile(tokenizer.chat_template)
    specials = tokenizer.special_tokens
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    texts = {id: text for text, id in specials.items()}
    breaker = _breaker(tuple(specials))
    try:
        used = json.dumps([messages, tools], default=str, ensure_ascii=False) + str(specials)
        sentinel = _unused_character(used)
        rendered = template.render(
            messages=breaker(messages, sentinel),
            tools=breaker(tools, sentinel),
            add_generation_prompt=add_generation_prompt,
            **{name: texts[id] for name, id in named.items() if id is not None},
        )
    except (*_template_errors(), ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise TokenizerError(f"the chat template failed on these messages: {error}") from None
    find = _finder(tuple(specials.items()), tuple(tokenizer.engine.flags.items())) if specials else None
    return _parts(rendered, find, sentinel)


@lru_cache(maxsize=8)
def _breaker(specials: tuple[str, ...]) -> _Breaker:
    return _Breaker(specials)


@lru_cache(maxsize=8)
def _finder(specials: tuple[tuple[str, int], ...], flags: tuple[tuple[str, Flags], ...]) -> Finder:
    return Finder(dict(specials), dict(flags))


class _Breaker:
    """Breaks the special tokens in what a message holds. Made once: a tokenizer may have a thousand of them."""

    def __init__(self, specials: tuple[str, ...]) -> None:
        self._single = [special for special in specials if len(special) == 1]
        longer = [special for special in specials if len(special) > 1]
        self._pattern = compiled(longer) if longer else None
        self._beginnings = {special[:size] for special in longer for size in range(1, len(special))}
        self._longest = max(map(len, self._beginnings), default=0)

    def __call__(self, value: Any, sentinel: str) -> Any:
        """`value` with every special token in every string of it broken after its first character. Errors:
        TokenizerError for what is no string, number, list or mapping: what it would be written as is not known."""
        if isinstance(value, str):
            return self._text(value, sentinel)
        if isinstance(value, Mapping):
            return {self(key, sentinel): self(item, sentinel) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(item, sentinel) for item in value]
        if value is None or isinstance(value, Number):
            return value
        raise TokenizerError(f"wanted texts, numbers, lists and mappings, got {type(value).__name__}")

    def _text(self, text: str, sentinel: str) -> str:
        """A string that ends like the beginning of a token gets a sentinel at its end: the next could complete it."""
        for special in self._single:
            if special in text:
                raise TokenizerError(f"the special token {special!r} is one character and cannot stand in a message")
        parts: list[str] = []
        done = 0
        while self._pattern and (found := self._pattern.search(text, done)):  # the next may begin inside of this one
            parts.append(text[done : found.start() + 1])
            done = found.start() + 1
        parts.append(text[done:])
        if any(text[-size:] in self._beginnings for size in range(1, min(self._longest, len(text)) + 1)):
            parts.append("")
        return _Broken(sentinel.join(parts), text) if len(parts) > 1 else text


class _Broken(str):
    """A text with sentinels, which a template may compare and look up as what it was: a key "content" ends like the
    beginning of a special token "tool", and so does the role "assistant"."""

    _text: str  # what begins with an underscore no template can read

    def __new__(cls, broken: str, text: str) -> _Broken:
        self = super().__new__(cls, broken)
        self._text = text
        return self

    def __eq__(self, other: object) -> bool:
        return self._text == (other._text if isinstance(other, _Broken) else other)

    def __ne__(self, other: object) -> bool:  # str has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self._text)


def _unused_character(text: str) -> str:
    """A private-use character that is not in `text`, nor its JSON escape, which `tojson` may make of it."""
    known = {*text, *re.findall(r"\\u[0-9a-f]{4}", text)}
    for character in map(chr, range(0xE000, 0xF900)):
        if character not in known and json.dumps(character)[1:-1] not in known:
            return character
    raise TokenizerError("wanted messages without one of the characters U+E000 to U+F8FF, got all of them")


def _parts(rendered: str, find: Finder | None, sentinel: str) -> list[int | str]:
    """Cut at the special tokens and take the sentinels out of the text between them."""
    parts: list[int | str] = []
    for start, end, id in whole(find, rendered):
        text = rendered[start:end].replace(sentinel, "").replace(json.dumps(sentinel)[1:-1], "")
        if id is not None or text:
            parts.append(text if id is None else id)
    return parts


@lru_cache(maxsize=8)
def _compile(source: str) -> jinja2.Template:
    """The template in a sandbox, with the options and helpers that transformers gives to chat templates."""
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise TokenizerError(
            'chat templates need jinja2, which is not installed: pip install "tinylm-tokenizer[chat]"'
        ) from None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_extension()]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError, TypeError) as error:
        raise TokenizerError(f"the chat template is no valid Jinja: {error}") from None


def _generation_extension() -> type[jinja2.ext.Extension]:
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; rendering ignores the mark."""
    from jinja2 import nodes, parser
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (Jinja declares it as a set on the class)

        def parse(self, parser: parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _template_errors() -> tuple[type[Exception]]:
    import jinja2

    return (jinja2.TemplateError,)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's own escaping for HTML: a model should see "<", not "\\u003c"."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TokenizerError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)
