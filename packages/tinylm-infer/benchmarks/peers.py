"""Engines that `decode.py` compares: each makes a function that writes greedily and returns nothing.

A maker is called with a folder to work in and the model (GPT-2's shape, random weights), and gives back
write(prompts, count): so many new tokens for each prompt (equal lengths), past any end of text. Each takes as many
threads as PyTorch. Peers are imported where they are made; one that is missing raises ImportError. It measures nothing:
see decode.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ways import WAYS

from tinylm.inference import SamplingParams
from tinylm.inference.plain_weights import use_kernels
from tinylm.inference.quantization import quantize
from tinylm.model import KVCache, Transformer

Write = Callable[[list[list[int]], int], None]


def ours(scheme: str) -> Callable[[Path, Transformer], Write]:
    def make(_: Path, model: Transformer) -> Write:
        return greedy(quantize(model, scheme))

    return make


def ours_plain(dtype: torch.dtype) -> Callable[[Path, Transformer], Write]:
    def make(_: Path, model: Transformer) -> Write:
        mine = copy.deepcopy(model).to(dtype)
        use_kernels(mine)
        return greedy(mine)

    return make


def greedy(model: Transformer) -> Write:
    """A loop around a Transformer with a KV cache."""

    @torch.inference_mode()
    def write(prompts: list[list[int]], count: int) -> None:
        ids = torch.tensor(prompts)
        cache = KVCache(model.config, len(prompts), ids.shape[1] + count, dtype=model.embed.weight.dtype)
        for _ in range(count):
            ids = model(ids, cache=cache, logits_at=[-1])[:, -1].argmax(dim=-1, keepdim=True)

    return write


def recompute(_: Path, model: Transformer) -> Write:
    """The lowest rung: all of the text through the model again for every token."""

    @torch.inference_mode()
    def write(prompts: list[list[int]], count: int) -> None:
        if len(prompts) > 1:
            raise NotImplementedError("one text")
        ids = torch.tensor(prompts)
        for _ in range(count):
            ids = torch.cat([ids, model(ids, logits_at=[-1])[:, -1].argmax(dim=-1, keepdim=True)], dim=1)

    return write


def rung(name: str) -> Callable[[Path, Transformer], Write]:
    """A rung for many texts, one of `ways.py`, in float32 and without our kernels' pass."""

    def make(_: Path, model: Transformer) -> Write:
        mine = copy.deepcopy(model)

        def write(prompts: list[list[int]], count: int) -> None:
            WAYS[name](mine, prompts, [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)] * len(prompts))

        return write

    return make


def torch_eager(dtype: torch.dtype) -> Callable[[Path, Transformer], Write]:
    def make(_: Path, model: Transformer) -> Write:
        return greedy(copy.deepcopy(model).to(dtype))

    return make


def torch_int8_dynamic(_: Path, model: Transformer) -> Write:
    """PyTorch's own dynamic quantisation of nn.Linear; the tied head as a Linear of its own."""
    import torch.ao.quantization as ao

    quantized = ao.quantize_dynamic(_with_head(copy.deepcopy(model)), {nn.Linear}, dtype=torch.qint8)
    return greedy(quantized)


class _Int4(nn.Module):
    """PyTorch's int4 pack: groups of 32, activations in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        pad = -outputs % 64
        weight = F.pad(linear.weight.detach().float(), (0, 0, 0, pad)).view(outputs + pad, -1, 32)
        scale = weight.abs().amax(dim=2) / 7
        q = (weight / scale.clamp_min(1e-9)[..., None]).round().clamp(-8, 7) + 8
        self.outputs = outputs
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.view(outputs + pad, inputs).int(), 1)
        zeros = torch.zeros_like(scale)
        self.scales = torch.stack((scale, zeros), dim=2).transpose(0, 1).contiguous().bfloat16()
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, 32, self.scales)[:, : self.outputs]
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.outputs)


def torch_int4_pack(_: Path, model: Transformer) -> Write:
    whole = _with_head(copy.deepcopy(model).bfloat16())
    for name, module in list(whole.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(whole.get_submodule(parent), leaf, _Int4(module))
    return greedy(whole)


class _OwnHead(Transformer):
    """A Transformer whose head is a module, so that it can be replaced."""

    def forward(self, ids: Tensor, *rest: Any, logits_at: Any = None, **more: Any) -> Tensor:
        hidden = self.hidden(ids, *rest, **more)
        hidden = hidden if logits_at is None else hidden[:, torch.as_tensor(logits_at)]
        logits: Tensor = self.own_head(hidden)
        return logits


def _with_head(model: Transformer) -> Transformer:
    head = nn.Linear(model.config.width, model.config.vocab_size, bias=False, dtype=model.embed.weight.dtype)
    head.weight = nn.Parameter(model.embed.weight.detach().clone())
    model.own_head = head
    model.__class__ = _OwnHead
    return model


def transformers(dtype: torch.dtype) -> Callable[[Path, Transformer], Write]:
    def make(folder: Path, model: Transformer) -> Write:
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(_saved(folder, model), dtype=dtype)

        @torch.inference_mode()
        def write(prompts: list[list[int]], count: int) -> None:
            ids = torch.tensor(prompts)
            mask = torch.ones_like(ids)
            theirs.generate(
                ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
            )

        return write

    return make


def vllm(folder: Path, model: Transformer) -> Write:
    """vLLM's build for CPUs, bfloat16, eager, without a prefix cache, its engine in this process."""
    import os

    cores = ",".join(map(str, range(torch.get_num_threads())))
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    import vllm as peer

    options = {"dtype": "bfloat16", "enforce_eager": True, "enable_prefix_caching": False, "skip_tokenizer_init": True}
    theirs = peer.LLM(str(_saved(folder, model)), max_model_len=1024, **options)

    def write(prompts: list[list[int]], count: int) -> None:
        params = peer.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        theirs.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return write


