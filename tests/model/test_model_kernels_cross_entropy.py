"""The head's kernel beside its reference: loss and both gradients, targets that are ignored and that are none.

As test_model_kernels.py, by the interpreter on a CPU, for real on a GPU.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux only")

from tinylm.model.kernels import cross_entropy
from tinylm.model.kernels.cross_entropy import cross_entropy_reference, linear_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
few = settings(max_examples=8, deadline=None, derandomize=True)


@few
@given(
    rows=st.integers(0, 30), vocab=st.integers(1, 200), ignored=st.sampled_from([0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]), layout=st.integers(0, 3),
)  # fmt: skip
def test_linear_cross_entropy(rows, vocab, ignored, reduction, layout, numbers, same):
    torch.manual_seed(rows)
    targets = torch.randint(0, vocab, (rows,), device=DEVICE)
    targets[torch.rand(rows, device=DEVICE) < ignored] = -100

    def plain(hidden, weight):
        losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
        if reduction == "none":
            return losses
        return losses.sum() / (max(1, int((targets != -100).sum())) if reduction == "mean" else 1)

    before = cross_entropy.CHUNK_NUMBERS, cross_entropy.BLOCK
    cross_entropy.CHUNK_NUMBERS, cross_entropy.BLOCK = 7 * vocab, 64  # several chunks, several blocks a row
    try:
        hidden, weight = numbers(rows, 8, layout=layout), numbers(vocab, 8, layout=layout)
        same(lambda h, w: linear_cross_entropy(h, w, targets, reduction), plain, hidden, weight, atol=1e-4)
    finally:
        cross_entropy.CHUNK_NUMBERS, cross_entropy.BLOCK = before


def test_a_graph_that_is_kept_gives_its_gradients_again():
    torch.manual_seed(0)
    chosen = [torch.randn(rows, 8, device=DEVICE).requires_grad_() for rows in (5, 11)]
    loss = linear_cross_entropy(*chosen, torch.arange(5, device=DEVICE), "mean")
    first = torch.autograd.grad(loss, chosen, torch.tensor(3.0, device=DEVICE), retain_graph=True)
    again = torch.autograd.grad(loss, chosen, torch.tensor(3.0, device=DEVICE))
    for wanted, got in zip(first, again, strict=True):
        assert torch.equal(got, wanted)


def test_the_cross_entropy_reference_is_torchs(numbers):
    logits, targets = numbers(6, 9), torch.tensor([0, 8, -100, 3, 3, 1], device=DEVICE)
    losses = F.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(cross_entropy_reference(logits.detach(), targets), (losses.detach(), gradient))


@pytest.mark.parametrize("target", [50, 55, -1, -101])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_target_outside_the_vocabulary_is_not_a_number(target, reduction, numbers):
    hidden, weight = numbers(3, 8), numbers(50, 8)
    loss = linear_cross_entropy(hidden, weight, torch.tensor([1, target, -100], device=DEVICE), reduction)
    if reduction == "none":
        assert loss.isnan().tolist() == [False, True, False]
        loss = loss.sum()
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.isnan().any(dim=1).tolist()[1:] == [True, False]
