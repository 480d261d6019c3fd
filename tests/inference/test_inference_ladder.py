"""The sampling ladder: both rungs draw the same ids, and a difference is counted."""

from tinylm.inference import ladder


def test_rungs_draw_the_same_ids() -> None:
    low, high = (rung for rung in ladder.rungs() if rung["component"] == "sampling")
    assert (low["equals"], high["equals"]) == (None, low["rung"])
    work = low["make"](9)
    ids = low["run"](work)
    assert len(set(ids)) > 1
    assert high["compare"](high["run"](work), ids) == 0
    assert high["compare"]([ids[0] + 1, *ids[1:]], ids) == 1
    assert low["amount"](work) == 9
