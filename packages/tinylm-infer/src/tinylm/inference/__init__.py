"""tinylm.inference: text out of a trained model. Sampling, the decoding loop, `LLM` (vLLM's names) and the commands.

This file only says what is public, and imports it on first use, so that `--help` does not wait for torch.
It holds no code of its own: read `sampling.py` (one function per step), then `generation.py`, then `llm.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.inference._errors import InferenceError
    from tinylm.inference.generation import Generation
    from tinylm.inference.llm import LLM
    from tinylm.inference.outputs import CompletionOutput, Logprob, RequestOutput
    from tinylm.inference.sampling_params import SamplingParams
    from tinylm.inference.structured_params import StructuredOutputsParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "Generation",
    "InferenceError",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
]

_HOMES = {
    "LLM": "llm",
    "CompletionOutput": "outputs",
    "Generation": "generation",
    "InferenceError": "_errors",
    "Logprob": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "structured_params",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tinylm.inference.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'tinylm.inference' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
