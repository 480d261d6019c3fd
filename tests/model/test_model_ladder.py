"""The ladders: every rung runs and equals the one it names."""

from __future__ import annotations

import importlib

import pytest

from tinylm.model import ladder

KEYS = {
    "component", "ladder", "rung", "module", "change", "equals", "make", "run", "compare", "amount", "unit", "size",
}  # fmt: skip
SIZES = {"training": 3, "loss": 24, "causal": 33, "greedy": 20}  # by a ladder's first word
LADDERS = sorted({rung["ladder"] for rung in ladder.rungs()})


def test_the_rungs_are_plain_data():
    for rung in ladder.rungs():
        assert rung.keys() - {"tolerance", "cost", "exact"} == KEYS
        importlib.import_module(rung["module"])


@pytest.mark.parametrize("name", LADDERS)
def test_each_rung_equals_the_one_it_names(name):
    rungs = {rung["rung"]: rung for rung in ladder.rungs() if rung["ladder"] == name}
    size = SIZES[name.replace(",", "").split()[0]]
    results = {}
    for rung in rungs.values():
        work = rung["make"](size)
        assert rung["amount"](work) == size
        results[rung["rung"]] = rung["run"](work)
    assert [rung["equals"] for rung in rungs.values()].count(None) == 1
    for rung in rungs.values():
        if rung["equals"] is not None:
            assert rung["compare"](results[rung["rung"]], results[rung["equals"]]) <= rung.get("tolerance", 1e-5)


def test_compare_sees_a_difference():
    compare = {rung["ladder"].split(",")[0]: rung["compare"] for rung in ladder.rungs()}
    assert compare["training steps"]([1.0, 2.0], [1.0, 2.5]) == 0.5
    assert compare["loss and gradients"]({"w": [[4.0, 3.0]]}, {"w": [[4.0, 2.0]]}) == 0.25
    assert compare["greedy decoding"]([[1, 2, 3, 4]], [[1, 2, 3, 5]]) == 0.25
