"""The ladder of decoding many texts as plain data, for `tinylm-obs ladder decoding`.

No import of tinylm.observability, and torch only once work is made. The two lowest rungs of decoding, one text, are in
`tinylm.model.ladder`. Not here: timing and tables. Next: `engine.py`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tinylm.model import Transformer

Texts = list[list[int]]
NEW, VOCABULARY = 32, 2048


class Decoding(NamedTuple):
    model: Transformer
    prompts: Texts


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first within each ladder; see tinylm.observability for the meaning of the keys."""
    common: dict[str, Any] = {"component": "decoding", "ladder": "greedy decoding of many prompts", "unit": "tokens"}
    common |= {"make": _make_decoding, "amount": lambda work: NEW * len(work.prompts), "compare": _mismatch, "size": 8}
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
            "rung": "paged, continuous batching",
            "module": "tinylm.inference.engine",
            "change": "products with one row read all weights for one token: the texts' tokens share each product",
            "equals": "one after the other",
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
    ]


def _make_decoding(size: int) -> Decoding:
    """`size` prompts of 48 tokens, the first 40 in common, for the qwen3 preset of depth 4."""
    import torch

    from tinylm.model import Transformer, TransformerConfig

    torch.manual_seed(0)
    model = Transformer(TransformerConfig.preset("qwen3", VOCABULARY, 4, context=256)).eval()
    chooser = random.Random(0)
    common = [chooser.randrange(VOCABULARY) for _ in range(40)]
    work = Decoding(model, [common + [chooser.randrange(VOCABULARY) for _ in range(8)] for _ in range(size)])
    _run_engine(work._replace(prompts=work.prompts[:1]))  # torch's first calls set up its kernels
    return work


def _run_alone(work: Decoding) -> Texts:
    import torch

    from tinylm.model import generate

    return [generate(work.model, torch.tensor([prompt]), NEW)[0].tolist() for prompt in work.prompts]


def _run_engine(work: Decoding, speculate: bool = False, **options: Any) -> Texts:
    from tinylm.inference.engine import Engine
    from tinylm.inference.engine_config import EngineConfig
    from tinylm.inference.sampling_params import SamplingParams
    from tinylm.inference.speculation import PromptLookup

    engine = Engine(work.model, config=EngineConfig(**options), propose=PromptLookup() if speculate else None)
    params = SamplingParams(temperature=0, max_tokens=NEW)
    texts = [engine.add_request(str(i), prompt, params)[0] for i, prompt in enumerate(work.prompts)]
    while engine.busy:
        engine.step()
    return [text.output for text in texts]


def _mismatch(result: Texts, reference: Texts) -> float:
    """Part of the tokens that differ."""
    pairs = [(a, b) for row, other in zip(result, reference, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(a != b for a, b in pairs) / len(pairs)
