"""Packed documents: every one whole or cut as said, every token a target once, and none sees another."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.model import Transformer, TransformerConfig
from tinylm.training import TokenDataset, Trainer, TrainingError, prepare
from tinylm.training._layouts import Packed, _best_fit
from tinylm.training.data import Loader, LoaderState

MODULE = sys.modules["tinylm.training.prepare"]


@pytest.fixture(scope="module")
def dataset(house, text, tmp_path_factory):
    """Documents of many lengths, over several shards."""
    folder = tmp_path_factory.mktemp("packed")
    texts = [text(number, 8 * (1 + number * number % 13)) for number in range(40)] + ["", "a"]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "SHARD_TOKENS", 900)
        prepare([folder / "a.jsonl"], house.tokenizer, folder / "data", house.text)
    dataset = TokenDataset(folder / "data")
    assert len(dataset.shards) > 2
    return dataset


def documents(dataset: TokenDataset) -> list[tuple[int, ...]]:
    """What the shards hold, document by document; a shard's beginning begins one."""
    found = []
    for shard, starts in zip(dataset.shards, dataset.documents, strict=True):
        cuts = sorted({0, len(shard), *map(int, starts)})
        found += [tuple(shard[a:b].tolist()) for a, b in itertools.pairwise(cuts)]
    return found


def pieces(inputs, targets) -> list[tuple[list[int], list[int]]]:
    """The documents of a row, as inputs and targets, without padding."""
    found, start = [], 0
    for place, target in enumerate(targets):
        if target == -100 or place == len(targets) - 1:
            if place > start or target != -100:
                found.append((list(inputs[start : place + 1]), list(targets[start : place + 1])))
            start = place + 1
    return found


@pytest.mark.parametrize("context", [8, 31, 64, 2000])
def test_every_token_behind_a_documents_first_is_a_target_once_and_stands_behind_its_own(dataset, context):
    for epoch in range(2):
        packed = Packed(dataset, context, 0, epoch)
        found = []
        for index in range(len(packed)):
            inputs, targets = packed.row(index)
            for ids, wanted in pieces(inputs.tolist(), targets.tolist()):
                assert ids[1:] == wanted[:-1]
                found.append(tuple(ids) + ((wanted[-1],) if wanted[-1] != -100 else ()))
        cut = []
        for document in documents(dataset):
            while len(document) > context:
                cut.append(document[: context + 1])
                document = document[context:]
            if len(document) > 1:
                cut.append(document)
        assert sorted(found) == sorted(cut)
        assert 0.9 < packed.filled <= 1 or context == 2000


def test_epochs_differ_and_repeat(dataset):
    rows = [[tuple(Packed(dataset, 32, 0, epoch).row(i)[0]) for i in range(5)] for epoch in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]


@given(lengths=st.lists(st.integers(1, 20), max_size=60).map(lambda some: sorted(some, reverse=True)))
@settings(deadline=None)
def test_best_fit_is_the_textbooks(lengths):
    room: list[int] = []
    wanted = []
    for length in lengths:
        fitting = [left for left in room if left >= length]
        wanted.append(min(fitting) if fitting else 20)
        if fitting:
            room.remove(min(fitting))
        room.append(wanted[-1] - length)
    rows = _best_fit(np.array(lengths, np.int64), 20)
    left = [20] * len(lengths)
    for length, row, before in zip(lengths, rows, wanted, strict=True):
        assert left[row] == before
        left[row] -= length
    assert sorted(set(rows.tolist())) == list(range(len(room)))


def small(preset: str) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.preset(preset, vocab_size=320, depth=2, width=32, heads=4, context=64))
    return model.double()


@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_a_packed_row_has_the_losses_of_its_documents_alone(dataset, preset):
    model = small(preset)
    model.separate_documents = True
    inputs, targets = Loader(dataset, 6, 64, 0, LoaderState(), packing="documents").next()
    together = model.loss(inputs, targets, reduction="none")
    model.separate_documents = False
    several = 0
    for row, (ids, wanted) in enumerate(zip(inputs.tolist(), targets.tolist(), strict=True)):
        start = 0
        found = pieces(ids, wanted)
        several += len(found) > 1
        for mine, theirs in found:
            alone = model.loss(torch.tensor([mine]), torch.tensor([theirs]), reduction="none")[0]
            torch.testing.assert_close(together[row, start : start + len(mine)], alone, atol=1e-12, rtol=1e-12)
            start += len(mine)
    assert several
    assert torch.all(together[targets == -100] == 0)


def test_no_document_sees_another(dataset):
    """The gradient of a document's loss is zero at every embedding of the others, and of padding."""
    model = small("qwen3")
    model.separate_documents = True
    inputs, targets = Loader(dataset, 6, 64, 0, LoaderState(), packing="documents").next()
    row = next(r for r in range(6) if len(pieces(inputs[r].tolist(), targets[r].tolist())) > 1)
    ids, wanted = inputs[row : row + 1], targets[row : row + 1]
    embedded: list[torch.Tensor] = []
    hook = model.embed.register_forward_hook(lambda module, args, out: embedded.append(out) or out.retain_grad())
    losses = model.loss(ids, wanted, reduction="none")[0]
    hook.remove()
    start = 0
    for mine, _ in pieces(ids[0].tolist(), wanted[0].tolist()):
        end = start + len(mine)
        (gradient,) = torch.autograd.grad(losses[start:end].sum(), embedded[0], retain_graph=True)
        seen = gradient[0].abs().sum(dim=-1) > 0
        assert torch.all(seen[start : end - 1])
        assert not seen[:start].any()
        assert not seen[end:].any()
        start = end


def test_a_run_on_packed_documents_goes_on_exactly(tiny, dataset, tmp_path):
    def config(out, **more):
        return tiny(tmp_path / out, data=str(dataset.directory), packing="documents", context=64, **more)

    whole = Trainer(config("whole"))
    whole.train()
    assert whole.model.separate_documents
    broken = Trainer(config("broken"))
    broken.report = lambda status: broken.request_stop() if status.step == 7 else None
    assert not broken.train().finished
    again = Trainer(config("broken"))
    assert again.train().finished
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_damaged_document_starts_are_refused(dataset, tmp_path, how):
    import shutil

    copy = Path(shutil.copytree(dataset.directory, tmp_path / "copy"))
    path = copy / "train-00000.documents.npy"
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(TrainingError, match=r"documents\.npy.*--overwrite"):
        Loader(TokenDataset(copy), 1, 16, 0, LoaderState(), packing="documents")
