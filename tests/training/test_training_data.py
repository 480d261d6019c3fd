"""The data order: every window once an epoch, exactly resumable; and shards that are not what was written."""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.training import TokenDataset, TrainingError, prepare
from tinylm.training.data import Loader, LoaderState

MODULE = sys.modules["tinylm.training.prepare"]


@pytest.fixture(scope="module")
def dataset(house, tmp_path_factory):
    """A data set of several shards, the last of them short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "SHARD_TOKENS", 700)
        out = tmp_path_factory.mktemp("shards") / "data"
        prepare([house.text], house.tokenizer, out, "tail:0.1")
    dataset = TokenDataset(out)
    assert len(dataset.shards) > 2
    return dataset


@pytest.fixture
def copy(house, tmp_path):
    shutil.copytree(house.data, tmp_path / "data")
    return tmp_path / "data"


def windows(loader: Loader, epoch: int) -> list[tuple[int, int]]:
    return [tuple(map(int, window)) for window in Loader(*_same(loader), LoaderState(epoch, 0)).rows.places]


def _same(loader: Loader):
    return loader.dataset, loader.batch_size, loader.context, loader.seed


def test_a_batch_is_windows_of_the_text_and_their_next_tokens(dataset):
    loader = Loader(dataset, 3, 16, 0, LoaderState())
    order = list(loader.rows.places)
    inputs, targets = loader.next()
    assert inputs.shape == targets.shape == (3, 16)
    assert inputs.dtype == targets.dtype == torch.int64
    for row, (shard, start) in enumerate(order[:3]):
        wanted = dataset.shards[shard][start : start + 17].astype(np.int64)
        assert inputs[row].tolist() == wanted[:-1].tolist()
        assert targets[row].tolist() == wanted[1:].tolist()


@pytest.mark.parametrize("context", [1, 16, 33])
def test_an_epoch_is_every_window_once_and_the_next_in_another_order(dataset, context):
    loader = Loader(dataset, 2, context, 5, LoaderState())
    epochs = [windows(loader, epoch) for epoch in range(4)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch)
        for number, shard in enumerate(dataset.shards):
            starts = sorted(start for which, start in epoch if which == number)
            if len(shard) <= context:
                assert starts == []
                continue
            # next to each other, without overlap: no target is predicted twice, and none in between is left out
            assert np.diff(starts).tolist() == [context] * (len(starts) - 1)
            assert 0 <= starts[0] < context
            assert starts[-1] + context < len(shard) <= starts[-1] + 2 * context
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert windows(loader, 2) == epochs[2]
    assert windows(Loader(dataset, 2, context, 6, LoaderState()), 2) != epochs[2]


def test_batches_draw_the_epochs_windows_in_their_order(dataset):
    loader = Loader(dataset, 3, 64, 0, LoaderState())
    order = windows(loader, 0) + windows(loader, 1)
    drawn = torch.cat([loader.next()[0] for _ in range(len(order) // 3)])
    for row, (shard, start) in zip(drawn, order, strict=False):
        assert row.tolist() == dataset.shards[shard][start : start + 64].tolist()
    assert loader.state.epoch in (1, 2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, (1 << 63) - 1),
    batch=st.integers(1, 7),
    context=st.integers(1, 300),
    before=st.integers(0, 60),
    after=st.integers(1, 12),
)
def test_a_loader_made_from_the_state_goes_on_the_same(dataset, seed, batch, context, before, after):
    loader = Loader(dataset, batch, context, seed, LoaderState())
    for _ in range(before):
        loader.next()
    state = LoaderState(**json.loads(json.dumps({"epoch": loader.state.epoch, "index": loader.state.index})))
    again = Loader(dataset, batch, context, seed, state)
    for _ in range(after):
        for mine, theirs in zip(loader.next(), again.next(), strict=True):
            assert torch.equal(mine, theirs)
    assert again.state == loader.state


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 8),
    share=st.integers(1, 3),
    packing=st.sampled_from(["windows", "documents"]),
    before=st.integers(0, 20),
    others=st.integers(1, 4),
)
def test_ranks_share_every_batch_and_another_number_of_them_goes_on(dataset, ranks, share, packing, before, others):
    """More ranks than shards, too: together they draw what one process draws, in its order, and each row once."""

    def loader(rank: int, of: int, state: LoaderState) -> Loader:
        return Loader(dataset, of * share, 40, 3, state, packing=packing, rank=rank, ranks=of)

    one = Loader(dataset, ranks * share, 40, 3, LoaderState(), packing=packing)
    all_ranks = [loader(rank, ranks, LoaderState()) for rank in range(ranks)]
    for _ in range(before):
        parts = zip(*(rank.next() for rank in all_ranks), strict=True)
        for whole, part in zip(one.next(), parts, strict=True):
            assert torch.equal(whole, torch.cat(part))
    assert {rank.state for rank in all_ranks} == {one.state}
    again = [loader(rank, others, one.state) for rank in range(others)]
    wanted = Loader(dataset, others * share, 40, 3, one.state, packing=packing).next()[0]
    assert torch.equal(torch.cat([rank.next()[0] for rank in again]), wanted)


def test_a_batch_that_ranks_cannot_share_is_refused(dataset):
    with pytest.raises(TrainingError, match=r"3 ranks can share equally, got 4.*--batch-size"):
        Loader(dataset, 4, 16, 0, LoaderState(), rank=0, ranks=3)


def test_a_thread_has_the_next_batch_ready_and_the_state_does_not_run_ahead(dataset, monkeypatch):
    loader = Loader(dataset, 3, 16, 0, LoaderState())
    drawing, draw = threading.Event(), Loader._draw

    def watch(self, state):
        drawn = draw(self, state)
        if state.index == 6:
            assert threading.current_thread() is not threading.main_thread()
            drawing.set()
        return drawn

    monkeypatch.setattr(Loader, "_draw", watch)
    loader.next()
    loader.next()
    assert drawing.wait(30)  # the third, which nobody asked for
    assert loader.state == LoaderState(0, 6)


def test_what_goes_wrong_in_the_thread_is_raised_by_next(dataset, monkeypatch):
    loader = Loader(dataset, 1, 16, 0, LoaderState())
    loader.next()

    def broken(self, state):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Loader, "_draw", broken)
    loader.next()  # was ready
    with pytest.raises(OSError, match="the disk is gone"):
        loader.next()


def test_a_context_longer_than_the_text_is_refused(dataset):
    assert len(Loader(dataset, 1, 699, 0, LoaderState()).rows) == len([s for s in dataset.shards if len(s) == 700])
    with pytest.raises(TrainingError, match=r"more than 700 tokens.*shorter --context"):
        Loader(dataset, 1, 700, 0, LoaderState())


def test_ids_are_read_across_shards(dataset):
    whole = np.concatenate(dataset.shards).tolist()
    assert len(whole) == dataset.tokens
    for start, end in ((0, 0), (0, 3), (698, 703), (699, 1401), (700, 1400), (0, dataset.tokens + 9), (5, 2)):
        ids = dataset.ids(start, end)
        assert (ids.dtype, ids.tolist()) == (np.int64, whole[start:end])


def test_shards_stay_on_the_disk(dataset):
    assert all(isinstance(shard, np.memmap) and not shard.flags.writeable for shard in dataset.shards)


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "cut in the header":
        path.write_bytes(content[:40])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "longer":
        path.write_bytes(content + b"\0\0")
    elif how == "a zip":
        np.savez(path.with_suffix(""), np.load(path))
        path.with_suffix(".npz").replace(path)
    elif how == "another dtype":
        np.save(path, np.load(path).astype(np.int64))
    elif how == "another shape":
        np.save(path, np.load(path)[None])
    elif how == "objects":
        np.save(path, np.array([{}] * len(np.load(path)), dtype=object), allow_pickle=True)
    elif how == "other ids":
        np.save(path, np.load(path)[::-1])
    elif how == "an id too high":
        ids = np.load(path)
        ids[3] = 60000
        np.save(path, ids)


HOW = ["truncated", "cut in the header", "empty", "missing", "a folder", "longer", "a zip", "another dtype"]


@pytest.mark.parametrize("how", [*HOW, "another shape", "objects", "other ids", "an id too high"])
def test_a_shard_that_is_not_what_was_written(copy, how):
    damage(copy / "train-00000.npy", how)
    with pytest.raises(TrainingError, match=r"train-00000\.npy.*--overwrite"):
        TokenDataset(copy)


def test_any_flipped_bit_of_a_shard_is_found(copy):
    shard = copy / "validation-00000.npy"
    whole = shard.read_bytes()
    draw = random.Random(0)
    for place in [*range(0, 128, 3), *draw.choices(range(128, len(whole)), k=30)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        shard.write_bytes(damaged)
        with pytest.raises(TrainingError, match="validation-00000"):
            TokenDataset(copy, "validation")


def test_large_shards_are_checked_without_their_checksum(copy, monkeypatch):
    monkeypatch.setattr("tinylm.training.data._CHECKSUM_LIMIT", 100)
    damage(copy / "train-00000.npy", "an id too high")
    with pytest.raises(TrainingError, match="damaged"):
        TokenDataset(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("splits"), "splits"),
        (lambda d: d["splits"].pop("train"), "train"),
        (lambda d: d["splits"]["train"].pop("tokens"), "tokens"),
        (lambda d: d["splits"]["train"].pop("shards"), "shards"),
        (lambda d: d["splits"]["train"]["shards"][0].pop("sha256"), "sha256"),
        (lambda d: d["splits"]["train"].update(tokens=float("inf")), "data.json"),
        (lambda d: d["splits"]["train"].update(tokens=7), "data.json"),
        (lambda d: d["splits"]["train"].update(characters=0), "0 characters"),
        (lambda d: d["splits"]["train"].update(shards=[], tokens=0), "data.json"),
        (lambda d: d["splits"]["train"].update(shards=None), "data.json"),
        (lambda d: d["splits"]["train"]["shards"][0].update(file="a\0b"), "data.json|npy|a"),
        (lambda d: d.pop("dtype"), "dtype"),
        (lambda d: d.update(dtype="complex9"), "complex9"),
        (lambda d: d.update(dtype="int64"), "int64"),
        (lambda d: d.pop("vocab_size"), "vocab_size"),
        (lambda d: d.update(vocab_size="many"), "many"),
        (lambda d: d.update(vocab_size=5), "damaged"),
        (lambda d: d.pop("tokenizer"), "tokenizer"),
        (lambda d: d.pop("format"), "format"),
        (lambda d: d.update(format=2), "later version"),
    ],
)
def test_a_description_that_is_not_one(copy, change, said):
    description = json.loads((copy / "data.json").read_text("utf-8"))
    change(description)
    (copy / "data.json").write_text(json.dumps(description), "utf-8")
    with pytest.raises(TrainingError, match=said):
        TokenDataset(copy)


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b'{"format": 1', b"\xff\xfe", b"[" * 100_000])
def test_a_description_that_is_no_json(copy, content):
    (copy / "data.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"data\.json"):
        TokenDataset(copy)


def test_a_folder_that_holds_no_data_set(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TrainingError, match=r"data\.json, got no such file"):
            TokenDataset(folder)


def test_another_tokenizer_beside_the_shards_is_refused(copy, other_house):
    shutil.copy(other_house.tokenizer / "tokenizer.json", copy / "tokenizer.json")
    with pytest.raises(TrainingError, match="another tokenizer"):
        TokenDataset(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(TrainingError, match="no such file"):
        TokenDataset(copy)
