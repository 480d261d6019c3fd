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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import regex

from tinylm.tokenizer._added import Finder, whole
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
    if isinstance(messages, (str, Mapping)) or not all(
        isinstance(item, Mapping) and "role" in item for item in messages
    ):
        raise TokenizerError('wanted a list of messages like {"role": "user", "content": "Hello"}')
    template = _compile(tokenizer.chat_template)
    specials = tokenizer.special_tokens
    sentinel = _unused_character(json.dumps([messages, tools], default=str, ensure_ascii=False) + str(specials))
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    texts = {id: text for text, id in specials.items()}
    try:
        rendered = template.render(
            messages=_break(messages, [*specials], sentinel),
            tools=_break(tools, [*specials], sentinel),
            add_generation_prompt=add_generation_prompt,
            **{name: texts[id] for name, id in named.items() if id is not None},
        )
    except (*_template_errors(), ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise TokenizerError(f"the chat template failed on these messages: {error}") from None
    find = Finder(specials, tokenizer.engine.flags) if specials else None
    return _parts(rendered, find, sentinel)


def _break(value: Any, specials: list[str], sentinel: str) -> Any:
    """`value` with every special token in every string of it broken after its first character.

    A string that ends like the beginning of one gets a sentinel at its end: the next string could complete the token.
    """
    if isinstance(value, str):
        for special in specials:
            first, rest = regex.escape(special[0]), regex.escape(special[1:])
            if not rest and special in value:
                raise TokenizerError(f"the special token {special!r} is one character and cannot stand in a message")
            value = regex.sub(f"{first}(?={rest})", special[0] + sentinel, value) if rest else value
        ends = (special[:size] for special in specials for size in range(1, len(special)))
        return value + sentinel if value.endswith(tuple(ends)) else value
    if isinstance(value, Mapping):
        return {_break(key, specials, sentinel): _break(item, specials, sentinel) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_break(item, specials, sentinel) for item in value]
    return value


def _unused_character(text: str) -> str:
    """A private-use character that is not in `text`, nor its JSON escape, which `tojson` may make of it."""
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in text and json.dumps(c)[1:-1] not in text)


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
    except (jinja2.TemplateError, RecursionError) as error:
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
