"""tinylm.inference: what `LLM.generate` and `LLM.chat` return, in vLLM's names and meanings. Plain data, no torch.

Nothing here computes anything; `sequence.py` and `generation.py` fill these in.
"""

from dataclasses import dataclass

from tinylm.inference._errors import InferenceError


@dataclass(frozen=True)
class Logprob:
    """How likely the model found one token at one position.

    `logprob` is in nats, from the model's own distribution: before penalties, temperature, top-k, top-p and min-p.
    `rank` is 1 for the most likely token. `decoded_token` is None where there is no tokenizer or no
    text is wanted (`detokenize=False`).
    """

    logprob: float
    rank: int
    decoded_token: str | None


@dataclass(frozen=True)
class CompletionOutput:
    """One answer to one prompt.

    - `text` ends before a stop string, before a stop token and before an end-of-text token; `token_ids` holds all that
      was drawn, these included. A character that was cut in half at the end is in `token_ids` only.
    - `cumulative_logprob` (nats) and `logprobs` (one dict per token, id -> Logprob) are None unless
      `SamplingParams.logprobs` asked for them.
    - `finish_reason` is "stop" (end-of-text, stop token, stop string, or a structured output is whole) or "length"
      (max_tokens, or the context is full; a structured output that is not whole then has an empty `text`).
      `stop_reason` is the stop string or stop token id that was met; None for all else.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str
    stop_reason: int | str | None

    def finished(self) -> bool:
        """True: what is given back is whole. In vLLM answers that are still being written have this form, too."""
        return True


@dataclass(frozen=True)
class TokenOutput:
    """One token of one text as it is drawn, or a text's end from outside (`token_id` None): what `Engine.step` returns.

    `text` is what became certain with it. The last one of a text has a `finish_reason`: those of `CompletionOutput`, or
    "abort", or "error" with the error; "length" has an error too where a structured output is not whole. The first has
    the prompt's logprobs if they were asked for.
    """

    request_id: str
    index: int
    token_id: int | None
    text: str
    logprobs: dict[int, Logprob] | None
    finish_reason: str | None
    stop_reason: int | str | None
    error: InferenceError | None
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """One prompt with its answers. `prompt` is None where ids were given; `outputs` has `SamplingParams.n` entries.

    `prompt_logprobs`, if asked for: one entry per prompt token, None for the first, which follows nothing.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = True  # as above
