"""What the Triton kernels reach on the GPU that is here, beside torch and beside the GPU's own limits.

    python packages/tinylm-model/benchmarks/on_gpu.py [--quick] [--out FOLDER]

Writes FOLDER/kernels-<device>.json (default: results/ beside this file) and prints it. Three tables in one:
attention forward and backward in bfloat16 beside torch's flash backend (the aim: at least its speed); RMSNorm, RoPE,
SwiGLU and cross-entropy as a fraction of the bandwidth that a copy reaches here (aim: 0.85), counting what must move
at least; training of GPT-2's 124M and 350M shapes in bfloat16 as a fraction of the device's peak (aim on an H100: 0.5
MFU), with the kernels and without. Times are medians of CUDA events, the L2 cache overwritten in between.
Without a GPU it says in one line that it measured nothing, and exits with 0, so that other benchmarks go on after it.
It has never run on a GPU yet. It does NOT check results: tests/model does. Next: compile_kernels.py, for no GPU at all.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tinylm.model import Transformer, TransformerConfig, kernels
from tinylm.model.hardware import DEVICES
from tinylm.observability.tables import cells, new_table, write_table

Row = list[Any]
BF16 = torch.bfloat16


def seconds(work: Callable[[], Any], rounds: int) -> float:
    """Median time of one call on the GPU, the L2 cache overwritten before each."""
    work()
    evict = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(rounds):
        evict.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=BF16).requires_grad_()


def attention(rounds: int) -> Iterator[Row]:
    """TFLOP/s of the products that causal attention needs: 2 forward and 5 backward, half of each."""
    from tinylm.model.kernels.attention import flash_attention

    for batch, heads, kv_heads, time, size in ((8, 12, 12, 1024, 64), (4, 16, 16, 4096, 64), (2, 32, 8, 4096, 128)):
        q, k, v = (random(batch, time, count, size).transpose(1, 2) for count in (heads, kv_heads, kv_heads))
        upstream = torch.randn_like(q)
        flops = batch * heads * time * time * size * 2 / 2
        grouped = heads != kv_heads

        def sdpa(q: Tensor = q, k: Tensor = k, v: Tensor = v, grouped: bool = grouped) -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

        def ours(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return flash_attention(q, k, v)

        rates = {}
        for name, call in (("ours", ours), ("torch", sdpa)):
            forward = seconds(call, rounds)
            y = call()

            def back(y: Tensor = y, q: Tensor = q, k: Tensor = k, v: Tensor = v, dy: Tensor = upstream) -> Any:
                return torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)

            rates[name] = (2 * flops / forward / 1e12, 5 * flops / seconds(back, rounds) / 1e12)
        for index, way in enumerate(("forward", "backward")):
            mine, theirs = rates["ours"][index], rates["torch"][index]
            shape = f"{batch} × {heads}/{kv_heads} × {time} × {size}"
            yield [f"attention {way}, {shape}", "TFLOP/s", mine, "torch SDPA, flash", theirs, mine / theirs]


def copy_bandwidth(rounds: int) -> float:
    """GB/s, read and written, of copying half a GiB."""
    source = random(1 << 28).detach()
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), rounds) / 1e9


def passes(rounds: int) -> Iterator[Row]:
    """GB/s of the bytes that each must move at least, and the part of a copy's."""
    from tinylm.model.kernels import cross_entropy, rmsnorm, rope, swiglu

    copy = copy_bandwidth(rounds)
    x, weight, gate, up = random(32768, 2048), random(2048), random(16384, 5632), random(16384, 5632)
    heads, angles = random(8, 2048, 32, 128).transpose(1, 2), torch.randn(2048, 64, device="cuda", dtype=BF16)
    logits, targets = random(8192, 50304).detach(), torch.randint(0, 50257, (8192,), device="cuda")
    y, r = rmsnorm.rmsnorm_forward(x, weight, 1e-6, BF16)
    losses = torch.empty(8192, device="cuda")
    softmax = cross_entropy._softmax
    works: tuple[tuple[str, int, Callable[[], Any]], ...] = (
        ("RMSNorm forward, 32,768 × 2,048", 2 * x.nbytes, lambda: rmsnorm.rmsnorm_forward(x, weight, 1e-6, BF16)),
        ("RMSNorm backward", 3 * x.nbytes, lambda: rmsnorm.rmsnorm_backward(y, x, weight, r)),
        ("RoPE, 8 × 32 × 2,048 × 128", 2 * heads.nbytes, lambda: rope.rotate(heads, angles, angles, False)),
        ("SwiGLU forward, 16,384 × 5,632", 3 * gate.nbytes, lambda: swiglu.swiglu_forward(gate, up)),
        ("SwiGLU backward", 5 * gate.nbytes, lambda: swiglu.swiglu_backward(gate, gate, up)),
        ("cross-entropy, loss", logits.nbytes, lambda: softmax(logits, targets, losses, False)),
        ("cross-entropy, loss and gradient, 8,192 × 50,304", 2 * logits.nbytes,
         lambda: softmax(logits, targets, losses, True)),
    )  # fmt: skip
    with torch.no_grad():
        for name, count, work in works:
            rate = count / seconds(work, rounds) / 1e9
            yield [name, "GB/s", rate, "copy", copy, rate / copy]


