"""The attention kernels beside their reference: shapes, layouts, windows, sequences of different lengths, both passes.

As test_model_kernels.py, by the interpreter on a CPU, for real on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux only")

from tinylm.model.kernels import attention_backward, attention_forward
from tinylm.model.kernels.attention import attention_reference, flash_attention, flash_attention_varlen

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
few = settings(max_examples=8, deadline=None, derandomize=True)


@few
@given(
    batch=st.integers(1, 2), kv_heads=st.integers(1, 2), group=st.integers(1, 3), queries=st.integers(0, 90),
    keys=st.integers(0, 90), size=st.sampled_from([1, 16, 20, 64, 80, 96, 128]),
    window=st.sampled_from([None, None, 1, 7, 40, 1000]), layout=st.integers(0, 3),
)  # fmt: skip
def test_attention(batch, kv_heads, group, queries, keys, size, window, layout, numbers, same):
    """Also with fewer keys than queries: the first of these see nothing, and give zeros."""
    torch.manual_seed(queries)
    q = numbers(batch, kv_heads * group, queries, size, layout=layout)
    k, v = numbers(batch, kv_heads, keys, size, layout=layout), numbers(batch, kv_heads, keys, size)
    same(
        lambda q, k, v: flash_attention(q, k, v, window), lambda q, k, v: attention_reference(q, k, v, window), q, k, v
    )


@pytest.mark.parametrize("window", [None, 100])
def test_attention_over_many_blocks(window, numbers, same):
    """Blocks on the diagonal, on the window's edge, and whole ones between."""
    torch.manual_seed(0)
    q, k, v = (numbers(1, 1, 300, 16) for _ in range(3))
    same(
        lambda q, k, v: flash_attention(q, k, v, window), lambda q, k, v: attention_reference(q, k, v, window), q, k, v
    )


@few
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=3),
    window=st.sampled_from([None, None, 5]), same_keys=st.booleans(),
)  # fmt: skip
def test_attention_of_sequences_of_different_lengths(lengths, window, same_keys, numbers, same):
    torch.manual_seed(len(lengths))
    if same_keys:
        lengths = [(queries, queries) for queries, _ in lengths]
    starts, key_starts = (
        torch.tensor([0, *part], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(DEVICE)
        for part in zip(*lengths, strict=True)
    )
    longest, longest_keys = (max(part) for part in zip(*lengths, strict=True))
    q, k, v = numbers(starts[-1], 4, 16, layout=3), numbers(key_starts[-1], 2, 16), numbers(key_starts[-1], 2, 16)

    def kernel(q, k, v):
        if same_keys:
            return flash_attention_varlen(q, k, v, starts, longest, window)
        return flash_attention_varlen(q, k, v, starts, longest, window, key_starts, longest_keys)

    def reference(q, k, v):
        pieces = [
            attention_reference(*(x.transpose(0, 1)[None] for x in parts), window)[0].transpose(0, 1)
            for parts in zip(
                q.split([a for a, _ in lengths]), k.split([b for _, b in lengths]), v.split([b for _, b in lengths]),
                strict=True,
            )
        ]  # fmt: skip
        return torch.cat(pieces)

    same(kernel, reference, q, k, v)


@pytest.mark.parametrize(("size", "window"), [(64, None), (64, 70), (128, None)])
def test_attention_in_float16(size, window):
    """The blocks of 16-bit types, which are others than float32's: within 4 roundings of 2^-11 of float64."""
    torch.manual_seed(0)
    q, k, v, dy = (torch.randn(1, heads, 200, size, device=DEVICE).half() for heads in (2, 1, 1, 2))
    inputs, exact = ([x.to(kind).requires_grad_() for x in (q, k, v)] for kind in (torch.half, torch.double))
    got, wanted = flash_attention(*inputs, window), attention_reference(*exact, window)
    pairs = zip(torch.autograd.grad(got, inputs, dy), torch.autograd.grad(wanted, exact, dy.double()), strict=True)
    for mine, theirs in ((got, wanted), *pairs):
        assert (mine.double() - theirs).abs().max() <= 4 * 2**-11 * theirs.abs().max()


def test_the_same_gradients_bit_for_bit(numbers):
    torch.manual_seed(0)
    q, k, v = numbers(1, 4, 70, 16), numbers(1, 2, 70, 16), numbers(1, 2, 70, 16)
    runs = [torch.autograd.grad(flash_attention(q, k, v).sin().sum(), (q, k, v)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_every_grid_has_one_axis(monkeypatch, numbers, same):
    """A second one would end at 65,535 programs: so many sequences and heads are a batch."""
    grids = []

    class Recorded:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            grids.append(grid)
            return self.kernel[grid]

    for module, name in ((attention_forward, "_forward"), (attention_backward, "_delta"),
                         (attention_backward, "_key_gradients"), (attention_backward, "_query_gradients")):  # fmt: skip
        monkeypatch.setattr(module, name, Recorded(getattr(module, name)))
    q, k = numbers(2, 4, 70, 8), numbers(2, 2, 70, 8)
    same(flash_attention, attention_reference, q, k, k)
    assert [len(grid) for grid in grids] == [1, 1, 1, 1]
