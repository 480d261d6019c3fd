"""The data ladder: every rung draws the same batches, over epochs and shards, and a broken one is seen to differ."""

from __future__ import annotations

import itertools

import pytest
import torch

from tinylm.training import _data_ladder, ladder
from tinylm.training.data import Loader, LoaderState, TokenDataset
from tinylm.training.list_loader import ListLoader
from tinylm.training.mapped_loader import batches


@pytest.mark.parametrize("rung", [r for r in ladder.rungs() if r["component"] == "data"], ids=lambda r: r["rung"])
def test_every_rung_gives_the_batches_of_the_lowest(rung):
    work = rung["make"](8_000)
    lowest = next(r for r in ladder.rungs() if r["component"] == "data")
    assert rung["compare"](rung["run"](work), lowest["run"](work)) == 0
    other = rung["run"](rung["make"](12_000))
    assert rung["compare"](other, lowest["run"](work)) > 0


@pytest.mark.parametrize(("batch", "context"), [(1, 7), (3, 64), (5, 500)])
def test_rungs_agree_over_several_epochs(batch, context):
    work = _data_ladder._make(3_000)
    dataset = TokenDataset(work.folder.name)
    loader = Loader(dataset, batch, context, 9, LoaderState())
    plain = ListLoader([shard.tolist() for shard in dataset.shards], batch, context, 9)
    mapped = batches(work.shards, batch, context, 9)
    for _ in range(3 * len(loader.rows) // batch + 2):
        for a, b, c in zip(loader.next(), plain.next(), next(mapped), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
    assert loader.state.epoch >= 2
    assert len(list(itertools.islice(mapped, 2))) == 2