def training(rounds: int, peak: float | None) -> Iterator[Row]:
    """MFU of a step (forward, backward, AdamW) by PaLM's count, kernels on and off."""
    for name, depth, width, batch in (("124M", 12, 768, 32), ("350M", 24, 1024, 16)):
        config = TransformerConfig.preset("gpt2", vocab_size=50304, depth=depth, width=width, context=1024)
        ids = torch.randint(0, 50257, (batch, 1024), device="cuda")
        for mode in ("kernels", "torch"):
            torch.manual_seed(0)
            model = Transformer(config).cuda()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

            def step(model: Transformer = model, optimizer: Any = optimizer, ids: Tensor = ids) -> None:
                with torch.autocast("cuda", BF16):
                    loss = model.loss(ids, ids)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            if mode == "torch":
                with kernels.disabled():
                    rate = ids.numel() * config.flops_per_token() / seconds(step, rounds) / 1e12
            else:
                rate = ids.numel() * config.flops_per_token() / seconds(step, rounds) / 1e12
            yield [f"training GPT-2 {name}, {batch} × 1,024, {mode}", "TFLOP/s", rate, "peak", (peak or 0) / 1e12,
                   rate * 1e12 / peak if peak else 0.0]  # fmt: skip
            del model, optimizer
            torch.cuda.empty_cache()


def words(device: str) -> set[str]:
    """A device's name in words, and each two neighbours as one: "rtx4090" is two of them to the driver."""
    found = re.findall(r"[a-z0-9]+", device.lower())
    return {*found, *(a + b for a, b in pairwise(found))}


def main() -> None:
    parser = argparse.ArgumentParser(description="The Triton kernels' speed on this GPU.")
    parser.add_argument("--quick", action="store_true", help="three rounds each: does it run?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the table")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("on_gpu.py measures on an NVIDIA GPU, and torch.cuda.is_available() is False here: nothing measured")
        return
    device = torch.cuda.get_device_name()
    found = next((name for name in DEVICES if name in words(device)), None)
    rounds = 3 if options.quick else 30
    rows: list[Row] = []
    for part in (
        attention(rounds),
        passes(rounds),
        training(max(3, rounds // 3), DEVICES[found].flops if found else None),
    ):
        for row in part:
            print("  ".join(str(cell) for cell in row), flush=True)
            rows.append(row)
    columns = ["work", "unit", "ours", "beside", "its figure", "ours ÷ beside"]
    command = "python packages/tinylm-model/benchmarks/on_gpu.py"
    table = new_table(f"Triton kernels on {device}, torch {torch.__version__}", command, columns, rows)
    for line in [table["columns"], *cells(table)]:
        print("  ".join(text.ljust(24) for text in line))
    options.out.mkdir(parents=True, exist_ok=True)
    write_table(table, options.out / f"kernels-{re.sub(r'[^a-z0-9]+', '-', device.lower())}.json")


if __name__ == "__main__":
    main()
