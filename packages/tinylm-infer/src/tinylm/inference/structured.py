"""tinylm.inference: structured output: a text that a JSON schema, a regular expression or a list of choices admits.

Before each token is drawn, the tokens that cannot go on in the grammar are ruled out (Willard and Louf 2023), so what
is written is the beginning of a valid text, and ends where it is a whole one. Which tokens these are is computed by
llguidance; that a grammar is small enough is tried out first, in a process of its own (`structured_check.py`).
`sampler.py` applies the masks, `sequence.py` ends the text.
"""

import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.structured_params import StructuredOutputsParams
from tinylm.tokenizer import Tokenizer, TokenizerError

SIZE_LIMIT = 1 << 16  # characters of a schema, an expression, or all choices
_PATIENCE = 60  # seconds of the clock for a check that may take 2 of the processor's: the machine may be busy
_KEPT = 64  # grammars that are ready to be used again
_WHITESPACE = {"whitespace_pattern": r"[ \n\t]{0,16}"}  # in JSON: a weak model would write spaces for ever


def grammar(params: StructuredOutputsParams) -> str:
    """In llguidance's language. InferenceError where it is no schema or expression, or too large or complex a one."""
    try:
        made = _made(params)
    except InferenceError:
        raise
    except (TypeError, ValueError, RecursionError) as error:  # half a surrogate pair; what is nothing in JSON
        raise InferenceError(f"structured output: {error}") from None
    if fault := _tried(made):
        raise InferenceError(f"structured output: {fault}")
    return made


def _made(params: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    spaces: Any = {"whitespace_flexible": False} if params.disable_any_whitespace else _WHITESPACE
    if params.json is not None:
        text = params.json if isinstance(params.json, str) else json.dumps(params.json)
        _check_size("the JSON schema", text)
        made = LLMatcher.grammar_from_json_schema(_as_schema(text), overrides=spaces)
    elif params.regex is not None:
        _check_size("the regular expression", params.regex)
        made = LLMatcher.grammar_from_regex(params.regex)
    elif params.choice is not None:
        _check_size("choice", "".join(params.choice))
        made = LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, params.choice)))
    else:
        made = LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=spaces)
    return str(made)


def _check_size(what: str, text: str) -> None:
    if len(text) > SIZE_LIMIT:
        raise InferenceError(f"structured output: {what} has {len(text)} characters, and may have {SIZE_LIMIT}")


def _as_schema(text: str) -> Any:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InferenceError(f"structured output: the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InferenceError(f"structured output: a JSON schema must be an object, got {text[:80]}")
    return schema


@lru_cache(maxsize=256)
def _tried(made: str) -> str:
    """What is wrong with the grammar, or "". Some grammars would take hours or all memory, and no thread can be ended:
    so another process goes first, within limits."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("structured_check.py"))]
    try:
        done = subprocess.run(command, input=made.encode(), capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:  # an error is not kept as an answer: the next one may ask again
        raise InferenceError(
            f"structured output: the grammar was not tried out within {_PATIENCE} s: the machine is busy, try again"
        ) from None
    if done.returncode:
        return "the grammar is too complex: it takes more than 2 s or 1 GiB to prepare"
    return _plain(done.stdout.decode(errors="replace"))


def _plain(error: str) -> str:
    """In one line, without the state of llguidance's parser, and without its name for a place with no way on."""
    return " ".join(error.partition("<state>")[0].split()).replace("NoExtensionBias", "no text fits the grammar")


class Matcher:
    """Where one text stands in its grammar. `accepting`: it is a whole one; `finished`: nothing can follow."""

    def __init__(self, matcher: Any, ends: Collection[int], vocabulary: int) -> None:
        self._matcher, self._ends, self._vocabulary = matcher, list(ends), vocabulary

    @property
    def accepting(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str:
        """What went wrong ("" if nothing): a step that took too much work."""
        return _plain(self._matcher.get_error())

    def mask(self, size: int) -> Tensor:
        """Which of the tokens 0 to size - 1 may follow, (size,) bool. An end of the text may where it is whole.

        A padded model has ids beyond the tokenizer's, and the first of them is llguidance's own end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: min(size, self._vocabulary)].astype(bool)
        mask = torch.zeros(size, dtype=torch.bool)
        if not self.error:
            mask[: len(allowed)] = torch.from_numpy(allowed)
            mask[self._ends] = self.accepting
        return mask

    def advance(self, token_id: int) -> None:
        if token_id not in self._ends:
            self._matcher.consume_token(token_id)


class Grammars:
    """Matchers for the texts of one tokenizer. The last grammars stay ready."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self._tokenizer = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))
        self._vocabulary = tokenizer.vocab_size
        self._ready: OrderedDict[str, Any] = OrderedDict()

    def matcher(self, params: StructuredOutputsParams, ends: Collection[int]) -> Matcher:
        """A new one, at the beginning. `ends`: the ids that end a text. InferenceError as `grammar`."""
        from llguidance import LLMatcher

        made = grammar(params)
        ready = self._ready.pop(made, None) or LLMatcher(self._tokenizer, made, log_level=0)
        if error := _plain(ready.get_error()):
            raise InferenceError(f"structured output: {error}")
        self._ready[made] = ready
        if len(self._ready) > _KEPT:
            self._ready.popitem(last=False)
        return Matcher(ready.deep_copy(), ends, self._vocabulary)


class _Vocabulary:
    """A tokenizer as llguidance reads it. Its end of text is one more token, which no model has: `Matcher` puts the
    model's own in, of which there may be several."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = set(tokenizer.special_tokens.values())
        self.tokens = [_bytes(tokenizer, token_id) for token_id in range(tokenizer.vocab_size)] + [b"<end>"]
        self.eos_token_id = tokenizer.vocab_size
        self.special_token_ids = [*special, self.eos_token_id]
        ordinary = (i for i in range(tokenizer.vocab_size) if self.tokens[i] and i not in special)
        self._ids = {self.tokens[i]: i for i in ordinary}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """Ids of exactly these bytes: where the tokenizer puts a space before a text (SentencePiece), or changes it,
        the longest tokens that fit, one after the other; as far as there are any."""
        ids, left = self._tokenizer.encode(text), text.encode()
        if b"".join(self.tokens[token_id] for token_id in ids) == left:
            return ids
        ids = []
        while left:
            lengths = range(min(len(left), self._longest), 0, -1)
            token_id = next((self._ids[left[:size]] for size in lengths if left[:size] in self._ids), None)
            if token_id is None:
                break
            ids.append(token_id)
            left = left[len(self.tokens[token_id]) :]
        return ids


def _bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    try:
        return tokenizer.id_to_bytes(token_id)
    except TokenizerError:  # a hole in the vocabulary
        return b""


def incomplete(drawn: int) -> InferenceError:
    """For a text that may not go on, before it is whole."""
    return InferenceError(
        f"structured output: the text is not complete after {drawn} tokens, where max_tokens or the context ends it:"
        " allow more (what was written is in token_ids)"
    )
