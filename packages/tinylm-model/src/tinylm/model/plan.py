"""What a shape costs before anyone builds it: the memory of a training step by kind and at its peak, on one of many
devices; memory to serve; time and money.

No torch here. The formulas count what this package's Transformer keeps between forward and backward, and AdamW with one
pass over the parameters; `benchmarks/plan_memory.py` and the tests hold them against what torch's allocator hands out,
within 10 %. That is the CPU's path, whatever device is named: on CUDA the kernels keep s·3M for SwiGLU instead of s·4M
and no copy of RoPE's result, and the head's loss has up to 2^27 logits at once instead of 2^20. On top come what the
allocator rounds up, the CUDA context (about half a GiB) and torch.compile's own buffers. Not here: measuring, printing
(_report.py). Next: hardware.py.

Letters: D width, H heads x head_dim, K kv_heads x head_dim, M MLP width, V vocabulary, L layers, P parameters, s bytes
of a number in the products (4, or 2 in bfloat16 and float16).
"""

from __future__ import annotations

from dataclasses import dataclass

from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MEMORY_IS = (
    "the CPU path's; CUDA's kernels keep less in a block (SwiGLU 3/4, no copy of RoPE's result), "
    "and up to 2^27 logits at once, not 2^20"
)
_CHUNK, _CHUNK_BYTES, _PASS, _COLUMNS = 1 << 20, 2048, 1 << 18, 8192  # as in loss.py, without importing torch


