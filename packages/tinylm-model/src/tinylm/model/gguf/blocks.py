"""The number types of a GGUF file: how a block of bytes becomes numbers, and back for those that we write.

ggml cuts each row of a matrix into blocks of 32 or 256 numbers; a block keeps small whole numbers and the scales that
turn them back. Every function below is one type, its layout and equation in the docstring: d, m are float16 in the
file, all arithmetic is float32. (n, bytes) uint8 -> (n, numbers) float32. Not here: files (reader.py), how llama.cpp
chooses 4-bit numbers (we write none). Source: ggml-quants.c of the ggml project; the layouts are the file's. Next:
reader.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.model._errors import ModelError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_STEP = 1 << 14  # blocks decoded at a time: the intermediate arrays stay a few MB


def _halves(blocks: Bytes, at: int) -> Floats:
    """(n, 1): the float16 at byte `at` of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """(..., k) bytes -> (..., 2, k): the low four bits of all, then the high four bits of all."""
    return np.stack((packed & 15, packed >> 4), axis=-2)


def f32(blocks: Bytes) -> Floats:
    """x, as it is."""
    return np.ascontiguousarray(blocks).view(np.float32)


def f16(blocks: Bytes) -> Floats:
    """x, IEEE half precision."""
    return _halves(blocks, 0)


def bf16(blocks: Bytes) -> Floats:
    """x, the upper half of a float32."""
    high = np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32)
    return (high << 16).view(np.float32)


def q8_0(blocks: Bytes) -> Floats:
    """d | 32 x int8 q:  x = d q.  34 bytes for 32 numbers, 8.5 bits each."""
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _halves(blocks, 0)


def q4_0(blocks: Bytes) -> Floats:
    """d | 16 bytes, two 4-bit q each:  x = d (q - 8).  q of number i is in byte i % 16, low bits first; 4.5 bits."""
    q = _nibbles(blocks[:, 2:]).reshape(len(blocks), 32).astype(np.int8) - np.int8(8)
    return _halves(blocks, 0) * q.astype(np.float32)


def q4_1(blocks: Bytes) -> Floats:
    """d, m | 16 bytes, two 4-bit q each:  x = d q + m.  5 bits a number."""
    q = _nibbles(blocks[:, 4:]).reshape(len(blocks), 32).astype(np.float32)
    return _halves(blocks, 0) * q + _halves(blocks, 2)


def q4_k(blocks: Bytes) -> Floats:
    """d, m | 12 bytes: 8 scales s and 8 minima t of 6 bits | 128 bytes: 256 q of 4 bits.  4.5 bits a number.

    x = (d s) q - (m t) for each group of 32. Bytes 0-3 hold s₀..s₃ and bytes 4-7 t₀..t₃ in their low six bits; bytes
    8-11 hold the low four bits of s₄..s₇ (low) and t₄..t₇ (high), whose upper two are at the top of bytes 0-3 and 4-7.
    """
    a, b, c = (blocks[:, 4 + i : 8 + i] for i in (0, 4, 8))
    scales = np.concatenate((a & 63, (c & 15) | ((a >> 6) << 4)), axis=1).astype(np.float32)
    minima = np.concatenate((b & 63, (c >> 4) | ((b >> 6) << 4)), axis=1).astype(np.float32)
    q = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).astype(np.float32)
    d, m = _halves(blocks, 0) * scales, _halves(blocks, 2) * minima
    return (d[..., None] * q - m[..., None]).reshape(len(blocks), 256)


