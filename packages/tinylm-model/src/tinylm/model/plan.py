"""What a shape costs before anyone builds it: memory by kind, and the time that a number of tokens takes on a device.

No torch here. The formulas are of what this package and AdamW in tinylm.training store; what the allocator rounds up,
the CUDA context (about half a GiB) and torch.compile's own buffers come on top. Not here: measuring. Next: cli.py.
"""

from __future__ import annotations

from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}

# Dense peak FLOP/s with bf16 inputs and fp32 sums, and memory in bytes, from NVIDIA's data sheets.
DEVICES: dict[str, tuple[float, float]] = {
    "h100": (989.4e12, 80e9),
    "h200": (989.4e12, 141e9),
    "a100": (312e12, 80e9),
    "l4": (121e12, 24e9),
    "rtx4090": (165.2e12, 24e9),
}


def activation_numbers(config: TransformerConfig) -> int:
    """How many numbers per token are kept between forward and backward, without activation checkpointing.

    Each operation keeps what its derivative needs; counted on `Transformer.loss` in float32 on the CPU by the tests.
    """
    heads, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    norms = 4 * config.width
    attention = 2 * heads + 2 * kv + (heads if kv != heads else 0)
    attention += heads + kv if config.qk_norm else 0
    mlp = (4 if config.activation == "swiglu" else 2) * config.mlp_width
    return config.depth * (norms + attention + mlp) + 4 * config.width


def training_memory(config: TransformerConfig, batch_tokens: int, dtype: str = "float32") -> dict[str, int]:
    """Bytes by kind for one step over `batch_tokens` tokens at once: float32 weights, gradients and AdamW's two moments
    (Loshchilov and Hutter 2019); activations, and in bfloat16 the weights' copies for the products, in `dtype`."""
    count, size = config.parameter_count(), _dtype_bytes(dtype)
    return {
        "parameters": 4 * count,
        "copies for the products": 0 if dtype == "float32" else size * count,
        "gradients": 4 * count,
        "optimizer (AdamW)": 8 * count,
        "activations": size * activation_numbers(config) * batch_tokens,
        "head's gradient and one chunk of logits": 4 * config.vocab_size * config.width + 8 * (1 << 20),
    }


def inference_memory(config: TransformerConfig, tokens: int, dtype: str = "bfloat16") -> dict[str, int]:
    """Bytes by kind to serve with `tokens` tokens in the cache, all sequences together."""
    size = _dtype_bytes(dtype)
    return {
        "parameters": size * config.parameter_count(),
        "key/value cache": size * 2 * config.depth * config.kv_heads * config.head_dim * tokens,
    }


def training_seconds(config: TransformerConfig, tokens: int, flops_per_second: float) -> float:
    """Tokens times FLOPs per token (TransformerConfig.flops_per_token) over the rate that is really sustained."""
    if tokens < 1 or not 0 < flops_per_second < float("inf"):
        raise ModelError(f"plan: wanted tokens and FLOP/s above 0, got {tokens} and {flops_per_second}")
    return tokens * config.flops_per_token() / flops_per_second


def _dtype_bytes(dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype: wanted one of {sorted(DTYPE_BYTES)}, got {dtype!r}")
    return DTYPE_BYTES[dtype]
