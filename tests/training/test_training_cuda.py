"""The same on a GPU: the update rules against the CPU's, and runs that learn, save, resume and go on."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tinylm import observability as obs  # noqa: E402  # after importorskip
from tinylm.model import pick_device  # noqa: E402
from tinylm.training import AdamW, Muon, TokenDataset, Trainer, bits_per_character  # noqa: E402
from tinylm.training.device import pick_dtype  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"),
]


@pytest.fixture(autouse=True)
def _no_tf32():
    """TF32 keeps 10 bits of each factor; these tests compare float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def losses(out) -> list[float]:
    return [row["loss"] for row in obs.read_metrics(out / "run")]


def test_auto_is_cuda_and_a_card_that_is_not_there_is_refused():
    assert pick_device("auto").type == "cuda"
    assert pick_device("cuda:0").index == 0
    wanted = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    assert pick_dtype("auto", torch.device("cuda"), lambda dtype: 0.0) == wanted
    with pytest.raises(ValueError, match="cuda:99"):
        pick_device("cuda:99")


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_twenty_updates_equal_the_cpus(kind):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((48, 32), (24, 64), (2, 16, 16))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(20)]
    results = []
    for device in ("cpu", "cuda"):
        mine = [torch.nn.Parameter(p.to(device, copy=True)) for p in start]
        optimizer = kind(mine, lr=0.01, weight_decay=0.1)
        for step in gradients:
            for parameter, gradient in zip(mine, step, strict=True):
                parameter.grad = gradient.to(device, copy=True)
            optimizer.step()
        results.append([p.detach().cpu() for p in mine])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_learns(tiny, tmp_path, dtype):
    result = Trainer(tiny(tmp_path / "m", device="cuda", dtype=dtype, steps=120, batch_size=8, warmup_steps=5)).train()
    assert result.finished
    seen = losses(tmp_path / "m")
    assert sum(seen[-10:]) / 10 < seen[0] - 1.5


def test_the_first_losses_are_the_cpus(tiny, tmp_path):
    for device in ("cpu", "cuda"):
        Trainer(tiny(tmp_path / device, device=device, steps=5, learning_rate=1e-3)).train()
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


def test_a_stopped_run_goes_on_as_the_unbroken_one(tiny, tmp_path):
    options = {"device": "cuda", "steps": 30, "checkpoint_every": 7, "optimizer": "muon"}
    Trainer(tiny(tmp_path / "whole", **options)).train()
    trainer = Trainer(tiny(tmp_path / "m", **options))
    trainer.report = lambda status: trainer.request_stop() if status.step == 10 else None
    assert not trainer.train().finished
    again = Trainer(tiny(tmp_path / "m", **options))
    assert again.train().finished
    state = next(iter(again.optimizers["muon"].state.values()))
    assert state["momentum_buffer"].device.type == "cuda"
    # sums on a GPU come in no fixed order: equal up to rounding, which training magnifies
    assert losses(tmp_path / "m") == pytest.approx(losses(tmp_path / "whole"), rel=5e-3)


def test_evaluation_equals_the_cpus(tiny, house, tmp_path):
    trainer = Trainer(tiny(tmp_path / "m", device="cuda", steps=3))
    trainer.train()
    dataset = TokenDataset(house.data, "validation")
    on_gpu = bits_per_character(trainer.model, dataset)
    assert on_gpu == pytest.approx(bits_per_character(trainer.model.cpu(), dataset), rel=1e-4)
