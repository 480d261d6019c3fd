"""The ladder of decoding many texts as plain data, for `tinylm-obs ladder decoding`.

No import of tinylm.observability, and torch only once work is made. The two lowest rungs of decoding, one text, are in
`tinylm.model.ladder`. Not here: timing and tables. Next: `engine.py`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tinylm.inference.compiled import Compiled
    from tinylm.inference.sampling_params import SamplingParams
    from tinylm.model import Transformer

Texts = list[list[int]]
BATCH, VOCABULARY = 8, 2048  # texts at a time
NEW = (8, 16, 32, 64)  # how many tokens a text gets


class Decoding(NamedTuple):
    model: Transformer
    prompts: Texts
    counts: list[int]  # new tokens of each
    step: Compiled | None = None  # of the compiled rung: compiling is not timed


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first within each ladder; see tinylm.observability for the meaning of the keys."""
    common: dict[str, Any] = {"component": "decoding", "ladder": "greedy decoding of many prompts", "unit": "tokens"}
    common |= {"make": _make_decoding, "amount": lambda work: sum(work.counts), "compare": _mismatch, "size": 24}
    return [*_float32(common), *_quantized(common, "int8"), *_quantized(common, "int4")]


def _float32(common: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            **common,
            "rung": "one after the other",
            "module": "tinylm.model.decoding",
            "change": "each prompt alone, with a KV cache",
            "equals": None,
            "run": _run_alone,
        },
        {
            **common,
            "rung": "static batch",
            "module": "tinylm.inference.static_batch",
            "change": "products with one row read all weights for one token: the texts' tokens share each product",
            "equals": "one after the other",
            "run": _run_static,
        },
        {
            **common,
            "rung": "paged, continuous batching",
            "module": "tinylm.inference.engine",
            "change": "padding and ended texts kept their rows: each text has blocks of its own, and joins at any step",
            "equals": "static batch",
            "run": lambda work: _run_engine(work, enable_prefix_caching=False),
        },
        {
            **common,
            "rung": "prefix cache",
            "module": "tinylm.inference.prefix_cache",
            "change": "the prompts' common beginning was computed for each: read once, its blocks are shared",
            "equals": "paged, continuous batching",
            "run": lambda work: _run_engine(work, max_num_batched_tokens=64),
        },
        {
            **common,
            "rung": "speculation",
            "module": "tinylm.inference.speculation",
            "change": "a step for every token: guesses from the text itself, checked together",
            "equals": "prefix cache",
            "run": lambda work: _run_engine(work, speculate=True, max_num_batched_tokens=64),
        },
        {
            **common,
            "rung": "C++ pass",
            "module": "tinylm.inference.plain_weights",
            "change": "hundreds of calls for a step: one, which reads the weights in order, in large pages",
            "equals": "paged, continuous batching",
            "make": _make_kernels,
            "run": lambda work: _run_engine(work, enable_prefix_caching=False),
        },
        {
            **common,
            "rung": "compiled",
            "module": "tinylm.inference.compiled",
            "change": "Python and small calls between the products: a step is one graph of fixed shapes",
            "equals": "static batch",
            "make": _make_compiled,
            "run": _run_compiled,
        },
    ]


def _quantized(common: dict[str, Any], scheme: str) -> list[dict[str, Any]]:
    """Rounded weights are other numbers, so each scheme has a ladder of its own, and its rungs give the same bits."""
    common = {**common, "ladder": f"greedy decoding of many prompts, {scheme} weights", "size": 2}
    return [
        {
            **common,
            "rung": f"{scheme}, PyTorch",
            "module": "tinylm.inference.quantization.reference",
            "change": "whole numbers times whole numbers, scaled afterwards, in PyTorch's operations",
            "equals": None,
            "make": lambda size: _make_quantized(size, scheme, kernels=False),
            "run": _run_engine,
        },
        {
            **common,
            "rung": f"{scheme}, C++ kernels",
            "module": "tinylm.inference.kernels",
            "change": "every product passed over its numbers many times: a step is one call that reads each byte once",
            "equals": f"{scheme}, PyTorch",
            "make": lambda size: _make_quantized(size, scheme, kernels=True),
            "run": _run_engine,
            "size": 24,
        },
    ]


