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
_QUERIES, _PATTERNS = 256, 1 << 20  # as in attention.py


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

        norms       4·2D for their inputs (the residual stream is float32; LayerNorm in 16 bits keeps s·2D) + s·2D for
                    their outputs, which the products keep
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
        "norms": (2 * _norm_input(config, s) + 2 * s) * config.width,
        "attention": s * (2 * heads + 2 * kv + (heads + kv) * config.qk_norm + heads * copied),
        "MLP": mlp,
        "rows": 4 * (rows + config.heads / tensor),
    }


def activations(
    config: TransformerConfig, tokens: int, dtype: str = "float32", checkpointing: bool = False, tensor: int = 1
) -> int:
    """Bytes kept between forward and backward for `tokens` tokens: L blocks, and the final norm's input.

    With activation checkpointing (Chen et al. 2016) a block keeps its input alone, 4D, and is computed again in the
    backward pass, where one block's activations exist at a time.
    """
    block = 4 * config.width if checkpointing else sum(block_activations(config, dtype, tensor).values())
    return round(tokens * (config.depth * block + _norm_input(config, _size(dtype)) * config.width))


def _norm_input(config: TransformerConfig, s: int) -> int:
    """Bytes a number of what a norm keeps of its input."""
    return s if config.norm == "layernorm" else 4


def training_memory(
    config: TransformerConfig,
    batch_tokens: int,
    dtype: str = "float32",
    checkpointing: bool = False,
    layout: Layout = Layout(),  # frozen
    gpu: bool = False,
) -> dict[str, int]:
    """Bytes by kind on one device, for a step over `batch_tokens` tokens on it; "peak" is not their sum.

        weights       4P                 gradients   4P            AdamW     8P (Loshchilov and Hutter 2019)
        copies        16 bits only, s times: on a GPU the matrices and biases of the blocks, autocast's, which wait for
                      the backward; on a CPU the experts alone, or else the largest matrix, since each product has its
                      own (linear.py)
        activations   `activations`
        head          what waits for the backward, and what is there only while the loss is computed: a chunk of logits,
                      what the final norm gives and its gradient, blocks of words, sums over words. What waits is the
                      head's gradient (4VD); or, if the tokens are one chunk and that is less, the logits' (s a logit).

    P is divided by fsdp and tensor; FSDP gathers two blocks and the tables whole, in s bytes, instead of copies.
    Gradients appear while activations go, so the peak is the largest of these moments: the head's loss; the head's
    backward, if its matrix is its own and the gradient is computed then; the first block's backward (with
    checkpointing: the block's activations as well); with checkpointing the last block's, beside the others' gradients;
    the end of backward, when every gradient is there, and with a tied table whose gradient is computed then, what that
    is computed from.
    """
    layout.check(config)
    if batch_tokens < 1:
        raise ModelError(f"plan: wanted at least one token at once, got {batch_tokens}")
    s, shards = _size(dtype), layout.fsdp * layout.tensor
    count = config.parameter_count()
    inner = config.parameter_count(embeddings=False) / layout.tensor
    kept = activations(config, batch_tokens, dtype, checkpointing, layout.tensor)
    experts = 3 * config.width * config.mlp_width * config.experts / layout.tensor  # of one block
    largest = config.width * max(config.mlp_width, config.heads * config.head_dim) / layout.tensor
    waits = gpu or bool(config.experts)
    in_products = inner if gpu else config.depth * experts or largest
    copies = s * in_products if s == 2 and layout.fsdp == 1 else 0.0
    outer = (count - config.parameter_count(embeddings=False)) / layout.tensor
    gathered = s * (2 * inner / config.depth + outer) if layout.fsdp > 1 else 0.0
    waiting, passing, deferred = _head(config, batch_tokens, dtype, layout.tensor)
    table = 4 * config.vocab_size * config.width / layout.tensor
    inner_rows = (config.experts_per_token or 1) * (2 if config.activation == "swiglu" else 1) * config.mlp_width
    inside = batch_tokens * (8 * config.width + s * inner_rows)
    again, once = 0.0, copies
    if checkpointing:
        again = batch_tokens * sum(block_activations(config, dtype, layout.tensor).values())
        again += 4 * experts  # the gradients of a block's experts are there before the first of them is done with
        once = copies / config.depth if waits else copies
        copies = 0.0 if waits else copies  # each block's are gone with it
    after = waiting if config.tie_embeddings or not deferred else table
    hidden = 8.0 * batch_tokens * config.width
    attention, gelu, mlp = _inside_a_block(config, batch_tokens, dtype, layout.tensor)
    inside_block = max(inside / layout.tensor, hidden + attention - mlp)
    end = hidden if checkpointing else 0.0
    if deferred and config.tie_embeddings:
        end = max(end, waiting + s * (s == 2) * min(_COLUMNS, config.vocab_size) * config.width / layout.tensor)
    moments = {
        "loss": copies + gathered + kept + waiting + passing,
        "head's backward": copies + gathered + kept + (waiting + table if deferred and after == table else 0.0),
        "first block's backward": once + gathered + kept + again + after + inside_block,
        "end of backward": 4 * count / shards + end,
    }
    if checkpointing and not config.experts:
        there = 4 * (count - inner / config.depth) / shards  # the other blocks'
        there -= table if deferred or not config.tie_embeddings else 0.0  # the embedding's, not there yet
        moments["in the first block, computed again"] = there + again + max(gelu, hidden + attention - mlp)
    peak = (4 + 8) * count / shards + max(moments.values())
    sizes = {
        "weights": 4 * count / shards,
        "gradients": 4 * count / shards,
        "optimiser (AdamW)": 8 * count / shards,
        "copies for the products": copies,
        "gathered blocks (FSDP)": gathered,
        "activations": kept,
        "head": waiting + passing,
        "peak": peak,
    }
    return {kind: round(size) for kind, size in sizes.items()}


