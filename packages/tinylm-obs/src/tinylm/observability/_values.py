"""tinylm-obs · Python values → JSON, and back.

Two jobs: `plain_row` turns the values given to `log` into a row that strict JSON can hold (numbers that are not finite
become null and are named beside it), `jsonable` does the same for configurations of any shape. `decode_row` reads a
row back. It does NOT touch files (`jsonl.py`) and does NOT import numpy or torch: their scalars are known by `.item()`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from ._errors import ObservabilityError

RESERVED = ("step", "time", "attempt", "nonfinite")
LARGEST = 2**63 - 1  # of steps and attempts: what other tools' tables hold
_DIGITS = 14_000  # bits of 4,200 decimal digits: Python turns no longer number into text
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # those of the reading direction, too
_NONFINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def is_finite(value: float) -> bool:
    """True for every number but nan, inf and -inf."""
    return value - value == 0  # inf - inf and nan - nan are nan: cheaper than importing math's name for it


def scalar(name: str, value: object) -> bool | int | float | str | None:
    """One logged value as a plain Python scalar; `.item()` of arrays and tensors of one element is taken."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if value.bit_length() > _DIGITS:
            raise ObservabilityError(f"wanted a number that JSON can hold for {name!r}, got one of thousands of digits")
        return int(value)  # IntEnum and other subclasses lose their dress
    if isinstance(value, float):
        return float(value)
    item = getattr(value, "item", None)
    if callable(item):
        try:
            plain = item()
        except (ValueError, RuntimeError, TypeError) as error:
            raise ObservabilityError(f"wanted one number for {name!r}, got {_describe(value)}; log its mean") from error
        if plain is not value:
            return scalar(name, plain)
    raise ObservabilityError(
        f"wanted a number, boolean, string or None for {name!r}, got {_describe(value)}; "
        "log one scalar per name (histogram() takes counts and edges)"
    )


def number(value: float) -> float:
    """A number of JSON as a machine's: an integer that is too large becomes inf or -inf."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def utf8(value: Any) -> Any:
    """Text with "?" for the half of a surrogate pair, which no other tool takes; anything else as it is."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def visible(text: str, keep: str = "") -> str:
    """Text for a terminal: control characters, which could move its cursor or change what stands there, as escapes;
    but for those of `keep`."""
    return _CONTROLS.sub(lambda one: one[0] if one[0] in keep else one[0].encode("unicode_escape").decode(), text)


def plain_row(row: Mapping[str, object]) -> dict[str, object]:
    """`row` with plain scalars only; numbers that are not finite are None and named under "nonfinite"."""
    plain: dict[str, object] = {}
    nonfinite: dict[str, str] = {}
    for name, value in row.items():
        if not isinstance(name, str):
            raise ObservabilityError(f"wanted a name that is a string, got {name!r}")
        value = scalar(name, value)
        if isinstance(value, float) and not is_finite(value):
            nonfinite[name] = str(value)
            value = None
        plain[name] = value
    if nonfinite:
        plain["nonfinite"] = nonfinite
    return plain


def decode_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as it was logged: numbers named under "nonfinite" are nan, inf or -inf again."""
    decoded = dict(row)
    if "nonfinite" not in decoded:
        return decoded
    nonfinite = decoded.pop("nonfinite")
    if isinstance(nonfinite, dict):
        for name, word in nonfinite.items():
            if isinstance(word, str) and word in _NONFINITE and name not in RESERVED:
                decoded[name] = _NONFINITE[word]
    return decoded


def jsonable(value: object) -> Any:
    """A configuration as JSON data: dataclasses and mappings → objects, sequences and sets → lists, paths → strings,
    enums → their value, array scalars → numbers; anything else (a torch.dtype, a function) → its `str`."""
    if isinstance(value, Enum):
        return jsonable(value.value)
    if isinstance(value, Mapping):
        return _object(value.items())
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):
        return _object((name, getattr(value, name)) for name in fields)
    if isinstance(value, list | tuple):
        return [jsonable(element) for element in value]
    if isinstance(value, set | frozenset):
        return sorted((jsonable(element) for element in value), key=repr)  # a set has no order of its own
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    try:
        plain = scalar("configuration", value)
    except ObservabilityError:
        return hex(value) if isinstance(value, int) else str(value)
    return str(plain) if isinstance(plain, float) and not is_finite(plain) else plain


def _object(items: Iterable[tuple[object, object]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    nonfinite: dict[str, str] = {}
    for key, value in items:
        if isinstance(value, float) and not is_finite(value):
            nonfinite[str(key)] = str(float(value))
            value = None
        data[str(key)] = jsonable(value)
    if nonfinite:
        data["nonfinite"] = nonfinite
    return data


def _describe(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
