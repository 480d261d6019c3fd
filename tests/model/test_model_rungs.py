"""One conformance suite: every rung gives the same logits, loss and gradients from one checkpoint of each shape that it
carries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinylm.model import ModelError, Transformer, kernels
from tinylm.model._layout import tensors
from tinylm.model.arrays.transformer import Transformer as Arrays
from tinylm.model.scalar import derived, gpt
from tinylm.model.tensors.transformer import Transformer as Tensors

IDS, TARGETS = [3, 0, 28, 3, 3, 7, 11], [0, 28, 3, -100, 7, 11, 28]


def in_file_layout(config, gradients):
    """By our names -> by the file's, as the scalar rungs have them."""
    out = {}
    for name, stored in tensors(config).items():
        whole = np.concatenate([gradients[part] for part in stored.parts])
        out[name] = whole.T if stored.transposed else whole
    return out


def scalar(kind):
    def run(folder):
        model = kind.load(folder)
        loss, gradients = model.loss_and_gradients(IDS, TARGETS)
        assert model.loss(IDS, TARGETS) == pytest.approx(loss, rel=1e-13)
        return model.logits(IDS), loss, gradients

    return run


def arrays(folder):
    model = Arrays.load(folder)
    loss, gradients = model.loss_and_gradients([IDS], [TARGETS])
    return model.logits([IDS])[0], loss, in_file_layout(model.config, gradients)


def tensors_by_hand(folder):
    model = Tensors.load(folder, "float64")
    loss, gradients = model.loss_and_gradients([IDS], [TARGETS])
    found = {name: gradient.numpy() for name, gradient in gradients.items()}
    return model.logits([IDS])[0].numpy(), loss.item(), in_file_layout(model.config, found)


def transformer(folder):
    """The reference: torch's autograd in float64."""
    model = Transformer.load(folder)
    logits = model(torch.tensor([IDS]))[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS))
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return logits.detach().numpy(), loss.item(), in_file_layout(model.config, gradients)


def fused(folder, dtype="float64"):
    """The transformer with its own loss, which has backwards by hand."""
    model = Transformer.load(folder, dtype)
    loss = model.loss(torch.tensor([IDS]), torch.tensor([TARGETS]))
    loss.backward()
    gradients = {name: parameter.grad.double().numpy() for name, parameter in model.named_parameters()}
    logits = model(torch.tensor([IDS]))[0].detach().numpy()
    return logits, loss.item(), in_file_layout(model.config, gradients)


def with_kernels(folder):
    """In float32, by Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed: it has wheels for Linux only")
    if torch.cuda.is_available():
        pytest.skip("on a GPU: tests/model/test_model_cuda.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_DEVICES", {"cpu"})
        return fused(folder, "float32")


GPT2, MODERN = ("gpt2",), ("gpt2", "llama", "qwen3")
RUNGS = {  # what runs it, the shapes that it carries, the bound on logits and gradients
    "scalar, autograd": (scalar(gpt.GPT), GPT2, 1e-12),
    "scalar, derived": (scalar(derived.GPT), GPT2, 1e-12),
    "arrays": (arrays, MODERN, 1e-12),
    "tensors": (tensors_by_hand, MODERN, 1e-12),
    "transformer": (fused, MODERN, 1e-12),
    "kernels": (with_kernels, MODERN, 1e-5),
}


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("rung", "preset"), [(rung, shape) for rung, (_, shapes, _) in RUNGS.items() for shape in shapes]
)
def test_logits_loss_and_gradients_are_the_transformers(rung, preset, tie, small, tmp_path):
    shape = {"width": 12, "heads": 3, "mlp_width": 20, "context": 9, "vocab_size": 29, "tie_embeddings": tie}
    small(preset, **shape | ({} if preset == "gpt2" else {"kv_heads": 1, "head_dim": 6})).double().save(tmp_path)
    run, _, bound = RUNGS[rung]
    logits, loss, gradients = run(tmp_path)
    wanted_logits, wanted_loss, wanted = transformer(tmp_path)
    assert np.abs(np.array(logits) - wanted_logits).max() <= bound
    assert loss == pytest.approx(wanted_loss, rel=bound)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert np.abs(np.array(gradients[name]) - gradient).max() <= bound, name


@pytest.mark.parametrize("load", [gpt.GPT.load, derived.GPT.load, Arrays.load, Tensors.load, Transformer.load])
def test_what_no_rung_opens(load, small, tmp_path):
    with pytest.raises(ModelError, match="wanted"):
        load(tmp_path)
    small("gpt2", width=12, heads=3, mlp_width=20, context=9, vocab_size=29).save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ModelError, match="whole safetensors"):
        load(tmp_path)
