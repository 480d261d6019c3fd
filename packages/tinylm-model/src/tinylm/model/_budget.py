"""Time and money of a planned training, for the command `plan`: the rate, how long a step and all take, the price.

Not here: the formulas (plan.py), the devices' figures (hardware.py). Next: plan.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from tinylm.model import _report as report
from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig
from tinylm.model.hardware import DEVICES
from tinylm.model.plan import Layout, training_seconds

SMALLER = "--checkpointing, fewer --batch-tokens, --fsdp or --tensor make it less"
USUAL_MFU = 0.4  # of a device's peak, where none is given


def rate(
    device: str | None, mfu: float | None, flops_per_second: float | None, dtype: str, layout: Layout
) -> float | None:
    """FLOP/s of all devices together, or None where nothing is known of them."""
    if flops_per_second is not None and not 0 < flops_per_second < float("inf"):
        raise ModelError(f"--flops-per-second: wanted a number above 0, got {flops_per_second}")
    if mfu is not None and not 0 < mfu <= 1:
        raise ModelError(f"--mfu: wanted a part of the peak, above 0 and at most 1, got {mfu}")
    if device is None:
        if mfu is not None:
            raise ModelError("--mfu: wanted --device with it, whose peak it is a part of, got none")
        return flops_per_second
    if device not in DEVICES:
        raise ModelError(f"--device: wanted one of {', '.join(DEVICES)}, got {device!r}")
    if flops_per_second is not None:
        raise ModelError("plan: wanted --device or --flops-per-second, got both")
    if dtype not in ("bfloat16", "float16"):
        raise ModelError(f"plan: the devices' peaks are for bfloat16, got --dtype {dtype}; give --flops-per-second")
    return DEVICES[device].flops * (USUAL_MFU if mfu is None else mfu) * layout.devices


def cost(
    config: TransformerConfig,
    tokens: int,
    batch_tokens: int,
    checkpointing: bool,
    layout: Layout,
    rate: float | None,
    price: float | None,
) -> dict[str, float]:
    """Seconds of a step and of all of training, and its price."""
    if price is not None and not 0 <= price < float("inf"):
        raise ModelError(f"--price: wanted a number of at least 0, got {price}")
    if rate is None:
        if price is not None:
            raise ModelError("--price: wanted --device or --flops-per-second with it, got neither")
        return {}
    step = batch_tokens * layout.data * layout.fsdp
    seconds = training_seconds(config, tokens, rate, checkpointing)
    found: dict[str, float] = {"step_tokens": step, "step_seconds": training_seconds(config, step, rate, checkpointing)}
    found |= {"training_seconds": seconds, "flops_per_second": rate}
    return found if price is None else found | {"price": seconds / 3600 * layout.devices * price}


def in_words(cost: Mapping[str, float], device: str | None, mfu: float | None, layout: Layout) -> dict[str, str]:
    """The same for a reader, and how many devices there are."""
    count = f"{layout.devices} ({layout.data} data x {layout.fsdp} FSDP x {layout.tensor} tensor)"
    devices = {"devices": count if layout.devices > 1 else "1"}
    if not cost:
        return devices
    rate = f"{cost['flops_per_second']:.3e} FLOP/s"
    if device is not None:
        many = f"{layout.devices} x " if layout.devices > 1 else ""
        rate = f"{USUAL_MFU if mfu is None else mfu:.0%} of {many}{device}'s {DEVICES[device].flops / 1e12:.0f} TFLOP/s"
    said = devices | {"a step": f"{report.duration(cost['step_seconds'])} for {cost['step_tokens']:,} tokens"}
    said["training time"] = f"{report.duration(cost['training_seconds'])} at {rate}"
    return said | ({"price": f"{cost['price']:,.2f}"} if "price" in cost else {})
