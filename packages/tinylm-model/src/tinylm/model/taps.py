"""What a forward pass recorded, each value with the line of code that computed it, and the logit lens.

Any dict will do as `taps` where the line does not matter. Not here: which values there are (transformer.py lists them
with their shapes). Next: transformer.py.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from tinylm.model.transformer import Transformer


class Source(NamedTuple):
    """A statement: the path of its file, its first line counted from 1, and its text."""

    file: str
    line: int
    text: str


class Taps(dict[str, Tensor]):
    """A dict for `taps` that also keeps, in `sources`, the statement that computed each value.

    The model writes `taps["blocks.0.mlp"] = mlp`: of that line's file the syntax tree is read, and the statement above
    it that gave `mlp` its value is the source. The model pays nothing for it, and knows nothing of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sources: dict[str, Source] = {}

    def __setitem__(self, name: str, value: Tensor) -> None:
        super().__setitem__(name, value)
        frame = sys._getframe(1)  # the function that recorded the value
        self.sources[name] = _recorded(frame.f_code.co_filename, frame.f_lineno, frame.f_globals["__name__"])


def logit_lens(model: Transformer, taps: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What the model would predict if it stopped early: ("embed", logits (B, T, V)), then "blocks.0.output", ...

    The final norm and the head are applied to the residual stream as it stands after each block (nostalgebraist 2020);
    the last is what the model returns. One layer at a time, since logits are large.
    """
    for name in ("embed", *(f"blocks.{layer}.output" for layer in range(model.config.depth))):
        yield name, F.linear(model.final_norm(taps[name]), model.head_weight)


@lru_cache(maxsize=1024)
def source_at(file: str, line: int) -> tuple[Source, ast.stmt]:
    """The innermost statement on a line of a file that can be read, as text and as syntax."""
    _, statement = _statement(file, line)
    return _source(file, statement), statement


@lru_cache(maxsize=256)
def _recorded(file: str, line: int, module: str) -> Source:
    """The statement that computed what the line `file`:`line` records; that line where it cannot be told."""
    try:
        return _computed(file, line, module)
    except (ValueError, SyntaxError):  # typed at a prompt, at a module's top level, or bound by a for
        return Source(file, line, linecache.getline(file, line).strip())


def _computed(file: str, line: int, module: str) -> Source:
    function, at = _statement(file, line)
    value = at.value if isinstance(at, ast.Assign) else None
    if isinstance(value, ast.Name):
        return _binding(file, function, value.id, line)
    if isinstance(at, ast.Assign) and isinstance(at.targets[0], ast.Tuple) and isinstance(value, ast.Call):
        # y, taps[...] = f(...): what f returns in that place
        place = [isinstance(part, ast.Subscript) for part in at.targets[0].elts].index(True)
        called = getattr(sys.modules[module], value.func.id, None) if isinstance(value.func, ast.Name) else None
        if called is not None:
            there, first = called.__code__.co_filename, called.__code__.co_firstlineno
            (body,) = [n for n in ast.walk(_tree(there)) if isinstance(n, ast.FunctionDef) and n.lineno == first]
            last = body.body[-1]
            if isinstance(last, ast.Return) and isinstance(last.value, ast.Tuple):
                result = last.value.elts[place]
                if isinstance(result, ast.Name):
                    return _binding(there, body, result.id, last.lineno)
    return _source(file, at)


def _binding(file: str, function: ast.AST, name: str, before: int) -> Source:
    """The last statement above the line `before` that gives `name` its value."""
    found = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
        and node.lineno < before
        and any(
            isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Store)
            for part in ast.walk(node)
        )
    ]
    return _source(file, max(found, key=lambda node: node.lineno))


def _statement(file: str, line: int) -> tuple[ast.AST, ast.stmt]:
    """The innermost function around a line, and the innermost statement on it."""
    around = [
        node
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    functions = [node for node in around if isinstance(node, ast.FunctionDef)]
    return max(functions, key=lambda node: node.lineno), max(around, key=lambda node: node.lineno)


def _source(file: str, node: ast.stmt) -> Source:
    lines = linecache.getlines(file)[node.lineno - 1 : node.end_lineno]
    return Source(file, node.lineno, "".join(lines).strip())


@lru_cache(maxsize=16)
def _tree(file: str) -> ast.Module:
    return ast.parse("".join(linecache.getlines(file)))
