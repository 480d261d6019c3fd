"""Every update rule on every rung: against torch's where it has one, against the formula, and against the loop."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from tinylm.training import ladder
from tinylm.training.optimizers import SGD, Adam, AdamW, Lion, Muon, foreach, fused, loop

RUNGS = (loop, foreach, fused)
SHAPES = ((7, 5), (4, 9), (6,), (2, 3, 4), (4, 9))
OPTIONS = {
    "SGD": ({"lr": 0.1}, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.8, "nesterov": True}),
    "Adam": ({"lr": 1e-3}, {"lr": 3e-2, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    "AdamW": ({"lr": 1e-3, "weight_decay": 0.0}, {"lr": 3e-2, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    "Lion": ({"lr": 1e-3}, {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    "Muon": ({"lr": 0.02}, {"lr": 0.05, "momentum": 0.8, "nesterov": False, "weight_decay": 0.1, "steps": 3}),
}
CASES = [(rule, options) for rule, several in OPTIONS.items() for options in several]


def parameters(rule, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape for shape in SHAPES if rule != "Muon" or len(shape) > 1]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(these, step):
    """One of them has none at every third step, so that their own counts of steps differ."""
    generator = torch.Generator().manual_seed(1000 + step)
    for number, parameter in enumerate(these):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        parameter.grad = None if number == 1 and step % 3 == 1 else gradient * 10.0 ** (step % 5 - 2)


def close(these):
    """1e-6 of the largest number: some of the gradients are large, so what remains of their sums is small."""
    return 1e-6 * max(1.0, *(float(p.detach().abs().max()) for p in these))


def both(first, second, mine, theirs, steps=20):
    """Twenty updates of both; yields after each."""
    for step in range(steps):
        for these in (mine, theirs):
            give_gradients(these, step)
        first.step()
        second.step()
        yield


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.__name__.rsplit(".", 1)[-1])
@pytest.mark.parametrize(("rule", "options"), [case for case in CASES if case[0] in ("SGD", "Adam", "AdamW")])
def test_each_step_is_torchs(rule, options, rung):
    mine, theirs = parameters(rule), parameters(rule)
    reference = getattr(torch.optim, rule)(theirs, **options, foreach=False)
    for _ in both(getattr(rung, rule)(mine, **options), reference, mine, theirs):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=close(theirs), rtol=1e-6)


@pytest.mark.parametrize(("rule", "options"), CASES)
def test_foreach_is_the_loop_bit_for_bit_and_fused_to_rounding(rule, options):
    reference, upper = parameters(rule), {rung: parameters(rule) for rung in (foreach, fused)}
    for rung, mine in upper.items():
        theirs = parameters(rule)
        for _ in both(getattr(rung, rule)(mine, **options), getattr(loop, rule)(theirs, **options), mine, theirs):
            pass
        reference = theirs
    for a, b, c in zip(reference, upper[foreach], upper[fused], strict=True):
        torch.testing.assert_close(b, a, atol=close(reference) if rule == "Muon" else 0.0, rtol=0.0)
        torch.testing.assert_close(c, a, atol=close(reference), rtol=1e-6)


def test_lion_is_the_formula():
    for rung in RUNGS:
        (theta, *_), mine = parameters("Lion", dtype=torch.float64), parameters("Lion", dtype=torch.float64)
        theta, moment = theta.detach().clone(), torch.zeros_like(theta)
        optimizer = rung.Lion(mine, lr=0.01, betas=(0.9, 0.95), weight_decay=0.2)
        for step in range(10):
            give_gradients(mine, step)
            g = mine[0].grad
            theta = theta - 0.01 * (torch.sign(0.9 * moment + 0.1 * g) + 0.2 * theta)
            moment = 0.95 * moment + 0.05 * g
            optimizer.step()
            torch.testing.assert_close(mine[0].detach(), theta, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("rule", "options"), [(rule, several[-1]) for rule, several in OPTIONS.items()])
def test_a_state_can_go_on_on_another_rung(rule, options):
    """A checkpoint does not say on which rung it was made."""
    mine, theirs = parameters(rule), parameters(rule)
    first, whole = getattr(fused, rule)(mine, **options), getattr(loop, rule)(theirs, **options)
    for _ in both(first, whole, mine, theirs, steps=4):
        pass
    again = getattr(foreach, rule)(mine, **options)
    again.load_state_dict(first.state_dict())
    for _ in both(again, whole, mine, theirs, steps=4):
        pass
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=close(theirs), rtol=1e-6)


def test_a_kind_of_number_that_no_kernel_takes_goes_by_foreach():
    mine = [torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))]
    mine[0].grad = torch.ones(3, dtype=torch.complex64)
    fused.SGD(mine, lr=0.5).step()
    assert torch.equal(mine[0].detach(), torch.full((3,), 0.5 + 0j))


def test_the_names_of_the_package_are_the_top_rung_with_the_same_options():
    for kind in (SGD, Adam, AdamW, Lion, Muon):
        assert kind is getattr(fused, kind.__name__)
        lowest = getattr(loop, kind.__name__)
        assert issubclass(kind, lowest)
        assert inspect.signature(kind) == inspect.signature(lowest)


LADDERS = sorted({rung["ladder"] for rung in ladder.rungs() if rung["component"] == "optimizer"})


@pytest.mark.parametrize("name", LADDERS)
def test_each_rung_of_the_ladder_equals_the_one_it_names(name):
    rungs = {rung["rung"]: rung for rung in ladder.rungs() if rung["ladder"] == name}
    results = {}
    for rung in rungs.values():
        importlib.import_module(rung["module"])
        work = rung["make"](2)
        assert rung["amount"](work) == 10 * sum(p.numel() for p in work.parameters)
        results[rung["rung"]] = rung["run"](work)
        assert rung["compare"](work.parameters, results[rung["rung"]]) > 0  # it moved, and compare sees it
    assert [rung["equals"] for rung in rungs.values()].count(None) == 1
    for rung in rungs.values():
        if rung["equals"] is not None:
            assert rung["compare"](results[rung["rung"]], results[rung["equals"]]) <= rung.get("tolerance", 1e-5)


@pytest.mark.parametrize("options", OPTIONS["Lion"])
def test_lion_by_blocks_is_the_loop(options, monkeypatch):
    """Blocks of 8 numbers: the matrices are cut, and the vector of 6 goes with the small ones."""
    monkeypatch.setattr(fused, "_BLOCK", 8 // torch.get_num_threads() or 1)
    cut = []
    by_blocks = fused.Lion._by_blocks
    monkeypatch.setattr(
        fused.Lion, "_by_blocks", lambda self, p, *rest: (cut.append(p.shape), by_blocks(self, p, *rest))
    )
    mine, theirs = parameters("Lion"), parameters("Lion")
    for _ in both(fused.Lion(mine, **options), loop.Lion(theirs, **options), mine, theirs):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=close(theirs), rtol=1e-6)
    assert torch.Size([6]) not in cut
    assert torch.Size([7, 5]) in cut


@pytest.mark.parametrize("numbers", [1, 100])
def test_muon_is_the_same_in_small_stacks(monkeypatch, numbers):
    stacks = []
    monkeypatch.setattr(foreach, "AT_ONCE", numbers)
    monkeypatch.setattr(torch, "stack", lambda these, stack=torch.stack: (stacks.append(these), stack(these))[1])
    mine, theirs = parameters("Muon") + parameters("Muon", 1), parameters("Muon") + parameters("Muon", 1)
    for _ in both(fused.Muon(mine, lr=0.02), loop.Muon(theirs, lr=0.02), mine, theirs, steps=3):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=close(theirs), rtol=0.0)
    assert all(len(these) == 1 or sum(part.numel() for part in these) <= numbers for these in stacks)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.__name__.rsplit(".", 1)[-1])
def test_muons_products_in_bfloat16_come_near_those_in_float32(rung):
    """Singular values come out between 0.7 and 1.2 either way; what is rounded is far less than that."""
    exact, rounded = parameters("Muon"), parameters("Muon")
    before = [p.detach().clone() for p in exact]
    for mine, dtype in ((exact, None), (rounded, torch.bfloat16)):
        give_gradients(mine, 0)
        rung.Muon(mine, lr=0.02, dtype=dtype).step()
    for start, a, b in zip(before, exact, rounded, strict=True):
        assert b.dtype == torch.float32
        moved, differs = (a.detach() - start).norm(), (a.detach() - b.detach()).norm()
        assert 0 < differs < 0.05 * moved


def test_a_run_in_bfloat16_computes_muons_products_in_it(tiny, tmp_path):
    from tinylm.training import Trainer

    for dtype, wanted in (("float32", None), ("bfloat16", torch.bfloat16), ("float16", None)):
        trainer = Trainer(tiny(tmp_path / dtype, dtype=dtype))
        assert [group["dtype"] for group in trainer.optimizers["muon"].param_groups] == [wanted]
