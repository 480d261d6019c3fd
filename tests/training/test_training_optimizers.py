"""AdamW and Muon step by step against torch's and against the formulas in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tinylm.training import AdamW, Muon, TrainingError
from tinylm.training.optimizers import loop, orthogonalize


def parameters(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(mine: list[torch.nn.Parameter], seed: int, absent: int | None = None) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for number, parameter in enumerate(mine):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.grad = None if number == absent else gradient * 10.0 ** (seed % 5 - 2)


SHAPES = ((7, 5), (4, 9), (6,), (2, 3, 4))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("lr", "betas", "eps"), [(1e-3, (0.9, 0.999), 1e-8), (3e-2, (0.8, 0.95), 1e-5)])
def test_adamw_equals_torchs(weight_decay, lr, betas, eps):
    mine, theirs = parameters(*SHAPES), parameters(*SHAPES)
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    ours, reference = AdamW(mine, **options), torch.optim.AdamW(theirs, **options)
    for step in range(20):
        for these in (mine, theirs):
            give_gradients(these, step, absent=2 if step % 3 == 1 else None)
        ours.step()
        reference.step()
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_adamw_with_groups_of_their_own_options():
    def groups(these):
        first = {"params": these[:2], "lr": 1e-2, "weight_decay": 0.3}
        return [first, {"params": these[2:], "betas": (0.5, 0.6), "eps": 1e-3}]

    mine, theirs = parameters(*SHAPES), parameters(*SHAPES)
    ours, reference = AdamW(groups(mine), lr=2e-3), torch.optim.AdamW(groups(theirs), lr=2e-3)
    for step in range(20):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        ours.step()
        reference.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_adamw_is_the_formula():
    (parameter,) = parameters((5, 3), dtype=torch.float64)
    theta, m, v = parameter.detach().clone(), torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    optimizer = AdamW([parameter], lr=0.02, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.2)
    for t in range(1, 11):
        give_gradients([parameter], t)
        g = parameter.grad
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        corrected = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-6)
        theta = theta - 0.02 * (corrected + 0.2 * theta)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), theta, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32), (128, 8), (1, 7), (3, 24, 16)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    for seed in range(5):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        result = orthogonalize(matrix * 10.0 ** (seed - 2))
        assert result.shape == matrix.shape
        values = torch.linalg.svdvals(result.double())
        assert values.max() < 1.3
        # a few singular values of a square random matrix are near zero, and five steps do not lift those to one
        assert (values > 0.6).float().mean() >= (0.95 if shape[-1] == shape[-2] else 1.0)
        # the directions are those of the matrix: U Vᵀ has the largest inner product with it
        u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
        assert (result.double() * (u @ vt)).sum() > 0.9 * result.double().norm() * (u @ vt).norm()
        assert s.numel() == values.numel()


def test_orthogonalize_follows_the_quintic_exactly():
    matrix = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalize(matrix), u * s @ vt, atol=1e-6, rtol=1e-6)  # 1e-7 beside the norm
    torch.testing.assert_close(orthogonalize(matrix.T), (u * s @ vt).T, atol=1e-6, rtol=1e-6)
    assert torch.equal(orthogonalize(torch.zeros(4, 3)), torch.zeros(4, 3))


def _muon_by_hand(weights, momenta, gradients, lr, momentum, nesterov, weight_decay):
    """The formula of Muon's docstring, with the singular values mapped one by one."""
    for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        momenta[number] = momentum * momenta[number] + (1 - momentum) * gradient
        direction = (1 - momentum) * gradient + momentum * momenta[number] if nesterov else momenta[number]
        u, s, vt = torch.linalg.svd(direction, full_matrices=False)
        s = s / (s.norm(dim=-1, keepdim=True) + 1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        scale = math.sqrt(max(1.0, weight.shape[-2] / weight.shape[-1]))
        weights[number] = (1 - lr * weight_decay) * weight - lr * scale * (u * s.unsqueeze(-2)) @ vt


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_is_the_formula(nesterov, weight_decay):
    mine = parameters((7, 5), (4, 9), (2, 6, 3), dtype=torch.float64)
    optimizer = Muon(mine, lr=0.03, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)
    weights = [p.detach().clone() for p in mine]
    momenta = [torch.zeros_like(w) for w in weights]
    for step in range(10):
        give_gradients(mine, step)
        optimizer.step()
        _muon_by_hand(weights, momenta, [p.grad for p in mine], 0.03, 0.9, nesterov, weight_decay)
        for a, b in zip(mine, weights, strict=True):
            torch.testing.assert_close(a.detach(), b, atol=1e-9, rtol=1e-9)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no torch.optim.Muon")
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torchs_but_for_its_bfloat16(nesterov):
    shapes = ((48, 32), (24, 64), (40, 40))
    mine, theirs = parameters(*shapes), parameters(*shapes)
    options = {"lr": 0.02, "momentum": 0.95, "nesterov": nesterov, "weight_decay": 0.1}
    ours, reference = Muon(mine, **options), torch.optim.Muon(theirs, **options, adjust_lr_fn="original")
    start = [p.detach().clone() for p in mine]
    for step in range(20):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        ours.step()
        reference.step()
    for a, b, begin in zip(mine, theirs, start, strict=True):
        # torch iterates in bfloat16, 2^-9 relative for each of some dozen products; a wrong rule is off by far more
        assert (a - b).norm() < 0.03 * (b - begin).norm()
        momentum, wanted = ours.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"]
        torch.testing.assert_close(momentum, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_state_dict_round_trip_goes_on_bit_for_bit(kind, tmp_path):
    mine = parameters((7, 5), (4, 9))
    optimizer = kind(mine, weight_decay=0.1)
    for step in range(3):
        give_gradients(mine, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    again = kind(others, lr=123.0)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        give_gradients(mine, step)
        give_gradients(others, step)
        optimizer.step()
        again.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_closure_computes_the_loss_with_gradients(kind):
    (parameter,) = parameters((4, 3))
    optimizer = kind([parameter], lr=0.05)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return float(loss.detach())

    before = float(parameter.detach().square().sum())
    assert optimizer.step(closure) == before
    assert closure() < before
    assert optimizer.step() is None


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_torchs_schedulers_set_the_rate(kind):
    (parameter,) = parameters((4, 3))
    optimizer = kind([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    give_gradients([parameter], 0)
    optimizer.step()
    scheduler.step()
    after = parameter.detach().clone()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.0
    assert torch.equal(parameter, after)  # a rate of 0 moves nothing
    copied = copy.deepcopy(optimizer)
    assert copied.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AdamW, {"lr": -1e-3}),
        (AdamW, {"lr": float("nan")}),
        (AdamW, {"lr": float("inf")}),
        (AdamW, {"betas": (0.9, 1.0)}),
        (AdamW, {"betas": (-0.1, 0.9)}),
        (AdamW, {"eps": -1.0}),
        (AdamW, {"weight_decay": -0.1}),
        (Muon, {"lr": -1.0}),
        (Muon, {"momentum": 1.0}),
        (Muon, {"weight_decay": float("nan")}),
        (Muon, {"steps": 0}),
        (Muon, {"steps": 2.5}),
    ],
)
def test_bad_values_are_refused_for_the_optimizer_and_for_a_group(kind, options):
    with pytest.raises(TrainingError, match="wanted"):
        kind(parameters((4, 3)), **options)
    optimizer = kind(parameters((4, 3)))
    with pytest.raises(TrainingError, match="wanted"):
        optimizer.add_param_group({"params": parameters((3, 3)), **options})


def test_muon_wants_matrices():
    with pytest.raises(TrainingError, match=r"matrices.*\(6,\)"):
        Muon(parameters((7, 5), (6,)))
    with pytest.raises(TrainingError, match="matrices"):
        Muon(parameters((7, 5))).add_param_group({"params": parameters((6,))})


def test_the_loop_rung_of_muon_refuses_a_divided_matrix():
    """It would orthogonalise the part that is here; the fused rung gathers the whole."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        matrix = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
        matrix.grad = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])
        with pytest.raises(TrainingError, match="divided over processes"):
            loop.Muon([matrix]).step()
    finally:
        dist.destroy_process_group()