def _make_decoding(size: int) -> Decoding:
    """`size` prompts of 44 to 56 tokens, the first 40 in common, for the qwen3 preset of depth 4."""
    import torch

    from tinylm.model import Transformer, TransformerConfig

    torch.manual_seed(0)
    model = Transformer(TransformerConfig.preset("qwen3", VOCABULARY, 4, context=256)).eval()
    chooser = random.Random(0)
    common = [chooser.randrange(VOCABULARY) for _ in range(40)]
    own = [[chooser.randrange(VOCABULARY) for _ in range(chooser.randint(4, 16))] for _ in range(size)]
    work = Decoding(model, [common + rest for rest in own], [chooser.choice(NEW) for _ in own])
    _run_engine(work._replace(prompts=work.prompts[:1], counts=[8]))  # torch's first calls set up its kernels
    return work


def _make_compiled(size: int) -> Decoding:
    from tinylm.inference.compiled import Compiled

    work = _make_decoding(size)
    return work._replace(step=Compiled(work.model, BATCH, max(map(len, work.prompts)) + max(NEW)))


def _make_kernels(size: int) -> Decoding:
    from tinylm.inference.plain_weights import use_kernels

    work = _make_decoding(size)
    use_kernels(work.model)
    return work


def _make_quantized(size: int, scheme: str, kernels: bool) -> Decoding:
    """Without `kernels` every product is `reference.linear`'s, as where none are installed."""
    from torch import Tensor, nn

    from tinylm.inference.quantization import quantize, reference
    from tinylm.inference.quantization.linear import QuantizedLinear

    class InPyTorch(nn.Module):
        def __init__(self, linear: QuantizedLinear) -> None:
            super().__init__()
            self.numbers, self.bias = linear.weight(), linear.bias

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = reference.linear(x.flatten(0, -2), self.numbers, self.bias)
            return y.view(*x.shape[:-1], y.shape[-1])

    work = _make_decoding(size)
    model = quantize(work.model, scheme)
    if not kernels:
        model._decoder = None
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLinear):
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, InPyTorch(module))
    return work._replace(model=model)


def _run_static(work: Decoding) -> Texts:
    from tinylm.inference.static_batch import static_batch

    return [text for part in _batches(work) for text in static_batch(work.model, *part)]


def _run_compiled(work: Decoding) -> Texts:
    assert work.step is not None
    texts: Texts = []
    for prompts, params in _batches(work):
        missing = BATCH - len(prompts)  # the graph is for full batches
        texts += work.step.write(prompts + prompts[:1] * missing, params + params[:1] * missing)[: len(prompts)]
    return texts


def _batches(work: Decoding) -> list[tuple[Texts, list[SamplingParams]]]:
    params = _params(work)
    return [(work.prompts[i : i + BATCH], params[i : i + BATCH]) for i in range(0, len(params), BATCH)]


def _params(work: Decoding) -> list[SamplingParams]:
    from tinylm.inference.sampling_params import SamplingParams

    return [SamplingParams(temperature=0, max_tokens=count) for count in work.counts]


def _run_alone(work: Decoding) -> Texts:
    import torch

    from tinylm.model import generate

    pairs = zip(work.prompts, work.counts, strict=True)
    return [generate(work.model, torch.tensor([prompt]), count)[0].tolist() for prompt, count in pairs]


def _run_engine(work: Decoding, speculate: bool = False, **options: Any) -> Texts:
    from tinylm.inference.engine import Engine
    from tinylm.inference.engine_config import EngineConfig
    from tinylm.inference.speculation import PromptLookup

    config = EngineConfig(max_num_seqs=BATCH, **options)
    engine = Engine(work.model, config=config, propose=PromptLookup() if speculate else None)
    pairs = zip(work.prompts, _params(work), strict=True)
    texts = [engine.add_request(str(i), *pair)[0] for i, pair in enumerate(pairs)]
    while engine.busy:
        engine.step()
    return [text.output for text in texts]


def _mismatch(result: Texts, reference: Texts) -> float:
    """Part of the tokens that differ."""
    pairs = [(a, b) for row, other in zip(result, reference, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(a != b for a, b in pairs) / len(pairs)
