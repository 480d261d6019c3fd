"""The rung in NumPy: the transformer's logits, loss and gradients from the same files, for every shape."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tinylm.model import ModelError, Transformer
from tinylm.model.arrays import training
from tinylm.model.arrays.checkpoint import read_checkpoint
from tinylm.model.arrays.transformer import Transformer as Arrays
from tinylm.model.scalar import derived
from tinylm.model.scalar import training as scalar_training

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


@pytest.fixture(params=SHAPES)
def folder(request, small, tmp_path):
    """A float64 checkpoint of each shape."""
    preset, overrides = SHAPES[request.param]
    small(preset, **overrides).double().save(tmp_path)
    return tmp_path


def text(batch=3, time=11, size=97, seed=0):
    generator = np.random.default_rng(seed)
    ids, targets = generator.integers(0, size, (2, batch, time))
    targets[generator.random(targets.shape) < 0.2] = -100
    return ids, targets


def test_logits_loss_and_gradients_are_the_transformers(folder):
    ours, model = Arrays.load(folder), Transformer.load(folder)
    assert ours.weights.keys() == dict(model.named_parameters()).keys()
    for batch, time in ((3, 11), (1, 1), (2, 64)):
        ids, targets = text(batch, time)
        targets[0, 0] = 5
        logits = model(torch.tensor(ids))
        torch.testing.assert_close(torch.tensor(ours.logits(ids)), logits.detach(), atol=1e-10, rtol=1e-10)
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
        model.zero_grad()
        wanted.backward()
        loss, gradients = ours.loss_and_gradients(ids, targets)
        assert loss == pytest.approx(wanted.item(), rel=1e-12)
        assert ours.loss(ids, targets) == loss
        for name, parameter in model.named_parameters():
            gradient = parameter.grad.numpy()
            assert np.abs(gradients[name] - gradient).max() <= 1e-10 * max(np.abs(gradient).max(), 1e-3), name


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_gradients_are_finite_differences(rate, folder):
    model, (ids, targets) = Arrays.load(folder), text(2, 7)

    def loss_and_gradients():
        return model.loss_and_gradients(ids, targets, rate, np.random.default_rng(3) if rate else None)

    gradients = loss_and_gradients()[1].flat.copy()
    chance, step = np.random.default_rng(1), 1e-3
    starts = np.cumsum([0] + [array.size for array in model.weights.values()])
    for start, array in zip(starts, model.weights.values(), strict=False):
        at = start + chance.integers(array.size)
        middle, around = model.weights.flat[at], []
        for offset in (-2, -1, 1, 2):
            model.weights.flat[at] = middle + offset * step
            around.append(loss_and_gradients()[0])
        model.weights.flat[at] = middle
        slope = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * step)
        assert gradients[at] == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_dropout_draws_anew_and_only_when_asked(folder):
    model, (ids, targets) = Arrays.load(folder), text()
    plain = model.loss(ids, targets)
    generator = np.random.default_rng(0)
    losses = [model.loss_and_gradients(ids, targets, 0.3, generator)[0] for _ in range(3)]
    assert len({plain, *losses}) == 4
    assert model.loss_and_gradients(ids, targets)[0] == plain


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_files_of_other_types_and_in_shards(preset, dtype, small, tmp_path):
    model = small(preset).to(getattr(torch, dtype))
    model.save(tmp_path)
    ours, exact = Arrays.load(tmp_path), Transformer.load(tmp_path, dtype="float32")
    assert ours.weights.flat.dtype == np.float32
    for name, parameter in exact.named_parameters():
        assert np.array_equal(ours.weights[name], parameter.detach().numpy()), name
    ids, targets = text()
    wanted = exact(torch.tensor(ids)).detach()
    torch.testing.assert_close(torch.tensor(ours.logits(ids)), wanted, atol=1e-4, rtol=1e-4)
    assert Arrays.load(tmp_path, "float64").loss(ids, targets) == pytest.approx(ours.loss(ids, targets), rel=1e-5)

    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    half = sorted(tensors)[: len(tensors) // 2]
    shards = {"a.safetensors": half, "b.safetensors": sorted(set(tensors) - set(half))}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    assert np.array_equal(Arrays.load(tmp_path).weights.flat, ours.weights.flat)


def test_one_training_curve_with_the_scalar_rung(tmp_path):
    names, config = scalar_training.made_names(40), scalar_training.CONFIG
    scalar = derived.GPT(config, scalar_training.start(config))
    scalar.save(tmp_path)
    arrays, narrow = Arrays.load(tmp_path), Arrays.load(tmp_path, "float32")
    wanted = scalar_training.train(scalar, names, 30)
    assert training.train(arrays, names, 30) == pytest.approx(wanted, rel=1e-10)
    assert training.train(narrow, names, 30) == pytest.approx(wanted, rel=1e-3)


def test_it_works_where_torch_cannot_be_imported(small, tmp_path):
    model = small("qwen3")
    model.save(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None\n"  # importing it raises
        "from tinylm.model.arrays.transformer import Transformer\n"
        "print(Transformer.load(sys.argv[1]).loss([[1, 2, 3]], [[2, 3, 4]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    wanted = model.loss(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]])).item()
    assert float(done.stdout) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("ids", "targets"),
    [
        ([1, 2], [1, 2]), ([[]], [[]]), ([[0.5]], [[1]]), ([[97]], [[1]]), ([[-1]], [[1]]), ([[1] * 65], [[1] * 65]),
        ([[1, 2]], [[1]]), ([[1]], [[97]]), ([[1]], [[-1]]), ([[1]], [[0.5]]),
    ],
)  # fmt: skip
def test_ids_and_targets_that_do_not_fit_are_refused(ids, targets, small, tmp_path):
    small("llama").save(tmp_path)
    model = Arrays.load(tmp_path)
    for method in (model.loss, model.loss_and_gradients):
        with pytest.raises(ModelError, match=r"wanted .*got"):
            method(ids, targets)


@pytest.mark.parametrize(("rate", "generator"), [(0.5, None), (1.0, np.random.default_rng()), (-0.1, None)])
def test_dropout_that_cannot_be_is_refused(rate, generator, small, tmp_path):
    small("llama").save(tmp_path)
    with pytest.raises(ModelError, match="dropout: wanted"):
        Arrays.load(tmp_path).loss_and_gradients([[1]], [[1]], rate, generator)


def test_files_that_do_not_fit_are_refused(small, tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        Arrays.load(tmp_path)
    model = small("qwen3")
    model.save(tmp_path)
    with pytest.raises(ModelError, match="float32 or float64, got int64"):
        Arrays.load(tmp_path, "int64")
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, fields = path.read_bytes(), config.read_text()
    for part in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:part])
        with pytest.raises(ModelError, match="whole safetensors"):
            read_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match="got neither"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other"}}')
    with pytest.raises(ModelError, match="weight_map of file names"):
        read_checkpoint(tmp_path)
    path.write_bytes(whole)
    config.write_text("[1]")
    with pytest.raises(ModelError, match="JSON object, got list"):
        read_checkpoint(tmp_path)
    config.write_text("{")
    with pytest.raises(ModelError, match="wanted JSON"):
        read_checkpoint(tmp_path)
    config.write_text(json.dumps(json.loads(fields) | {"hidden_size": 50}))
    with pytest.raises(ModelError, match="do not belong together"):
        read_checkpoint(tmp_path)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[0, 0] = float("inf")
    model.save(tmp_path)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight, got 1 that are NaN"):
        read_checkpoint(tmp_path)
