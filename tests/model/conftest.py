"""Small models that the model tests share: one of each family, with weights large enough to matter."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its kernels are then run by its interpreter
    os.environ["TRITON_INTERPRET"] = "1"

from tinylm.model import Transformer, TransformerConfig


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
