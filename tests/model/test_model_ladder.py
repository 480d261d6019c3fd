"""The ladders: every rung runs and equals the one it names."""

from __future__ import annotations

import importlib

import pytest

from tinylm.model import ladder

KEYS = {
    "component", "ladder", "rung", "module", "change", "equals", "make", "run", "compare", "amount", "unit", "size",
}  # fmt: skip
SIZES = {"model": 8, "decoding": 20}


def test_the_rungs_are_plain_data():
    for rung in ladder.rungs():
        assert rung.keys() == KEYS
        importlib.import_module(rung["module"])


@pytest.mark.parametrize("component", ["model", "decoding"])
def test_each_rung_equals_the_one_it_names(component):
    rungs = {rung["rung"]: rung for rung in ladder.rungs() if rung["component"] == component}
    results = {}
    for name, rung in rungs.items():
        work = rung["make"](SIZES[component])
        assert rung["amount"](work) == SIZES[component]
        results[name] = rung["run"](work)
    assert [rung["equals"] for rung in rungs.values()].count(None) == 1
    for name, rung in rungs.items():
        if rung["equals"] is not None:
            assert rung["compare"](results[name], results[rung["equals"]]) <= 1e-5


def test_compare_sees_a_difference():
    compare = {rung["component"]: rung["compare"] for rung in ladder.rungs()}
    assert compare["model"]([[1.0, 2.0]], [[1.0, 2.5]]) == 0.5
    assert compare["decoding"]([[1, 2, 3, 4]], [[1, 2, 3, 5]]) == 0.25
