"""What changes from one GPU to 8, 64 and 1,024: memory, time, and what a step sends, computed by `tinylm-model plan`.

    python packages/tinylm-train/benchmarks/scale_plan.py [--json FILE]

Nothing is measured. Memory and time are the plan's, for H100s at 40 % of their peak, with activation checkpointing.
What a step sends is counted from what parallel/ does, in float32 as it does it: DDP 2 · 4P (n - 1) / n bytes a device
(a ring's all-reduce: Patarasuk and Yuan 2009), FSDP three times 4P (n - 1) / n of what tensor parallelism leaves of P
(the parameters for the forward and for the backward pass, the gradients), tensor parallelism 4 L all-reduces of
activations in bfloat16. Beside the step's time stands what NVLink (450 GB/s a direction) or, from 9 devices on, the
network (400 Gb/s a device) takes for that, if nothing is hidden behind the computation; tensor parallelism stays within
a host. Not counted: Muon's gathering of whole matrices under FSDP, 4P more an update.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinylm.observability.tables import cells, new_table, write_table

NVLINK, NETWORK, HOST = 450e9, 50e9, 8  # bytes a second and direction, and GPUs of a host
COLUMNS = [
    "GPUs",
    "how",
    "parameters",
    "tokens a step",
    "memory a GPU (GB)",
    "step (s)",
    "sent a GPU (GB)",
    "sending (s)",
]
COLUMNS += ["20 tokens a parameter (days)"]


@dataclass(frozen=True)
class Scale:
    """A model and how it is shared: options of `tinylm-model plan`."""

    how: str
    shape: str
    fsdp: int = 1
    data: int = 1
    tensor: int = 1
    tokens: int = 16384

    @property
    def devices(self) -> int:
        """All of them."""
        return self.data * self.fsdp * self.tensor


SMALL = "width=1024 heads=16 kv_heads=16 head_dim=64 mlp_width=2816 context=2048"
MIDDLE = "width=4096 heads=32 kv_heads=8 head_dim=128 mlp_width=14336 context=4096"
LARGE = "width=8192 heads=64 kv_heads=8 head_dim=128 mlp_width=28672 context=4096"
SCALES = [
    Scale("one process", f"24 {SMALL}"),
    Scale("ddp", f"24 {SMALL}", data=8),
    Scale("fsdp", f"24 {SMALL}", fsdp=8),
    Scale("ddp", f"32 {MIDDLE}", data=64, tokens=4096),
    Scale("fsdp", f"32 {MIDDLE}", fsdp=64),
    Scale("fsdp", f"80 {LARGE}", fsdp=1024, tokens=4096),
    Scale("fsdp, tensor 8", f"80 {LARGE}", fsdp=128, tensor=8, tokens=8192),
]


def plan(scale: Scale) -> dict[str, Any]:
    """What `tinylm-model plan --json` says."""
    depth, *fields = scale.shape.split()
    command = [sys.executable, "-m", "tinylm.model", "plan", "--preset", "llama", "--depth", depth, "--json"]
    command += ["--vocab-size", "128256", "--device", "h100", "--batch-tokens", str(scale.tokens), "--checkpointing"]
    command += ["--data", str(scale.data), "--fsdp", str(scale.fsdp), "--tensor", str(scale.tensor)]
    for field in fields:
        command += ["--set", field]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def sent(scale: Scale, answer: dict[str, Any]) -> tuple[float, float]:
    """Bytes that a device sends in a step, and the seconds that takes."""
    link = NVLINK if scale.devices <= HOST else NETWORK
    parameters = 4 * answer["parameters"] / scale.tensor
    between = 0.0
    if scale.data > 1:
        between += 2 * parameters * (scale.data - 1) / scale.data
    if scale.fsdp > 1:
        between += 3 * parameters * (scale.fsdp - 1) / scale.fsdp
    config = answer["config"]
    activations = 2 * scale.tokens * config["width"]
    within = 4 * config["depth"] * 2 * activations * (scale.tensor - 1) / scale.tensor
    return between + within, between / link + within / NVLINK


def row(scale: Scale) -> list[Any]:
    """One line of the table."""
    answer = plan(scale)
    amount, seconds = sent(scale, answer)
    return [
        scale.devices,
        scale.how,
        answer["parameters"],
        answer["step_tokens"],
        round(answer["memory"]["peak"] / 1e9, 1),
        round(answer["step_seconds"], 2),
        round(amount / 1e9, 1),
        round(seconds, 2),
        round(answer["training_seconds"] / 86400, 2),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="Write the table here.")
    arguments = parser.parse_args()
    command = "python packages/tinylm-train/benchmarks/scale_plan.py"
    table = new_table("From one GPU to 1,024, computed", command, COLUMNS, [row(scale) for scale in SCALES])
    for line in [COLUMNS, *cells(table)]:
        print(" | ".join(str(value) for value in line))
    if arguments.json:
        write_table(table, arguments.json)


if __name__ == "__main__":
    main()
