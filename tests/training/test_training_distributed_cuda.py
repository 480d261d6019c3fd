"""The same over NCCL, on two GPUs of one host: losses, and a checkpoint that goes on with one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tinylm import observability as obs  # noqa: E402  # after importorskip
from tinylm.training import Trainer  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"NCCL wants two GPUs: found {torch.cuda.device_count()}"),
]
RUN = {"device": "cuda", "depth": 2, "heads": 4, "kv_heads": 2, "batch_size": 8, "accumulate": 2, "steps": 20}
WAYS = {"ddp": {}, "fsdp": {"data_parallel": "fsdp"}, "tensor": {"tensor_parallel": 2}}


def losses(out) -> list[float]:
    return [row["loss"] for row in obs.read_metrics(out / "run")]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "m"
    Trainer(tiny(out, **RUN)).train()
    return losses(out)


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_those_of_one_gpu(tiny, alone, together, tmp_path, way):
    run = together(tiny(tmp_path / "m", **RUN, **WAYS[way]), tmp_path)
    assert run.wait() == [0, 0], run.said
    assert losses(tmp_path / "m") == pytest.approx(alone, rel=1e-3)  # sums on a GPU come in no fixed order


def test_bfloat16_learns_the_same(tiny, together, tmp_path):
    for way, how in WAYS.items():
        run = together(tiny(tmp_path / way, **{**RUN, "dtype": "bfloat16"}, **how), tmp_path / f"{way} logs")
        assert run.wait() == [0, 0], run.said
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=2e-2)
    assert losses(tmp_path / "tensor") == pytest.approx(losses(tmp_path / "ddp"), rel=2e-2)


def test_saved_by_two_it_goes_on_with_one(tiny, alone, together, tmp_path):
    before = """
from tinylm.training import trainer
plain = trainer.Trainer._advance
def advance(self, *arguments):
    plain(self, *arguments)
    if self.progress.step == 10:
        self.request_stop()
trainer.Trainer._advance = advance
"""
    run = together(tiny(tmp_path / "m", **RUN, **WAYS["fsdp"]), tmp_path, before=before)
    assert run.wait() == [130, 130], run.said
    assert Trainer(tiny(tmp_path / "m", **RUN)).train().finished
    assert losses(tmp_path / "m") == pytest.approx(alone, rel=1e-3)


def test_more_processes_than_gpus_are_refused(tiny, together, tmp_path):
    number = torch.cuda.device_count() + 1
    run = together(tiny(tmp_path / "m", **{**RUN, "batch_size": 2 * number}), tmp_path, number)
    run[-1].join(240)
    assert f"got {number - 1} for process {number - 1}: start with --nproc-per-node {number - 1}" in run.said
