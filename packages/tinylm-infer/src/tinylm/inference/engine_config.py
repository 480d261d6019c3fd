"""tinylm.inference: how much an engine may use at a time, in vLLM's names. Values and their checks; no torch here."""

from dataclasses import dataclass

from tinylm.inference._errors import InferenceError
from tinylm.model import TransformerConfig

#: What the cache takes where nothing else is said: room for so many full contexts, within so many bytes.
CONTEXTS, BYTES = 16, 1 << 30


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """- `block_size`: tokens of a cache block. `kv_cache_memory_bytes`: of keys and values; None: room for 16 full
      contexts within 1 GiB, and for one at least.
    - `max_num_seqs`: texts written at once, the others wait. `max_num_batched_tokens`: tokens read in one step; a
      longer prompt is read in several, with the other texts' tokens beside it.
    - `max_model_len`: of prompt and answer together, in tokens; None: the model's context.
    - `enable_prefix_caching`: a text that begins as an earlier one shares its blocks.
    - `batch_invariant`: the same bits whatever else is in the batch and however a prompt is cut, in bfloat16 too, for
      fixed-shape tiles of work (tiles.py): slower.
    """

    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 512
    max_model_len: int | None = None
    enable_prefix_caching: bool = True
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "max_model_len"):
            value = getattr(self, name)
            if name in ("kv_cache_memory_bytes", "max_model_len") and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InferenceError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("enable_prefix_caching", "batch_invariant"):
            if not isinstance(getattr(self, name), bool):
                raise InferenceError(f"{name} must be True or False, got {getattr(self, name)!r}")

    def context(self, model: TransformerConfig) -> int:
        """How many tokens a text may have. InferenceError where the model has fewer positions."""
        if self.max_model_len is not None and self.max_model_len > model.context:
            raise InferenceError(f"max_model_len: the model's context is {model.context}, got {self.max_model_len}")
        return self.max_model_len or model.context

    def block_count(self, model: TransformerConfig, bytes_per_number: int) -> int:
        """How many blocks the cache has. InferenceError where not even one fits."""
        block = 2 * model.depth * model.kv_heads * model.head_dim * self.block_size * bytes_per_number
        context = -(-self.context(model) // self.block_size)
        if self.kv_cache_memory_bytes is None:
            return max(context, min(CONTEXTS * context, BYTES // block))
        if self.kv_cache_memory_bytes < block:
            raise InferenceError(
                f"kv_cache_memory_bytes: one block of {self.block_size} tokens takes {block} bytes, got "
                f"{self.kv_cache_memory_bytes}"
            )
        return self.kv_cache_memory_bytes // block
