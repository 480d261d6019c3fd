"""tinylm-obs · tokens, FLOPs and MFU: how much of the machine a step uses.

Model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B): the FLOPs that the model's mathematics needs, over
the time, over the machine's peak. The peak here is *measured* (`roofline.py`), on whatever device: a data sheet's is
never reached, and a CPU has none. It does NOT count recomputation (activation checkpointing), which is MFU's
definition. Next: `roofline.py`.
"""

import math
from collections.abc import Callable
from typing import Any

from ._errors import ObservabilityError


class Throughput:
    """Turns tokens and seconds into figures worth logging.

        throughput = obs.Throughput(obs.throughput.flops_per_token(parameters, depth, width, context), peak=peak)
        run.log({"loss": loss, **throughput(tokens, seconds)})

    flops_per_token: forward and backward. peak: FLOP/s, measured (`roofline.peak("bfloat16", "cpu")`); without it no
    "mfu". Raises ObservabilityError for numbers that are not above 0.
    """

    def __init__(self, flops_per_token: float, peak: float | None = None) -> None:
        if not flops_per_token > 0 or (peak is not None and not peak > 0):
            raise ObservabilityError(f"wanted FLOPs a token and a peak above 0, got {flops_per_token} and {peak}")
        self.flops_per_token, self.peak = flops_per_token, peak

    def __call__(self, tokens: int, seconds: float) -> dict[str, float]:
        """{"tokens_per_second", "flops_per_second", "mfu" (0 to 1)} of `tokens` trained on in `seconds`."""
        speed = tokens / seconds
        values = {"tokens_per_second": speed, "flops_per_second": speed * self.flops_per_token}
        if self.peak is not None:
            values["mfu"] = values["flops_per_second"] / self.peak
        return values


def flops_per_token(parameters: int, depth: int, width: int, context: int) -> float:
    """6 N + 12 L D T: what training on one token takes, forward and backward (PaLM, appendix B).

    parameters: those in matrix products (a head tied to the embedding counts once; an embedding that is only looked up
    does not). width: of all heads together. Attention is counted in full, not only below the diagonal, as the paper
    does.
    """
    return 6.0 * parameters + 12.0 * depth * width * context


def count_flops(function: Callable[[], Any]) -> int:
    """The FLOPs of every matrix product and attention that torch carries out in a call, counted by torch's
    FlopCounterMode and, of what it leaves out (a CPU's attention, products in place or with vectors), here: for a model
    of any shape. As there, attention is counted in full, and its backward pass computes the scores once more."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=_more_formulas()) as counter:
        function()
    return int(counter.get_total_flops())


Shape = tuple[int, ...]


def _more_formulas() -> dict[Any, Callable[..., int]]:
    """Operation → FLOPs from the shapes of what it is given."""
    from torch import ops

    aten = ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: 2 * _attended(q, k) * (q[3] + v[3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: 2 * _attended(q, k) * (3 * q[3] + 2 * v[3])
        ),
        aten.addmm_: lambda base, a, b, **_: _product(a, b),
        aten.addbmm: lambda base, a, b, **_: _product(a, b),
        aten.addbmm_: lambda base, a, b, **_: _product(a, b),
        aten.baddbmm_: lambda base, a, b, **_: _product(a, b),
        aten._int_mm: lambda a, b, **_: _product(a, b),
        aten.addmv: lambda base, a, b, **_: 2 * math.prod(a),
        aten.addmv_: lambda base, a, b, **_: 2 * math.prod(a),
        aten.mv: lambda a, b, **_: 2 * math.prod(a),
        aten.dot: lambda a, b, **_: 2 * math.prod(a),
    }


def _product(a: Shape, b: Shape) -> int:
    """(..., m, k) times (..., k, n)."""
    return 2 * math.prod(a) * b[-1]


def _attended(queries: Shape, keys: Shape) -> int:
    """Pairs of a query and a key of all heads."""
    return math.prod(queries[:3]) * keys[2]
