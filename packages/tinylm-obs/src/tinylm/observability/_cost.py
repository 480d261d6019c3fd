"""tinylm-obs · what an operation of torch costs: FLOPs and bytes from its name and the shapes of its inputs.

Products of matrices and attention are counted exactly (a multiplication and an addition are two); of everything else
the largest input's numbers, one operation each. Bytes: every input read once, the result written once. It does NOT
know the caches: an operation on data that is still there may beat memory's bandwidth. Next: `_trace.py`.
"""

from collections.abc import Sequence
from math import prod

_BYTES = {
    **{"double": 8, "long int": 8, "c10::complex<float>": 8, "float": 4, "int": 4},
    **{"c10::BFloat16": 2, "c10::Half": 2, "short int": 2, "signed char": 1, "unsigned char": 1, "bool": 1},
}
_KINDS = {"double": "float64", "float": "float32", "c10::BFloat16": "bfloat16", "c10::Half": "float16"}
_LOOKS = (  # they move nothing: other sizes and strides on the same numbers
    "view reshape transpose t permute expand expand_as as_strided unsqueeze squeeze slice select narrow detach "
    "_unsafe_view unbind split split_with_sizes chunk alias empty empty_like empty_strided resize_ lift_fresh "
    "result_type item _local_scalar_dense is_nonzero set_ numpy_T view_as flatten unflatten movedim mT mH resolve_conj "
    "resolve_neg _has_compatible_shallow_copy_type new_empty new_empty_strided new_full new_zeros new_ones zeros "
    "zeros_like ones ones_like full full_like to contiguous type_as"  # the last call what does the work, if any is due
)
_FREE = frozenset(f"aten::{name}" for name in _LOOKS.split())
_PLACES = frozenset(f"aten::{name}" for name in ("gather", "scatter", "scatter_", "scatter_add", "scatter_add_"))
Shape = Sequence[int]


def kind(types: Sequence[str]) -> str:
    """The type of the numbers, as torch names it: that of the first input which is a tensor."""
    return next((_KINDS.get(name, name) for name in types if name in _BYTES), "")


def cost(name: str, shapes: Sequence[Shape], types: Sequence[str]) -> tuple[float, float]:
    """(FLOPs, bytes) of one call; (0, 0) for what only looks at the same memory in another way, and for autograd's
    nodes ("AddBackward0"), which call the operations that compute."""
    if name in _FREE or "::" not in name:
        return 0.0, 0.0
    tensors = [
        (shape, _BYTES[own]) for shape, own in zip(shapes, types, strict=False) if own in _BYTES and _is_shape(shape)
    ]
    if not tensors:
        return 0.0, 0.0
    product = _product(name, [shape for shape, _ in tensors])
    if name in _PLACES and len(tensors) > 1:
        tensors = tensors[1:]  # of the first only the places are touched that the second names
    elif name == "aten::embedding" and len(tensors) == 2:
        (table, size), (ids, _) = tensors
        tensors[0] = ((prod(ids), table[-1]), size)  # the rows that are asked for
    if product is None:
        largest = max(prod(shape) * size for shape, size in tensors)
        return float(max(prod(shape) for shape, _ in tensors)), float(sum(prod(s) * b for s, b in tensors) + largest)
    flops, written = product
    return flops, float(sum(prod(shape) * size for shape, size in tensors) + written * tensors[-1][1])


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list | tuple) and all(isinstance(size, int) for size in shape)


def _product(name: str, shapes: list[Shape]) -> tuple[float, float] | None:
    """(FLOPs, numbers written) of products and attention; None for everything else."""
    short = name.removeprefix("aten::")
    if short in ("mm", "bmm", "_int_mm") and len(shapes) >= 2:
        a, b = shapes[:2]
    elif short in ("addmm", "addmm_", "baddbmm", "baddbmm_") and len(shapes) >= 3:
        a, b = shapes[1:3]
    elif "scaled_dot_product" in short or short.startswith("_flash_attention"):
        return _attention(short, shapes)
    else:
        return None
    if len(a) < 2 or len(b) < 2:
        return None
    written = float(prod(a[:-1]) * b[-1])
    return 2 * written * a[-1], written


def _attention(name: str, shapes: list[Shape]) -> tuple[float, float] | None:
    """Two products forward, five backward (the pattern is computed again); counted in full, causal or not."""
    backward = "backward" in name
    query, key = (shapes[1:3] if backward else shapes[:2]) if len(shapes) >= 3 else ((), ())
    if len(query) != 4 or len(key) != 4:
        return None
    flops = 2.0 * prod(query) * key[2] * (5 if backward else 2)
    return flops, float(prod(query) * (3 if backward else 1))
