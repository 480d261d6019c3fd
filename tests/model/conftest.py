"""What the model tests share: small models, one of each family, with weights large enough to matter; how to compare."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its kernels are then run by its interpreter
    os.environ["TRITON_INTERPRET"] = "1"

from tinylm.model import Transformer, TransformerConfig

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _small(preset: str, **overrides: object) -> Transformer:
    fields = {"width": 48, "heads": 4, "head_dim": 16, "mlp_width": 80, "context": 64} | overrides
    if preset == "gpt2":
        fields["head_dim"] = fields["width"] // fields["heads"]
    model = Transformer(
        TransformerConfig.preset(preset, fields.pop("vocab_size", 97), fields.pop("depth", 2), **fields)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def _numbers(*shape: int, layout: int = 0) -> torch.Tensor:
    """Random numbers of `shape`: 0 in order in memory, 1 with the two middle axes swapped there, 2 every other one of a
    larger tensor, 3 a slice that begins somewhere in a larger one."""
    if layout == 1 and len(shape) > 2:
        x = torch.randn(shape[0], shape[2], shape[1], *shape[3:]).transpose(1, 2)
    elif layout == 2:
        x = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    elif layout == 3:
        x = torch.randn(*(size + 3 for size in shape))[tuple(slice(1, size + 1) for size in shape)]
    else:
        x = torch.randn(shape)
    return x.to(_DEVICE).requires_grad_()


def _same(kernel, reference, *inputs, atol=2e-5) -> None:
    """Both give the same result, and the same gradients for an upstream gradient that is not in order in memory."""
    got, wanted = kernel(*inputs), reference(*inputs)
    upstream = torch.randn(*wanted.shape[:-1], wanted.shape[-1] + 1)[..., 1:] if wanted.ndim else torch.randn(())
    torch.testing.assert_close(got, wanted, atol=atol, rtol=1e-4)
    upstream = upstream.to(_DEVICE)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=1e-4)


@pytest.fixture(scope="session")
def numbers():
    """numbers(*shape, layout=0) -> random numbers in one of the orders in memory that a kernel must take."""
    return _numbers


@pytest.fixture(scope="session")
def same():
    """same(kernel, reference, *inputs, atol=2e-5): asserts that both agree, forward and backward."""
    return _same


@pytest.fixture
def small():
    """small(preset, **overrides) -> a small Transformer in eval mode, the same weights each time."""
    torch.manual_seed(0)
    return _small


@pytest.fixture
def ids():
    """ids(batch, time, vocab_size=97) -> random ids, the same each time."""

    def make(batch: int, time: int, vocab_size: int = 97) -> torch.Tensor:
        return torch.randint(0, vocab_size, (batch, time), generator=torch.Generator().manual_seed(2))

    return make


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """These models are too small for two threads to pay, and tests run beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
