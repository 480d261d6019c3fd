"""tinylm.inference: `LLM`, a checkpoint that writes. vLLM's names and meanings; start reading here.

`generate` and `chat` return whole answers, all prompts at once; `stream` and `stream_chat` give text as it comes. The
loop itself is in `engine.py`, reading the files in `checkpoint.py`.
"""

import dataclasses
import itertools
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import torch

from tinylm.inference._errors import ContextError, InferenceError
from tinylm.inference.checkpoint import open_checkpoint
from tinylm.inference.engine import Engine
from tinylm.inference.engine_config import EngineConfig
from tinylm.inference.generation import Generation
from tinylm.inference.outputs import RequestOutput
from tinylm.inference.plain_weights import use_kernels
from tinylm.inference.quantization import place, quantize
from tinylm.inference.sampling_params import SamplingParams
from tinylm.inference.sequence import Sequence as SequenceOfTokens
from tinylm.inference.speculation import proposer
from tinylm.model import keep_freed_memory, pick_device

_OPTIONS = ", ".join([*(field.name for field in dataclasses.fields(EngineConfig)), "speculative_config"])

Prompt = str | Mapping[str, Any]
Message = Mapping[str, Any]


class LLM:
    """A model, its tokenizer and its cache, ready to write.

        llm = LLM("checkpoint")
        llm.generate("Once upon", SamplingParams(temperature=0.8, seed=1))[0].outputs[0].text

    Threads may share one. To look at: `model`, `tokenizer` (None if skipped), `engine`, `eos_token_ids`,
    `tuned_for_chat`, `device`, `dtype`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        quantization: str | None = None,
        skip_tokenizer_init: bool = False,
        *,
        block_size: int = 16,
        kv_cache_memory_bytes: int | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 512,
        max_model_len: int | None = None,
        enable_prefix_caching: bool = True,
        batch_invariant: bool = False,
        speculative_config: Mapping[str, Any] | None = None,
        **unsupported: object,
    ) -> None:
        """Opens the checkpoint directory, or the GGUF file, `model`. InferenceError, or the model's or the tokenizer's
        own error (all are ValueErrors), says what is wrong with it.

        `dtype` "auto" keeps the type of the stored weights; `device` "auto" is cuda > mps > cpu. `quantization` "int8"
        or "int4" rounds the weights as they are loaded (quantization/) and runs on the CPU, float32 between them. The
        others are `EngineConfig`'s. `speculative_config`: {"method": "ngram"} guesses from the text itself, {"model":
        DIRECTORY} with a smaller model of the same vocabulary (speculation.py); no text changes by it.
        """
        _refuse(unsupported, "LLM", f"model, dtype, device, quantization, skip_tokenizer_init, {_OPTIONS}")
        config = EngineConfig(
            block_size=block_size,
            kv_cache_memory_bytes=kv_cache_memory_bytes,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            enable_prefix_caching=enable_prefix_caching,
            batch_invariant=batch_invariant,
        )
        kind, where = place(quantization, dtype, device)
        if pick_device(where).type == "cpu":
            keep_freed_memory()
        checkpoint = open_checkpoint(model, kind, where, skip_tokenizer_init)
        self.model = checkpoint.model if quantization is None else quantize(checkpoint.model, quantization)
        if not batch_invariant:
            use_kernels(self.model)
        self.tokenizer = checkpoint.tokenizer
        self.eos_token_ids = checkpoint.eos_token_ids
        self.tuned_for_chat = checkpoint.tuned_for_chat
        self.device = self.model.embed.weight.device
        self.dtype = self.model.embed.weight.dtype
        propose = None if speculative_config is None else proposer(speculative_config, self.model)
        self.engine = Engine(self.model, self.tokenizer, self.eos_token_ids, config, propose)
        self._request_ids = itertools.count()

    def __repr__(self) -> str:
        config = self.model.config
        shape = f"{config.depth} layers of width {config.width}, {config.vocab_size:,} tokens"
        return f"<LLM: {shape}, {str(self.dtype).removeprefix('torch.')}, {self.device}>"

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **unsupported: object,
    ) -> list[RequestOutput]:
        """Answers the prompts, in order. A prompt is text or {"prompt_token_ids": [...]}; params for all, or one each.

        In a text prompt the names of special tokens count as these tokens (as in vLLM); in `chat` they never do. An
        empty prompt begins at the tokenizer's beginning-of-text, else its end-of-text token. A prompt that leaves no
        room for a token in the context is refused; a text that reaches the context's end has finish_reason "length".
        """
        _refuse(unsupported, "LLM.generate", "prompts, sampling_params")
        if not isinstance(prompts, Iterable):
            raise InferenceError(f"wanted a prompt or a list of prompts, got {type(prompts).__name__}")
        requests = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        params = self._params_for_each(sampling_params, len(requests))
        prepared = [(p if isinstance(p, str) else None, self.prompt_ids(p)) for p in requests]
        return self._answers(prepared, params)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Generation:
        """One prompt's text, piece by piece: `for piece in llm.stream("Once"): print(piece, end="")`."""
        return self._start_one(self.prompt_ids(prompt), sampling_params)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        **unsupported: object,
    ) -> list[RequestOutput]:
        """The assistant's next message in one conversation, or in several.

        A message is {"role": "user", "content": "..."}; the tokenizer's chat template lays them out. Text inside a
        message cannot forge a turn. The answer ends at the template's end of turn.
        """
        _refuse(unsupported, "LLM.chat", "messages, sampling_params")
        one = all(isinstance(message, Mapping) for message in messages)
        conversations: Any = [messages] if one else messages
        params = self._params_for_each(sampling_params, len(conversations))
        prepared = [(None, self._checked(self.chat_prompt(conversation))) for conversation in conversations]
        return self._answers(prepared, params, self.ends_of_answer())

    def stream_chat(self, messages: Sequence[Message], sampling_params: SamplingParams | None = None) -> Generation:
        """The assistant's next message in one conversation, piece by piece."""
        return self._start_one(self._checked(self.chat_prompt(messages)), sampling_params, self.ends_of_answer())

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """The token ids of a conversation, up to where the assistant's next message begins.

        `tools`: in OpenAI's form, shown to the model as its chat template does it; refused where it does not.
        """
        if self.tokenizer is None or self.tokenizer.chat_template is None:
            raise InferenceError(
                "chat needs a chat template, and this checkpoint has no chat_template.jinja; use generate, or train "
                "the tokenizer with `tinylm-tokenizer train`, which adds one"
            )
        if not messages:
            raise InferenceError("chat needs at least one message, got none")
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message or not _has_content(message):
                raise InferenceError(f'a message must be {{"role": ..., "content": "text"}}, got {message!r}')
        conversation = [dict(message) for message in messages]
        plain = self.tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
        if not tools:
            return plain
        ids = self.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tools=tools)
        if ids == plain:
            raise InferenceError("tools: this checkpoint's chat template does not show them to the model")
        return ids

    def ends_of_answer(self) -> list[int]:
        """End-of-text, and the last special token of a finished assistant message: what ends a turn."""
        assert self.tokenizer is not None
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        special = set(self.tokenizer.special_tokens.values())
        return [*self.eos_token_ids, *[i for i in self.tokenizer.apply_chat_template(turn) if i in special][-1:]]

    def _params_for_each(
        self, params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if not isinstance(params, Sequence) or not all(isinstance(p, SamplingParams) for p in params):
            raise InferenceError(f"sampling_params: wanted SamplingParams, or a list of them, got {params!r:.80}")
        if len(params) != count:
            raise InferenceError(
                f"sampling_params: wanted one for all or one for each of {count} prompts, got {len(params)}"
            )
        return list(params)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The token ids of one prompt of `generate`, checked."""
        if isinstance(prompt, Mapping):
            if set(prompt) != {"prompt_token_ids"}:
                raise InferenceError(
                    f'a prompt must be a text or {{"prompt_token_ids": [...]}}, got keys {sorted(prompt)}'
                )
            return self._checked(prompt["prompt_token_ids"])
        if not isinstance(prompt, str):
            raise InferenceError(
                f'a prompt must be a text or {{"prompt_token_ids": [...]}}, got {type(prompt).__name__}'
            )
        if self.tokenizer is None:
            raise InferenceError(
                'without a tokenizer (skip_tokenizer_init=True) a prompt must be {"prompt_token_ids": [...]}'
            )
        special = self.tokenizer.special_tokens
        return self._checked(self.tokenizer.encode(prompt, allowed_special=set(special), add_special_tokens=True))

    def _checked(self, token_ids: Iterable[SupportsIndex]) -> list[int]:
        """The ids as Python numbers, or the start token if there are none; refuses what the model cannot read."""
        config = self.model.config
        try:
            ids = [operator.index(token_id) for token_id in token_ids] or self._start_token()
        except TypeError as error:
            raise InferenceError(f"prompt: wanted a list of token ids (whole numbers): {error}") from None
        for token_id in ids:
            if not 0 <= token_id < config.vocab_size:
                raise InferenceError(f"prompt: token ids are 0 to {config.vocab_size - 1} here, got {token_id}")
        if len(ids) >= self.engine.context:
            raise ContextError(
                f"the prompt has {len(ids)} tokens, and the context holds {self.engine.context}, at least one of "
                "them for the answer: shorten the prompt"
            )
        return ids

    def _start_token(self) -> list[int]:
        bos = None if self.tokenizer is None else self.tokenizer.bos_id
        start = [bos] if bos is not None else list(self.eos_token_ids[:1])
        if not start:
            raise InferenceError("the prompt is empty, and this model has no token to begin a text with: give a prompt")
        return start

    def _start_one(
        self, ids: list[int], params: SamplingParams | None, ends: Sequence[int] | None = None
    ) -> Generation:
        params = self._params_for_each(params, 1)[0]
        if params.n > 1:
            raise InferenceError(f"a stream is one answer: n must be 1, got {params.n}; use generate for several")
        return Generation(self.engine, self.engine.make_sequence(self._new_id(), ids, params, ends))

    def _answers(
        self,
        prompts: Sequence[tuple[str | None, list[int]]],
        params: Sequence[SamplingParams],
        ends: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """All answers to all prompts, written together."""
        requests = []
        for (text, ids), p in zip(prompts, params, strict=True):  # all are checked before the first is answered
            name = self._new_id()
            texts = [self.engine.make_sequence(name, ids, p, ends, index) for index in range(p.n)]
            requests.append((name, text, ids, texts))
        try:
            for *_, texts in requests:
                for sequence in texts:
                    self.engine.add(sequence)
            return [self._output(*request) for request in requests]
        finally:
            for name, *_ in requests:
                self.engine.abort(name)  # after an error or Ctrl-C; nothing to do for those that have ended

    def _output(self, name: str, text: str | None, ids: list[int], texts: Sequence[SequenceOfTokens]) -> RequestOutput:
        generations = [Generation(self.engine, sequence) for sequence in texts]
        outputs = [generation.output() for generation in generations]
        return RequestOutput(name, text, ids, outputs, generations[0].prompt_logprobs)

    def _new_id(self) -> str:
        return f"llm-{next(self._request_ids)}"


def _has_content(message: Message) -> bool:
    """Text, or an assistant's calls of tools without any."""
    return isinstance(message.get("content"), str) or bool(message.get("content") is None and message.get("tool_calls"))


def _refuse(unsupported: Mapping[str, object], where: str, known: str) -> None:
    """vLLM has many more arguments: one that would be ignored is refused by its name instead."""
    if unsupported:
        raise InferenceError(f"{where} does not support {', '.join(sorted(unsupported))}; it takes {known}")
