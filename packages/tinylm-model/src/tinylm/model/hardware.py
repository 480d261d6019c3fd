"""What `tinylm-model plan` knows of devices: peak rate and memory, each from its maker's data sheet.

Dense bf16 products with fp32 sums (no sparsity), decimal bytes. Not here: prices, which change; the rate that a program
reaches (`--mfu`). Next: plan.py.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """flops: FLOP/s; memory: bytes; source: the document that says so."""

    flops: float
    memory: float
    source: str


DEVICES = {
    "b200": Device(2250e12, 180e9, "NVIDIA Blackwell technical brief, HGX B200, half of the sparse figure"),
    "h200": Device(989.4e12, 141e9, "NVIDIA H200 data sheet, SXM"),
    "h100": Device(989.4e12, 80e9, "NVIDIA H100 data sheet, SXM5"),
    "a100": Device(312e12, 80e9, "NVIDIA A100 80GB data sheet"),
    "l40s": Device(362.05e12, 48e9, "NVIDIA L40S data sheet"),
    "l4": Device(121e12, 24e9, "NVIDIA L4 data sheet"),
    "rtx4090": Device(165.2e12, 24e9, "NVIDIA Ada GPU architecture white paper, appendix A"),
}
