"""The rung in torch tensors: the transformer's logits, loss and gradients from the same files, without autograd."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode, resolve_name

import tinylm.model.tensors
from tinylm.model import ModelError, Transformer, TransformerConfig
from tinylm.model.scalar import derived
from tinylm.model.scalar import training as scalar_training
from tinylm.model.tensors import training
from tinylm.model.tensors.transformer import Transformer as Tensors

SHAPES = {
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tie_embeddings": False}),
    "llama": ("llama", {}),
    "llama, grouped, biases, tied": (
        "llama",
        {"kv_heads": 2, "bias": True, "attention_bias": True, "tie_embeddings": True},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, one kv head, untied, odd sizes": (
        "qwen3",
        {"kv_heads": 1, "heads": 3, "width": 26, "head_dim": 6, "mlp_width": 31, "tie_embeddings": False},
    ),
}


def text(batch=3, time=11, size=97, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids, targets = torch.randint(0, size, (2, batch, time), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = -100
    targets[0, 0] = 5
    return ids, targets


def pair(small, name, dtype="float64"):
    preset, overrides = SHAPES[name]
    model = small(preset, **overrides).double()
    return model, Tensors(model.config, dict(model.named_parameters()), dtype)


def autograd(model, ids, targets):
    """The reference: (logits, loss, gradients) of the transformer with the textbook loss."""
    logits = model(ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return logits.detach(), loss.detach(), dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_loss_and_gradients_are_the_transformers(name, small):
    model, ours = pair(small, name)
    for batch, time in ((3, 11), (1, 1), (2, 64)):
        ids, targets = text(batch, time)
        logits, loss, wanted = autograd(model, ids, targets)
        torch.testing.assert_close(ours.logits(ids), logits, atol=1e-12, rtol=1e-12)
        got, gradients = ours.loss_and_gradients(ids, targets)
        torch.testing.assert_close(got, loss, atol=0, rtol=1e-12)
        assert torch.equal(ours.loss(ids, targets), got)
        assert gradients.keys() == wanted.keys()
        for part, gradient in wanted.items():
            assert (gradients[part] - gradient).abs().max() <= 1e-10 * gradient.abs().max().clamp(min=1e-3), part


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_random_shapes(data):
    group, kv, half = (data.draw(st.integers(1, 3)) for _ in range(3))
    preset = data.draw(st.sampled_from(["gpt2", "llama", "qwen3"]))
    shape = {"kv_heads": kv * group if preset == "gpt2" else kv, "heads": kv * group, "head_dim": 2 * half}
    width = shape["heads"] * 2 * half if preset == "gpt2" else data.draw(st.integers(1, 20))
    shape |= {"mlp_width": data.draw(st.integers(1, 20)), "tie_embeddings": data.draw(st.booleans()), "width": width}
    model = Transformer(TransformerConfig.preset(preset, 13, data.draw(st.integers(1, 3)), context=9, **shape)).double()
    ids, targets = text(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), 13)
    _, loss, wanted = autograd(model, ids, targets)
    got, gradients = Tensors(model.config, dict(model.named_parameters()), "float64").loss_and_gradients(ids, targets)
    torch.testing.assert_close(got, loss, atol=0, rtol=1e-11)
    flat = torch.cat([wanted[name].flatten() for name in gradients])
    torch.testing.assert_close(gradients.flat, flat, atol=1e-10 * flat.abs().max().item(), rtol=0)


class Watch(TorchFunctionMode):
    """The name of every function of torch that is called, and whether autograd recorded any."""

    def __init__(self):
        super().__init__()
        self.names, self.recorded = set(), False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.add(resolve_name(function) or repr(function))
        self.recorded |= isinstance(out, torch.Tensor) and out.requires_grad
        return out


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_neither_autograd_nor_torch_nn(name, small):
    _, ours = pair(small, name)
    ids, targets = text()
    with Watch() as watch:
        _, gradients = ours.loss_and_gradients(ids, targets)
        training.Adam().step(ours.weights.flat, gradients.flat, 0.01)
    assert "torch.Tensor.addcdiv_" in watch.names  # it did watch
    assert not watch.recorded
    assert not [used for used in watch.names if ".nn." in used or "grad" in used or "backward" in used]
    with torch.inference_mode():  # where autograd cannot work
        again = ours.loss_and_gradients(ids, targets)[1].flat.clone()
    assert torch.equal(ours.loss_and_gradients(ids, targets)[1].flat, again)


def test_the_folder_names_neither():
    (folder,) = map(Path, tinylm.model.tensors.__path__)
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            parts = {part for name in names for part in name.split(".")}
            assert not parts & {"nn", "autograd", "grad", "requires_grad_"}, path


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 0.06), ("float16", 0.01)])
@pytest.mark.parametrize("name", SHAPES)
def test_other_dtypes_are_within_bounds_of_float64(name, dtype, bound, small):
    model, exact = pair(small, name)
    ours = Tensors(model.config, dict(model.named_parameters()), dtype)
    ids, targets = text()
    assert ours.logits(ids).dtype == getattr(torch, dtype)
    loss, gradients = exact.loss_and_gradients(ids, targets)
    got, rounded = ours.loss_and_gradients(ids, targets)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loss.item(), rel=bound / 5)
    assert (rounded.flat - gradients.flat).norm() <= bound * gradients.flat.norm()


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped, biases, tied", "qwen3, one kv head, untied, odd sizes"])
def test_what_a_block_keeps_is_what_the_table_says(name, small):
    _, ours = pair(small, name)
    config, (ids, _) = ours.config, text()
    _, (_, steps, _) = ours._forward(ids, keep=True)

    def storages(kept):
        if isinstance(kept, torch.Tensor):
            return {kept.untyped_storage().data_ptr(): kept.untyped_storage().nbytes() // 8}
        return {place: size for part in kept or () for place, size in storages(part).items()}

    heads, size = config.heads + config.kv_heads, config.head_dim
    per_token = 2 * config.width + 2 + 2 * heads * size + config.heads
    per_token += config.mlp_width * (2 if config.activation == "swiglu" else 1)
    per_token += heads * (size + 1) if config.qk_norm else 0
    assert [sum(storages(step).values()) for step in steps] == [per_token * ids.numel()] * config.depth


def test_one_training_curve_with_the_scalar_rung(tmp_path):
    names, config = scalar_training.made_names(40), scalar_training.CONFIG
    scalar = derived.GPT(config, scalar_training.start(config))
    scalar.save(tmp_path)
    exact, single, half = (Tensors.load(tmp_path, kind) for kind in ("float64", "float32", "bfloat16"))
    wanted = scalar_training.train(scalar, names, 20)
    assert training.train(exact, names, 20) == pytest.approx(wanted, rel=1e-10)
    assert training.train(single, names, 20) == pytest.approx(wanted, rel=1e-3)
    assert training.train(half, names, 20) == pytest.approx(wanted, rel=0.05)
    assert wanted[-1] < wanted[0] < math.log(config.vocab_size) + 0.1


@pytest.mark.parametrize(
    ("ids", "targets"),
    [
        ([1, 2], [1, 2]), ([[]], [[]]), ([[0.5]], [[1]]), ([[97]], [[1]]), ([[-1]], [[1]]), ([[1] * 65], [[1] * 65]),
        ([[1, 2]], [[1]]), ([[1]], [[97]]), ([[1]], [[-1]]), ([[1]], [[0.5]]), ([[True]], [[1]]),
    ],
)  # fmt: skip
def test_ids_and_targets_that_do_not_fit_are_refused(ids, targets, small):
    _, model = pair(small, "llama")
    for method in (model.loss, model.loss_and_gradients):
        with pytest.raises(ModelError, match=r"wanted .*got"):
            method(ids, targets)


@pytest.mark.parametrize("dtype", ["int64", torch.int64, "float8"])
def test_dtypes_that_cannot_be_are_refused(dtype, small):
    with pytest.raises(ModelError, match="dtype: wanted one of"):
        pair(small, "llama", dtype)
