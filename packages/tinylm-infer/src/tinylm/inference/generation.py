"""tinylm.inference: one text being written. Model, cache, sampling and stopping meet in this loop.

`Generation` computes one token per step with a KV cache: the decoding ladder's second rung (the two lowest, without
sampling and stopping, are in `tinylm.model.decoding`). It writes one sequence and knows nothing of other requests;
`llm.py` makes it from a prompt.
"""

import random
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from tinylm.inference._errors import InferenceError
from tinylm.inference.outputs import CompletionOutput, Logprob
from tinylm.inference.sampling import sample
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.stopping import StopBuffer
from tinylm.model import KVCache, Transformer
from tinylm.tokenizer import Tokenizer, TokenizerError


class Generation:
    """An iterator of text pieces; joined, they are `text`. No piece holds half a character or part of a stop string.

    What stands so far is in `token_ids`, `text`, `logprobs` and, at the end, `finish_reason` and `stop_reason` (see
    `CompletionOutput`). `steps()` yields once per token instead, with "" where a token completes no text.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        eos_token_ids: Collection[int] = (),
        index: int = 0,
    ) -> None:
        """`prompt_token_ids`: 1 to context - 1 ids. `index`: which of the n answers this is; it shifts the seed."""
        self.prompt_token_ids = list(prompt_token_ids)
        self.index = index
        self.token_ids: list[int] = []
        self.text = ""
        self.logprobs: list[dict[int, Logprob]] | None = None if params.logprobs is None else []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self._model, self._tokenizer, self._params = model, tokenizer, params
        self._eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._stop_ids = frozenset(params.stop_token_ids or ())
        self._random = random.Random(None if params.seed is None else params.seed + index)
        self._buffer = StopBuffer(params.stop_strings, params.include_stop_str_in_output)
        self._decoder = tokenizer.stream_decoder() if tokenizer is not None and params.detokenize else None
        hidden = tokenizer.special_tokens.values() if tokenizer is not None and params.skip_special_tokens else ()
        self._without_text = frozenset(hidden)
        room = model.config.context - len(self.prompt_token_ids)
        self._most = room if params.max_tokens is None else min(room, params.max_tokens)
        self._run = self._decode()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for piece in self._run:
            if piece:
                return piece
        raise StopIteration

    def steps(self) -> Iterator[str]:
        """One item per token: the text that it made certain, often ""."""
        return self._run

    def output(self) -> CompletionOutput:
        """Writes to the end if need be; the whole answer."""
        for _ in self._run:
            pass
        if self.finish_reason is None:  # an error or Ctrl-C came out of an earlier step
            raise InferenceError("this text was broken off; what was written stands in .text and .token_ids")
        drawn = None if self.logprobs is None else zip(self.logprobs, self.token_ids, strict=True)
        total = None if drawn is None else sum(choices[token_id].logprob for choices, token_id in drawn)
        return CompletionOutput(
            self.index, self.text, self.token_ids, total, self.logprobs, self.finish_reason, self.stop_reason
        )

    def _decode(self) -> Iterator[str]:
        """The loop: prompt in, then token by token, each through the model once."""
        weight = self._model.embed.weight
        cache = KVCache(self._model.config, 1, len(self.prompt_token_ids) + self._most, weight.device, weight.dtype)
        new_ids = self.prompt_token_ids
        while self.finish_reason is None:
            logits = self._next_logits(new_ids, cache)
            token_id = self._choose(logits)
            self.token_ids.append(token_id)
            new_ids = [token_id]
            piece = self._read(token_id)
            self.text += piece
            yield piece

    @torch.inference_mode()
    def _next_logits(self, new_ids: Sequence[int], cache: KVCache) -> Tensor:
        """(V,) float32 on the CPU, where all choosing happens: one seed then means the same draws on every device."""
        ids = torch.tensor([new_ids], dtype=torch.long, device=cache.keys.device)
        logits: Tensor = self._model(ids, cache=cache, logits_at=[-1])[0, 0].float().cpu()
        if not logits.max().isfinite():  # max() passes a NaN on
            raise InferenceError(
                f"the model's logits after {cache.length} tokens are not numbers (NaN or infinite): the weights are "
                f"damaged, or {cache.keys.dtype} is too narrow for them; try dtype='float32'"
            )
        return logits

    @torch.inference_mode()
    def _choose(self, logits: Tensor) -> int:
        allowed = logits
        if len(self.token_ids) < self._params.min_tokens:
            ends = [i for i in self._eos | self._stop_ids if i < len(logits)]
            allowed = logits.index_fill(0, torch.tensor(ends, dtype=torch.long), -torch.inf)
        token_id = sample(allowed, self._params, self.prompt_token_ids, self.token_ids, self._random)
        if self.logprobs is not None:
            self.logprobs.append(self._describe(logits.log_softmax(dim=0), token_id))
        return token_id

    def _read(self, token_id: int) -> str:
        """Decides whether this token ends the text; returns the text that is now certain."""
        count = len(self.token_ids)
        if token_id in self._eos or token_id in self._stop_ids:
            self.finish_reason = "stop"
            self.stop_reason = None if token_id in self._eos else token_id
            shown = self._to_text(token_id) if self._params.include_stop_str_in_output else ""
            return self._buffer.push(shown, check=False) + self._buffer.flush()
        piece = self._buffer.push(self._to_text(token_id), check=count > self._params.min_tokens)
        if self._buffer.stopped_by is not None:
            self.finish_reason, self.stop_reason = "stop", self._buffer.stopped_by
        elif count == self._most:
            self.finish_reason = "length"
            piece += self._buffer.flush()
        return piece

    def _to_text(self, token_id: int) -> str:
        """What the token adds. Ids that a padded model has and the tokenizer lacks have no text."""
        if self._decoder is None or token_id in self._without_text:
            return ""
        try:
            return self._decoder.push(token_id)
        except TokenizerError:
            return ""

    def _describe(self, logprobs: Tensor, token_id: int) -> dict[int, Logprob]:
        """The drawn token first, then the likeliest ones in order."""
        wanted = len(logprobs) if self._params.logprobs == -1 else min(self._params.logprobs or 0, len(logprobs))
        rank = int((logprobs >= logprobs[token_id]).sum())
        described = {token_id: Logprob(float(logprobs[token_id]), rank, self._token_text(token_id))}
        values, ids = logprobs.topk(wanted)
        for position, (value, i) in enumerate(zip(values.tolist(), ids.tolist(), strict=True)):
            described.setdefault(i, Logprob(value, position + 1, self._token_text(i)))
        return described

    def _token_text(self, token_id: int) -> str | None:
        if self._tokenizer is None:
            return None
        try:
            return self._tokenizer.decode([token_id])
        except TokenizerError:
            return None
