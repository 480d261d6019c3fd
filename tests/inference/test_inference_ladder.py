"""The ladders of decoding and sampling: all rungs give the same ids, and a difference is counted."""

from typing import Any

import pytest

from tinylm.inference import ladder

RUNGS = [rung for rung in ladder.rungs() if rung["component"] == "decoding"]


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """What each rung writes for three prompts, and how much that is."""
    works = {rung["rung"]: (rung, rung["make"](3)) for rung in RUNGS}
    return {name: (rung["run"](work), work.counts) for name, (rung, work) in works.items()}


def test_every_rung_of_the_design_is_there() -> None:
    names = [rung["rung"] for rung in RUNGS]
    line = ["static batch", "paged, continuous batching", "prefix cache", "speculation", "C++ pass", "compiled"]
    assert [name for name in names if name in line] == line
    assert {"int8, C++ kernels", "int4, C++ kernels"} <= set(names)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung["rung"])
def test_rungs_of_decoding_write_the_same_ids(rung: dict[str, Any], written: dict[str, Any]) -> None:
    mine, counts = written[rung["rung"]]
    assert [len(text) for text in mine] == counts
    if rung["equals"] is not None:
        assert rung["compare"](mine, written[rung["equals"]][0]) == 0
        wrong = [[(mine[0][0] + 1) % 2048, *mine[0][1:]], *mine[1:]]
        assert rung["compare"](wrong, mine) > 0


def test_rungs_draw_the_same_ids() -> None:
    low, high = (rung for rung in ladder.rungs() if rung["component"] == "sampling")
    assert (low["equals"], high["equals"]) == (None, low["rung"])
    work = low["make"](9)
    ids = low["run"](work)
    assert len(set(ids)) > 1
    assert high["compare"](high["run"](work), ids) == 0
    assert high["compare"]([ids[0] + 1, *ids[1:]], ids) == 1
    assert low["amount"](work) == 9
