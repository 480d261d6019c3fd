"""Compile every Triton kernel for GPUs that need not be here: what a launch would run, down to the machine code.

    python packages/tinylm-model/benchmarks/compile_kernels.py [--gpu 80] [--type bf16] [--quick] [--json FILE]

The kernels' own wrappers are called as the model calls them, on small CPU tensors, with a driver that says it is an
sm_80 or an sm_90; each launch is compiled with just the types, constants, warps and stages it would have, then dropped.
ptxas comes with Triton. For each kernel: registers a thread, bytes of them spilled to memory, shared memory of a block.
Exits with 1 if one does not compile, or asks for more shared memory than a small GPU of the generation gives (99 KiB).
It does NOT run anything and measures no time. Next: on_gpu.py, which does, on a GPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if find_spec("triton") is None:
    sys.exit("compile_kernels.py needs Triton, which has wheels for Linux: pip install 'tinylm-model[triton]'")

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tinylm.model.kernels import _launch, attention, cross_entropy, rmsnorm, rope, swiglu

SHARED_MEMORY = 99 * 1024  # of a block on sm_86, sm_89 and sm_120; 163 KiB on sm_80, 227 KiB on sm_90
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CUOBJDUMP = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def launches(dtype: torch.dtype, quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each kernel as it is called, forward and backward, for the sizes that take other code."""

    def ready(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype).requires_grad_()

    for size in (768,) if quick else (64, 768, 1000, 8192):
        x, weight = ready(64, size), torch.ones(size, requires_grad=True)
        yield f"rmsnorm {size}", lambda x=x, w=weight: rmsnorm.rmsnorm(x, w, 1e-6).sum().backward()
    angles = torch.zeros(64, 32, dtype=dtype)
    x = ready(2, 64, 4, 64)
    yield "rope 64", lambda: rope.rope(x.transpose(1, 2), angles, angles).sum().backward()
    gate, up = ready(64, 2048), ready(64, 2048)
    yield "swiglu 2048", lambda: swiglu.swiglu(gate, up).sum().backward()
    hidden, head, targets = ready(32, 64), torch.zeros(50257, 64, requires_grad=True), torch.zeros(32).long()
    yield (
        "cross_entropy 50257",
        lambda: cross_entropy.linear_cross_entropy(hidden, head, targets, "none").sum().backward(),
    )
    for size in (64,) if quick else (16, 64, 80, 96, 128):
        for window in (100,) if quick else (None, 100):
            q, k = ready(1, 256, 4, size), ready(1, 256, 2, size)
            yield (
                f"attention {size}{' window' if window else ''}",
                lambda q=q, k=k, w=window: (
                    attention.flash_attention(q.transpose(1, 2), k.transpose(1, 2), k.transpose(1, 2), w)
                    .sum()
                    .backward()
                ),
            )
        q, k = ready(256, 4, size), ready(256, 2, size)
        starts = torch.tensor([0, 100, 256], dtype=torch.int32)
        yield (
            f"attention {size} varlen",
            lambda q=q, k=k, s=starts: attention.flash_attention_varlen(q, k, k, s, 156).sum().backward(),
        )


def pretend(capability: int) -> list[Any]:
    """From now on launches compile for `capability` and are dropped; the compiled kernels gather in the list."""
    gathered: list[Any] = []
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,  # Triton keeps what it compiled by device
        get_current_stream=lambda device: 0,
        get_active_torch_device=lambda: torch.device("cpu"),
    )
    triton.runtime.driver.set_active(driver)
    original = getattr(JITFunction.run, "original", JITFunction.run)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        gathered.append((self.__name__, original(self, *args, grid=grid, warmup=True, **options)))

    run.original = original  # type: ignore[attr-defined]
    JITFunction.run = run
    return gathered


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of a thread's stack, which is where spilled registers go."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()  # type: ignore[union-attr]
    return int(registers), int(stack)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel for GPUs that need not be here.")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    parser.add_argument("--gpu", type=int, nargs="+", default=[80, 90], help="compute capabilities (80 90)")
    parser.add_argument("--type", nargs="+", choices=TYPES, default=list(TYPES), help="types (all three)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    options = parser.parse_args()
    if _launch.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled; unset it")
    _launch.check = lambda *_: None
    rows: list[list[Any]] = []
    failures = []
    for capability in options.gpu:
        for kind in options.type:
            seen = set()
            for name, launch in launches(TYPES[kind], options.quick):
                gathered = pretend(capability)
                launch()
                for function, kernel in gathered:
                    if kernel.hash in seen:
                        continue
                    seen.add(kernel.hash)
                    registers, spilled = resources(kernel.asm["cubin"])
                    shared = kernel.metadata.shared
                    rows.append([name, function.strip("_"), kind, f"sm_{capability}", registers, spilled, shared])
                    print("  ".join(str(cell).rjust(12) for cell in rows[-1]), flush=True)
                    if shared > SHARED_MEMORY:
                        failures.append(f"{name} {function} {kind} sm_{capability}: {shared} bytes of shared memory")
    print(f"{len(rows)} kernels compiled by Triton {triton.__version__}")
    if options.json is not None:
        from tinylm.observability.tables import new_table, write_table  # the model's tests run this without tinylm-obs

        columns = ["launch", "kernel", "type", "GPU", "registers", "bytes spilled a thread", "shared memory, bytes"]
        command = "python packages/tinylm-model/benchmarks/compile_kernels.py"
        title = f"Kernels compiled by Triton {triton.__version__}, not run"
        write_table(new_table(title, command, columns, rows), options.json)
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
