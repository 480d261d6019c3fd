"""tinylm.inference: `SamplingParams`, how a text is to be drawn. vLLM's names, meanings and defaults; no torch here.

Every field is honoured. What vLLM has and this package does not is refused by name, never accepted and forgotten.
This file only holds and checks the values; `sampling.py` turns them into arithmetic, `sequence.py` into an end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinylm.inference._errors import InferenceError
from tinylm.inference.structured_params import StructuredOutputsParams

#: Below this temperature the most likely token is taken (vLLM's limit): dividing by less only overflows.
GREEDY_BELOW = 1e-5

_REFUSED = {
    "allowed_token_ids": "use logit_bias",
    "bad_words": "use logit_bias for single tokens",
    "best_of": "use n with logprobs=0 and choose by cumulative_logprob",
    "extra_args": "there are no plug-ins that would read them",
    "flat_logprobs": "logprobs come as one dict per token",
    "guided_decoding": "use structured_outputs",
    "length_penalty": "there is no beam search",
    "logits_processors": "functions of your own are not called",
    "output_kind": "use LLM.stream for text as it comes",
    "skip_clone": "parameters are immutable, so there is nothing to clone",
    "skip_reading_prefix_cache": "a cached prefix changes no token; LLM(enable_prefix_caching=False) does without",
    "spaces_between_special_tokens": "special tokens are written as they are",
    "truncate_prompt_tokens": "shorten the prompt before you pass it",
    "use_beam_search": "there is no beam search",
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to draw tokens, when to stop, and what to report. Frozen; `dataclasses.replace` makes variants.

    Drawing (in this order; each step is one function of `tinylm.inference.sampling`):

    - `logit_bias`: added to the logits of these ids.
    - `repetition_penalty` > 0, over prompt and output (Keskar et al. 2019, CTRL); `presence_penalty` and
      `frequency_penalty` in -2..2, over the output (OpenAI's definition). 1.0, 0.0 and 0.0 change nothing.
    - `temperature` >= 0; 0 (anything below 1e-5) takes the most likely token and ignores the steps below.
    - `min_p` in 0..1: at least this fraction of the most likely one's probability (Nguyen et al. 2024). Then `top_k`:
      the k most likely; 0 or -1 keeps all. Then `top_p` in (0, 1]: of what is left the smallest set with at least this
      probability (Holtzman et al. 2020).
    - `seed`: a whole number makes the draws of this request repeatable, whatever else runs beside it; None or -1: not.
      With `n` answers, answer i is drawn with `seed + i`.

    Stopping:

    - `max_tokens`: at most this many, None: up to the end of the context. `min_tokens`: no end-of-text, stop token
      or stop string before so many.
    - `stop`: strings at which the text is cut, before them unless `include_stop_str_in_output`. `stop_token_ids`: the
      same for tokens. `ignore_eos`: write on past end-of-text.
    - `structured_outputs`: a `StructuredOutputsParams`: the text is a whole JSON value, match or choice, or it fails:
      where `max_tokens` or the context ends it before, the finish_reason is "length" and its text is empty (what was
      drawn stays in token_ids); a stream raises InferenceError at its end. The grammar alone says where the text ends,
      so `stop`, `stop_token_ids`, `min_tokens` and `ignore_eos` are refused beside it.

    Reporting:

    - `n` answers. `logprobs`: None, or for each token this many of the likeliest and the drawn one (0: the drawn one
      only, -1: the whole vocabulary); `prompt_logprobs`: the same for the prompt's tokens. `detokenize=False`: ids
      only. `skip_special_tokens`: leave them out of the text.

    Raises InferenceError for a value outside these bounds, and by name for a vLLM parameter that is not here.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __new__(cls, **values: Any) -> "SamplingParams":
        """Refuses what vLLM has and this package does not, by name; the dataclass then fills the object."""
        for name in values:
            if name in _REFUSED:
                raise InferenceError(f"SamplingParams({name}=...) is not supported: {_REFUSED[name]}")
            if name not in cls.__dataclass_fields__:
                raise InferenceError(
                    f"SamplingParams has no parameter {name!r}; it has {', '.join(cls.__dataclass_fields__)}"
                )
        return super().__new__(cls)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whatever form it was given in."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def __post_init__(self) -> None:
        if self.seed == -1 and not isinstance(self.seed, bool):
            object.__setattr__(self, "seed", None)
        self._check_drawing()
        self._check_stopping()
        for name in ("ignore_eos", "include_stop_str_in_output", "detokenize", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InferenceError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def _check_drawing(self) -> None:
        self._number("temperature", 0.0)
        self._number("top_p", 0.0, 1.0, above=True)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", 0.0, above=True)
        self._number("presence_penalty", -2.0, 2.0)
        self._number("frequency_penalty", -2.0, 2.0)
        self._integer("top_k", -1)
        self._integer("n", 1)
        self._integer("seed", 0, none=True)
        self._integer("logprobs", -1, none=True)
        self._integer("prompt_logprobs", -1, none=True)
        if self.greedy and self.n > 1:
            raise InferenceError(f"n must be 1 when temperature is 0 (all answers would be the same), got n={self.n}")
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise InferenceError(f"logit_bias must map token ids to numbers, got {self.logit_bias!r}")
            for token_id, bias in self.logit_bias.items():
                _check_integer("logit_bias: a token id", token_id, 0)
                _check_number(f"logit_bias[{token_id}]", bias, -math.inf)

    def _check_stopping(self) -> None:
        self._integer("max_tokens", 1, none=True)
        self._integer("min_tokens", 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InferenceError(f"min_tokens ({self.min_tokens}) must not be above max_tokens ({self.max_tokens})")
        if self.stop is not None and not isinstance(self.stop, str | Sequence):
            raise InferenceError(f"stop must be a string or a list of strings, got {self.stop!r}")
        for text in self.stop_strings:
            if not isinstance(text, str) or not text:
                raise InferenceError(f"stop: every entry must be a string that is not empty, got {text!r}")
        if self.stop_strings and not self.detokenize:
            raise InferenceError("stop strings need text: drop detokenize=False, or use stop_token_ids")
        if self.stop_token_ids is not None and (
            isinstance(self.stop_token_ids, str) or not isinstance(self.stop_token_ids, Sequence)
        ):
            raise InferenceError(f"stop_token_ids must be a list of token ids, got {self.stop_token_ids!r}")
        for token_id in self.stop_token_ids or ():
            _check_integer("stop_token_ids: every entry", token_id, 0)
        self._check_structured()

    def _check_structured(self) -> None:
        if self.structured_outputs is None:
            return
        if not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise InferenceError(
                f"structured_outputs must be a StructuredOutputsParams, got {type(self.structured_outputs).__name__}"
            )
        for name in ("stop", "stop_token_ids", "min_tokens", "ignore_eos"):
            if getattr(self, name):
                raise InferenceError(f"{name} cannot go with structured_outputs, which say where the text ends")

    def _integer(self, name: str, low: int, *, none: bool = False) -> None:
        value = getattr(self, name)
        if not (none and value is None):
            _check_integer(name, value, low)

    def _number(self, name: str, low: float, high: float = math.inf, *, above: bool = False) -> None:
        _check_number(name, getattr(self, name), low, high, above=above)


def _check_integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise InferenceError(f"{name} must be a whole number of at least {low}, got {value!r}")


def _check_number(name: str, value: object, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Refuses NaN and infinities always: no sampling parameter has a meaning there."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and low <= number <= high and not (above and number == low):
        return
    bounds = f"a number {'above' if above else 'of at least'} {low:g}" if math.isfinite(low) else "a finite number"
    raise InferenceError(f"{name} must be {bounds}{f' and at most {high:g}' if high < math.inf else ''}, got {value!r}")