def ctranslate2(kind: str) -> Callable[[Path, Transformer], Write]:
    def make(folder: Path, model: Transformer) -> Write:
        import ctranslate2 as peer

        out = folder / f"ctranslate2-{kind}"
        if not out.exists():
            peer.converters.TransformersConverter(str(_saved(folder, model))).convert(str(out), quantization=kind)
        generator = peer.Generator(
            str(out), device="cpu", inter_threads=1, intra_threads=torch.get_num_threads(), compute_type=kind
        )

        def write(prompts: list[list[int]], count: int) -> None:
            texts = [[f"t{i}" for i in prompt] for prompt in prompts]
            generator.generate_batch(
                texts, max_length=count, min_length=count, sampling_topk=1, include_prompt_in_result=False
            )

        return write

    return make


def llama_cpp(kind: str) -> Callable[[Path, Transformer], Write]:
    """kind: F32, BF16, Q8_0 or Q4_0. llama.cpp quantises our float32 file itself. One sequence at a time.

    It reads the prompt token by token: its path for several tokens of a quantised file uses AMX and crashed on the
    machine of the committed figures (0.3.36, built there). Decoding is not touched; it has no prefill figure.
    """

    def make(folder: Path, model: Transformer) -> Write:
        import llama_cpp as peer

        path = _gguf(folder, model)
        if kind != "F32":
            types = {"BF16": peer.LLAMA_FTYPE_MOSTLY_BF16, "Q8_0": peer.LLAMA_FTYPE_MOSTLY_Q8_0}
            types["Q4_0"] = peer.LLAMA_FTYPE_MOSTLY_Q4_0
            params = peer.llama_model_quantize_default_params()
            params.ftype, params.nthread = types[kind], 1
            source, path = path, folder / f"{kind}.gguf"
            if not path.exists():
                peer.llama_model_quantize(str(source).encode(), str(path).encode(), params)
        return llama_cpp_file(path)

    return make


def llama_cpp_file(path: Path) -> Write:
    import llama_cpp as peer

    threads = torch.get_num_threads()
    llama = peer.Llama(str(path), n_ctx=1024, n_batch=1, n_threads=threads, n_threads_batch=threads, verbose=False)
    vocabulary = llama.n_vocab()

    def write(prompts: list[list[int]], count: int) -> None:
        if len(prompts) > 1 or len(prompts[0]) > 256:
            raise NotImplementedError("one sequence at a time, and no prefill")
        import numpy as np

        llama.reset()
        llama.eval(prompts[0])
        for _ in range(count - 1):
            logits = np.ctypeslib.as_array(peer.llama_get_logits_ith(llama.ctx, -1), (vocabulary,))
            llama.eval([int(logits.argmax())])

    return write


def _saved(folder: Path, model: Transformer) -> Path:
    """The model as a Hugging Face directory, with a tokenizer whose tokens are t0, t1, ..."""
    out = folder / "huggingface"
    if out.exists():
        return out
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model.save(out)
    words = {f"t{i}": i for i in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0", bos_token="t0", eos_token="t0").save_pretrained(
        out
    )
    return out


def _gguf(folder: Path, model: Transformer) -> Path:
    from tinylm.model.gguf import files
    from tinylm.model.gguf.tokenizer import NO_VOCABULARY

    path = folder / "float32.gguf"
    if not path.exists():
        files.save(model, path, "float32", NO_VOCABULARY)
    return path
