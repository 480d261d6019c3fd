"""A forward pass watched line by line: every value that the model's own statements computed, and which statement.

taps.py keeps the values that the model offers, at no cost when nobody asks; this one watches the interpreter
(sys.settrace) and sees every local variable, so that a number can be followed down to the product that made it. Not
here: what is done with them (tinylm.inference's explorer). Next: transformer.py, whose lines these are.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinylm.model.taps import Source, source_at
from tinylm.model.transformer import Transformer

_HERE = str(Path(__file__).parent)


class Computed(NamedTuple):
    """A value and the statement that gave it."""

    value: Tensor
    source: Source


Trace = dict[str, Computed]


def trace_forward(model: Transformer, ids: Tensor) -> Trace:
    """Every tensor that a statement of this package bound or returned during model(ids, taps={}), by
    "<module>.<function>.<name>": "blocks.3.mlp.forward.inner", "blocks.0.attention.attend_with_pattern.scores",
    "forward.logits"; "return" is the name of what a function returns. A name that is bound again keeps the last value
    in "<...>.<name>" and has the first in "<...>.<name>#0", and so on. No gradients.
    """
    names = {id(module): name for name, module in model.named_modules()}
    trace: Trace = {}
    counts: dict[str, int] = {}
    pending: dict[FrameType, tuple[Source, list[str]]] = {}

    def keep(frame: FrameType, name: str, value: object, source: Source) -> None:
        if isinstance(value, Tensor):
            key = f"{_module(frame, names)}{frame.f_code.co_name}.{name}"
            number = counts[key] = counts.get(key, -1) + 1
            trace[f"{key}#{number}"] = trace[key] = Computed(value, source)

    def finish(frame: FrameType) -> None:
        if frame in pending:
            source, bound = pending.pop(frame)
            for name in bound:
                keep(frame, name, frame.f_locals.get(name), source)

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call":
            # a comprehension is part of the statement around it
            file = frame.f_code.co_filename
            return watch if file.startswith(_HERE) and not frame.f_code.co_name.startswith("<") else None
        finish(frame)
        source, statement = source_at(frame.f_code.co_filename, frame.f_lineno)
        if event == "line":
            pending[frame] = (source, _bound(statement))
        elif event == "return":
            values = argument if isinstance(argument, tuple) else (argument,)
            for place, value in enumerate(values):
                keep(frame, "return" if place == 0 else f"return.{place}", value, source)
            pending.pop(frame, None)
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        with torch.no_grad():
            model(ids, taps={})
    finally:
        sys.settrace(before)
    return trace


def _module(frame: FrameType | None, names: dict[int, str]) -> str:
    """The model's module that is at work: the nearest `self` that is one, with a dot behind it; "" for the model."""
    while frame is not None:
        name = names.get(id(frame.f_locals.get("self")))
        if name is not None:
            return f"{name}." if name else ""
        frame = frame.f_back
    return ""


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement gives a value."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    return [part.id for part in ast.walk(statement) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