def q6_k(blocks: Bytes) -> Floats:
    """128 bytes: low 4 bits | 64 bytes: high 2 bits | 16 x int8 scale s | d.  6.56 bits a number.

    x = (d s) (q - 32), a scale for each 16. Of 128 numbers: 64 bytes hold the low bits of the first 64 (low) and of
    the last 64 (high), 32 bytes the high bits of number i in bits 2 (i // 32) of byte i % 32.
    """
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 8, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (pairs & 3).reshape(-1, 8, 32)
    q = (low | (high << 4)).astype(np.int8) - np.int8(32)
    scales = _halves(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    return (scales[..., None] * q.reshape(-1, 16, 16).astype(np.float32)).reshape(len(blocks), 256)


def encode_f32(numbers: Floats) -> Bytes:
    """(n, 1) -> (n, 4)."""
    return np.ascontiguousarray(numbers, np.float32).view(np.uint8)


def encode_f16(numbers: Floats) -> Bytes:
    """(n, 1) -> (n, 2), rounded to nearest even: at most 2^-11 of x lost, 2^-25 below 2^-14; above 65504 infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(numbers).astype(np.float16).view(np.uint8)


def encode_bf16(numbers: Floats) -> Bytes:
    """(n, 1) -> (n, 2), rounded to nearest even: at most 2^-8 of x lost."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint8)


def encode_q8_0(numbers: Floats) -> Bytes:
    """(n, 32) -> (n, 34):  d = max|x| / 127,  q = round(x / d), halves away from zero, d kept as float16.

    So |x - d q| <= max|x| (1/254 + 2^-11): half a step of q, and what float16 takes of d (more for d below 2^-14).
    """
    d = np.abs(numbers).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        scaled = numbers * np.where(d == 0, np.float32(0), np.float32(1) / d)
        half = d.astype(np.float16)
    magnitude = np.abs(scaled)
    floor = np.floor(magnitude)
    q = np.sign(scaled) * (floor + (magnitude - floor >= 0.5))
    return np.concatenate((half.view(np.uint8), q.astype(np.int8).view(np.uint8)), axis=1)


@dataclass(frozen=True)
class BlockType:
    """A number type: its name in ggml and number in the file, numbers and bytes a block, and both ways."""

    name: str
    id: int
    numbers: int
    size: int
    decode: Callable[[Bytes], Floats]
    encode: Callable[[Floats], Bytes] | None = None
    largest: float = 0.0  # the largest number that can be written


TYPES = {
    kind.id: kind
    for kind in (
        BlockType("F32", 0, 1, 4, f32, encode_f32, 3.4028234e38),
        BlockType("F16", 1, 1, 2, f16, encode_f16, 65504.0),
        BlockType("Q4_0", 2, 32, 18, q4_0),
        BlockType("Q4_1", 3, 32, 20, q4_1),
        BlockType("Q8_0", 8, 32, 34, q8_0, encode_q8_0, 65504.0 * 127),
        BlockType("Q4_K", 12, 256, 144, q4_k),
        BlockType("Q6_K", 14, 256, 210, q6_k),
        BlockType("BF16", 30, 1, 2, bf16, encode_bf16, 3.3895e38),
    )
}
NAMED = {kind.name: kind for kind in TYPES.values()}
# what else a file may hold, so that a refusal can name it
OTHERS = {6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"}
OTHERS |= {18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16"}
OTHERS |= {26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


def decode(raw: Bytes, kind: BlockType) -> Floats:
    """The numbers of a tensor's bytes, (numbers,) float32; a few thousand blocks at a time."""
    blocks = raw.reshape(-1, kind.size)
    out = np.empty((len(blocks), kind.numbers), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # a scale that is no number: whoever reads the tensor checks
        for start in range(0, len(blocks), _STEP):
            out[start : start + _STEP] = kind.decode(blocks[start : start + _STEP])
    return out.reshape(-1)


def encode(numbers: NDArray[Any], kind: BlockType) -> Bytes:
    """The bytes of an array (..., a multiple of the block); ModelError where the type cannot hold a number of it."""
    if kind.encode is None or numbers.shape[-1] % kind.numbers:
        raise ModelError(f"wanted rows of a multiple of {kind.numbers} in {kind.name}, got {numbers.shape[-1]}")
    most = float(np.abs(numbers).max(initial=0))
    if not most <= kind.largest:  # NaN too
        raise ModelError(f"wanted numbers of at most {kind.largest:.6g} ({kind.name}), got {most:.6g}")
    flat = numbers.reshape(-1, kind.numbers)
    parts = [kind.encode(flat[i : i + _STEP].astype(np.float32)) for i in range(0, len(flat), _STEP)]
    return np.concatenate(parts).reshape(-1) if parts else np.empty(0, np.uint8)
