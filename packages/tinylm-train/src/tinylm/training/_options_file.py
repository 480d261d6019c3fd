"""Options from a TOML file, with flags over them, checked before a dataclass sees them; and back into such a file.

Not here: which options there are (config.py, finetuning/config.py), what they may be (their own checks).
"""

from __future__ import annotations

import json
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tinylm.training._errors import TrainingError


def options(
    kind: type, file: str | Path | None, flags: Mapping[str, Any], needed: tuple[str, ...], lengths: tuple[str, ...]
) -> dict[str, Any]:
    """What to make the dataclass `kind` of: the file's options, overridden by the `flags` that are not None.

    lengths: options of which one is given: as a flag, any of them takes the place of the file's.
    Raises TrainingError for a file that cannot be read and for unknown, missing or mistyped options.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(Path(file).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise TrainingError(f"wanted a TOML file with options at {file}, got: {error}") from None
    given = {name: value for name, value in flags.items() if value is not None}
    replaced = lengths if given.keys() & set(lengths) else ()
    values = {name: value for name, value in values.items() if name not in replaced} | given
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise TrainingError(
            f"wanted options of {kind.__name__}, got unknown {', '.join(unknown)}; known: {', '.join(hints)}"
        )
    missing = [name for name in needed if not values.get(name)]
    if missing:
        raise TrainingError(f"wanted {' and '.join(missing)} among the options, got none")
    return {name: _typed(name, value, hints[name]) for name, value in values.items()}


def write(path: Path, comments: list[str], values: Mapping[str, Any]) -> None:
    """Put `values` into a TOML file as a whole, but those that are None."""
    lines = [f"# {comment}" for comment in comments]
    lines += [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("\n".join(lines) + "\n", "utf-8")
    temporary.replace(path)


def _typed(name: str, value: Any, hint: Any) -> Any:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is Literal:
        return value  # the dataclass checks these
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed and int not in allowed:
        return float(value)
    if (isinstance(value, bool) and bool not in allowed) or not isinstance(value, tuple(allowed)):
        wanted = " or ".join(option.__name__ for option in allowed if option is not type(None))
        raise TrainingError(f"wanted {name} to be {wanted}, got {value!r}")
    return value