def _inside_a_block(config: TransformerConfig, tokens: int, dtype: str, tensor: int) -> tuple[float, float, float]:
    """Bytes that are there only in attention's backward (in bfloat16 three patterns of a few heads, as attention.py has
    it), and only while GELU is computed; and what the MLP has kept, gone before the former."""
    s = _size(dtype)
    heads = config.heads * config.head_dim / tensor
    attention = 3.0 * s * heads * tokens
    if dtype == "bfloat16":
        time = min(config.context, tokens)
        rows = min(_QUERIES, time)
        several = min(tokens / time * config.heads / tensor, max(1, _PATTERNS // rows**2))
        attention = 7.0 * s * heads * tokens + 3 * s * several * rows * time
    width = config.mlp_width / tensor
    gelu = 0.0 if config.activation == "swiglu" else s * tokens * width + 20 * min(65536, tokens * width)
    return attention, gelu, tokens * block_activations(config, dtype, tensor)["MLP"]


def _head(config: TransformerConfig, tokens: int, dtype: str, tensor: int) -> tuple[float, float, bool]:
    """Bytes of the head's loss that wait for the backward, those that pass, and whether it is the logits' gradient that
    waits, as in loss.py."""
    s, words = _size(dtype), config.vocab_size / tensor
    most = max(_CHUNK_BYTES // s, _CHUNK // config.vocab_size)
    rows = min(tokens, most)
    logits, table = s * rows * words, 4 * words * config.width
    later = tokens <= most and tokens * s <= 4 * config.width and dtype != "float16"
    block = min(_COLUMNS, config.vocab_size) * config.width
    passing = 2.0 * s * tokens * config.width + 4 * rows * config.width
    if s == 2:
        whole = 0.0 if tokens <= most else table / 2  # the head's copy, for several chunks
        passing += max(whole + (0 if later else 2 * block), 2 * block, whole + 4 * min(_PASS, rows * config.vocab_size))
    else:
        passing += 4 * min(_PASS, rows * config.vocab_size)
    return (logits, passing, True) if later else (table, passing + logits, False)


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
