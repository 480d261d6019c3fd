"""How a model stretches RoPE beyond the context that it was first trained on: the numbers, checked; no torch.

Linear (Chen et al. 2023), Llama 3's by parts (Dubey et al. 2024, as released with Llama 3.1) and YaRN (Peng et al.
2023). The fields have the names that config.json has in its rope_scaling or rope_parameters. Not here: the frequencies
themselves (rope.py), RoPE's base (config.py). Next: rope.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from tinylm.model._errors import ModelError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every frequency divided by `factor`: positions are squeezed into the old context."""

    factor: float
    rope_type: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        _check_factor(self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Low frequencies (fewer than `low_freq_factor` turns in the old context) divided by `factor`, high ones (more than
    `high_freq_factor` turns) as they were, a straight line between the two."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    rope_type: Literal["llama3"] = "llama3"

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_max_position_embeddings)
        _check_positive(self, "low_freq_factor", "high_freq_factor")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ModelError(
                f"rope_scaling: wanted high_freq_factor above low_freq_factor ({self.low_freq_factor}), "
                f"got {self.high_freq_factor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """Frequencies between `beta_slow` and `beta_fast` turns in the old context are mixed (truncate: from a whole pair
    to a whole pair), slower ones divided by `factor`; queries and keys are multiplied by `attention_factor`, by
    default 0.1 · ln(factor) + 1 (Peng et al. 2023, eq. 22)."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    rope_type: Literal["yarn"] = "yarn"

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        _check_context(self.original_max_position_embeddings)
        _check_positive(self, "beta_fast", "beta_slow")
        if self.attention_factor is not None:
            _check_positive(self, "attention_factor")
        if self.beta_fast < self.beta_slow:
            raise ModelError(
                f"rope_scaling: wanted beta_fast of at least beta_slow ({self.beta_slow}), got {self.beta_fast}"
            )
        if not isinstance(self.truncate, bool):
            raise ModelError(f"rope_scaling: wanted truncate to be true or false, got {self.truncate!r:.80}")

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by: queries and keys both, so the scores by its square."""
        return _magnitude(self.factor, 1.0) if self.attention_factor is None else self.attention_factor


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling
_KINDS: dict[str, type[RopeScaling]] = {"linear": LinearScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}
KINDS = ("default", *_KINDS)


def rope_scaling(parameters: Mapping[str, Any], context: Any) -> RopeScaling | None:
    """config.json's rope_scaling or rope_parameters, less rope_theta; None for RoPE as it was ("default").

    context: max_position_embeddings, the old context where the parameters name none. ModelError for a kind or a field
    that is not known here.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    kind = given.pop("rope_type", given.get("type", "default"))
    given.pop("type", None)  # the name before rope_type; files carry both
    if not isinstance(kind, str) or kind not in KINDS:
        raise ModelError(f"rope_scaling: wanted rope_type to be one of {KINDS}, got {kind!r:.80}: not supported here")
    if kind == "default":
        _refuse_unknown(given, (), kind)
        return None
    if kind == "yarn":
        _apply_mscale(given)
    names = [field.name for field in dataclasses.fields(_KINDS[kind]) if field.name != "rope_type"]
    _refuse_unknown(given, names, kind)
    if "original_max_position_embeddings" in names:
        given.setdefault("original_max_position_embeddings", context)
    missing = [
        field.name
        for field in dataclasses.fields(_KINDS[kind])
        if field.default is dataclasses.MISSING and field.name not in given
    ]
    if missing:
        raise ModelError(f"rope_scaling: wanted {', '.join(missing)} for rope_type {kind!r}, got none")
    return _KINDS[kind](**given)


def _apply_mscale(given: dict[str, Any]) -> None:
    """DeepSeek's two fields set the attention factor where it is not given itself."""
    both = [given.pop(name, None) for name in ("mscale", "mscale_all_dim")]
    for value in both:
        if value is not None and not _is_bounded_number(value):
            raise ModelError(f"rope_scaling: wanted mscale and mscale_all_dim to be numbers, got {value!r:.80}")
    if all(both) and "attention_factor" not in given:
        _check_factor(given.get("factor"))
        numerator, denominator = (_magnitude(given["factor"], value) for value in both)
        if denominator <= 0:
            raise ModelError(f"rope_scaling: wanted mscale_all_dim above 0, got {both[1]!r:.80}")
        given["attention_factor"] = numerator / denominator


def _magnitude(factor: float, scale: float | None) -> float:
    return 1.0 if factor <= 1 or scale is None else 0.1 * scale * math.log(factor) + 1.0


def _refuse_unknown(given: Mapping[str, Any], names: list[str] | tuple[str, ...], kind: str) -> None:
    unknown = sorted(given.keys() - set(names))
    if unknown:
        raise ModelError(
            f"rope_scaling: wanted only {', '.join(names) or 'no field'} for rope_type {kind!r}, "
            f"got {', '.join(unknown):.80}: not supported here"
        )


def _is_bounded_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e18 < value < 1e18


def _check_factor(value: Any) -> None:
    if not _is_bounded_number(value) or value < 1:
        raise ModelError(f"rope_scaling: wanted factor to be a number of at least 1, got {value!r:.80}")


def _check_context(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise ModelError(
            f"rope_scaling: wanted original_max_position_embeddings to be a whole number above 0, got {value!r:.80}"
        )


def _check_positive(scaling: Any, *names: str) -> None:
    for name in names:
        value = getattr(scaling, name)
        if not _is_bounded_number(value) or value <= 0:
            raise ModelError(f"rope_scaling: wanted {name} to be a number above 0, got {value!r:.80}")