@dataclass(frozen=True)
class Layout:
    """How many devices do what: `data` copies of the model, each cut over `fsdp` devices (ZeRO-3, Rajbhandari et al.
    2020) and its matrices over `tensor` (Shoeybi et al. 2019); data x fsdp x tensor devices in all."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(f"plan: wanted {name} to be a whole number of at least 1, got {value!r}")

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.data * self.fsdp * self.tensor

    def check(self, config: TransformerConfig) -> None:
        """ModelError where tensor parallelism would cut through a head."""
        if config.kv_heads % self.tensor or config.heads % self.tensor or config.mlp_width % self.tensor:
            raise ModelError(
                f"plan: wanted tensor to divide kv_heads={config.kv_heads}, heads={config.heads} and "
                f"mlp_width={config.mlp_width}, got {self.tensor}"
            )


def block_activations(config: TransformerConfig, dtype: str = "float32", tensor: int = 1) -> dict[str, float]:
    """Bytes a token that one block keeps for its backward, by part. Each operation keeps what its derivative needs:

        norms       4·2D for their inputs (the residual stream is float32) + s·2D for their outputs, which the products
                    keep
        attention   s·(H + 2K + H): q, k, v and what attention returns; with QK-norm s·(H + K) before it as well; with
                    RoPE and several heads s·H again, since its result then lies head by head and the product copies it
        MLP         s·2M (GELU: its derivative and what comes out), s·4M (SwiGLU: gate, up, SiLU(gate), their product);
                    with E experts of which each token meets k, k (s·(4M + 2D) + 16): its row for each expert and what
                    comes back, 64-bit places; 8E for the router
        rows        4 bytes a head for the softmax's logarithm of the sum, 4 (LayerNorm 8) a norm

    With tensor parallelism H, K and M are divided, the norms are not (Korthikanti et al. 2022, eq. 1).
    """
    s = _size(dtype)
    heads, kv = config.heads * config.head_dim / tensor, config.kv_heads * config.head_dim / tensor
    copied = config.position == "rope" and config.heads > 1
    gated = config.activation == "swiglu"
    mlp = s * (4 if gated else 2) * config.mlp_width / tensor
    if config.experts:
        mlp = config.experts_per_token * (mlp + s * 2 * config.width + 16) + 8 * config.experts
    rows = (2 if config.norm == "layernorm" else 1) * (2 + (config.heads + config.kv_heads) * config.qk_norm / tensor)
    return {
        "norms": (2 * 4 + 2 * s) * config.width,
        "attention": s * (2 * heads + 2 * kv + (heads + kv) * config.qk_norm + heads * copied),
        "MLP": mlp,
        "rows": 4 * (rows + config.heads / tensor),
    }


def activations(
    config: TransformerConfig, tokens: int, dtype: str = "float32", checkpointing: bool = False, tensor: int = 1
) -> int:
    """Bytes kept between forward and backward for `tokens` tokens: L blocks, and 4D for the final norm's input.

    With activation checkpointing (Chen et al. 2016) a block keeps its input alone, 4D, and is computed again in the
    backward pass, where one block's activations exist at a time.
    """
    block = 4 * config.width if checkpointing else sum(block_activations(config, dtype, tensor).values())
    return round(tokens * (config.depth * block + 4 * config.width))


def training_memory(
    config: TransformerConfig,
    batch_tokens: int,
    dtype: str = "float32",
    checkpointing: bool = False,
    layout: Layout = Layout(),  # frozen
) -> dict[str, int]:
    """Bytes by kind on one device, for a step over `batch_tokens` tokens on it; "peak" is not their sum.

        weights       4P                 gradients   4P            AdamW     8P (Loshchilov and Hutter 2019)
        copies        16 bits only: s times the matrices and biases of the blocks, which autocast keeps until backward
        activations   `activations`
        head          4VD for the head's gradient + what the final norm gives and its gradient + a chunk of logits + in
                      16 bits s·VD for the head's copy and a block of its gradient before it is added

    P is divided by fsdp and tensor; FSDP gathers two blocks and the tables whole, in s bytes, instead of copies.
    Gradients appear while activations go, so the peak is the largest of three moments: the head's loss; the first
    block's backward (with checkpointing: the block's activations as well, and its copies alone); the end of backward,
    when every gradient is there (with checkpointing: beside the last block's activations; with experts, as measured,
    those are gone by then).
    """
    layout.check(config)
    if batch_tokens < 1:
        raise ModelError(f"plan: wanted at least one token at once, got {batch_tokens}")
    s, shards = _size(dtype), layout.fsdp * layout.tensor
    count = config.parameter_count()
    inner = config.parameter_count(embeddings=False) / layout.tensor
    kept = activations(config, batch_tokens, dtype, checkpointing, layout.tensor)
    copies = s * inner if s == 2 and layout.fsdp == 1 else 0.0
    outer = (count - config.parameter_count(embeddings=False)) / layout.tensor
    gathered = s * (2 * inner / config.depth + outer) if layout.fsdp > 1 else 0.0
    hidden = batch_tokens * config.width * s
    table = 4 * config.vocab_size * config.width / layout.tensor
    rows = min(batch_tokens, max(_CHUNK_BYTES // s, _CHUNK // config.vocab_size))
    logits = s * rows * config.vocab_size / layout.tensor
    narrow, scratch = 0.0, 4 * _PASS
    if s == 2:
        narrow, scratch = table / 2, max(8 * _PASS, s * min(_COLUMNS, config.vocab_size) * config.width)
    head = table + 2 * hidden + logits + narrow + scratch
    inner_rows = (config.experts_per_token or 1) * (2 if config.activation == "swiglu" else 1) * config.mlp_width
    inside = batch_tokens * (8 * config.width + s * inner_rows)
    again, once = 0.0, copies
    if checkpointing:
        again = batch_tokens * sum(block_activations(config, dtype, layout.tensor).values())
        once = copies / config.depth
        experts = 3 * config.width * config.mlp_width * config.experts / layout.tensor
        again += 4 * experts  # the gradients of a block's experts are there before the first of them is done with
        copies -= s * config.depth * experts if copies else 0.0  # autocast does not keep these
    moments = {
        "loss": copies + gathered + kept + head,
        "first block's backward": once + gathered + kept + again + table + inside / layout.tensor,
        "end of backward": 4 * count / shards + (0.0 if config.experts else again),
    }
    peak = (4 + 8) * count / shards + max(moments.values())
    sizes = {
        "weights": 4 * count / shards,
        "gradients": 4 * count / shards,
        "optimiser (AdamW)": 8 * count / shards,
        "copies for the products": copies,
        "gathered blocks (FSDP)": gathered,
        "activations": kept,
        "head": head,
        "peak": peak,
    }
    return {kind: round(size) for kind, size in sizes.items()}


def serving_memory(config: TransformerConfig, tokens: int, dtype: str = "bfloat16") -> dict[str, int]:
    """Bytes by kind to serve with `tokens` tokens in the cache, all sequences together: s P, and s·2·L·K a token."""
    size = _size(dtype)
    return {
        "weights": size * config.parameter_count(),
        "key/value cache": size * 2 * config.depth * config.kv_heads * config.head_dim * tokens,
    }


def training_seconds(
    config: TransformerConfig, tokens: int, flops_per_second: float, checkpointing: bool = False
) -> float:
    """Tokens times FLOPs a token (TransformerConfig.flops_per_token) over the rate that all devices together sustain.

    Checkpointing computes the forward pass twice: 4/3 of the work. What devices wait for one another is not counted:
    it is part of the rate that is given.
    """
    if tokens < 1 or not 0 < flops_per_second < float("inf"):
        raise ModelError(f"plan: wanted tokens and FLOP/s above 0, got {tokens} and {flops_per_second}")
    return tokens * config.flops_per_token() * (4 / 3 if checkpointing else 1) / flops_per_second


def _size(dtype: str) -> int:
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype: wanted one of {sorted(DTYPE_BYTES)}, got {dtype!r}")
    return DTYPE_BYTES[dtype]
