"""Karpathy's own microgpt.py, timed by itself: what microgpt_step.py stands in for where the file is not at hand.

The file (gist 8627fe009c40f57531cb18360106ce95) is the reader's; nothing of it is kept here. It is read, never
imported: from its syntax tree a reduced program is made (its training loop on the names given, with a clock around each
step and without its prints, the sampling after it left out) and run as a process of its own. What it does NOT do: look
for the file. Next: rungs.py.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

_BEFORE = """
import json as _json, sys as _sys, time as _time
docs, num_steps = _json.loads(_sys.stdin.read())
_found = {"weights": [p.data for p in params], "ids": [], "losses": [], "seconds": []}
"""
_FIRST = "_begun = _time.process_time()"
_LAST = """
_found["seconds"].append(_time.process_time() - _begun)
_found["losses"].append(loss.data)
_found["ids"].append(tokens)
"""
_AFTER = "_sys.stdout.write(_json.dumps(_found))"


class Run(NamedTuple):
    """What the program told of its run: its first weights, and the ids, loss and CPU seconds of each step."""

    weights: list[float]
    ids: list[list[int]]
    losses: list[float]
    seconds: list[float]


def reduced(source: str) -> str:
    """The program that trains and times itself, from microgpt.py's text. Raises SystemExit where that is not it."""
    body: list[Any] = ast.parse(source).body
    places = [at for at, node in enumerate(body) if isinstance(node, ast.For) and ast.unparse(node.target) == "step"]
    if not places:
        raise SystemExit("--microgpt: wanted Karpathy's microgpt.py, got a file without a loop over steps")
    loop = body[places[0]]
    steps = [node for node in loop.body if not _is_print(node)]
    loop.body = [*ast.parse(_FIRST).body, *steps, *ast.parse(_LAST).body]
    before = [node for node in body[: places[0]] if not _is_print(node)]
    tree = ast.Module([*before, *ast.parse(_BEFORE).body, loop, *ast.parse(_AFTER).body], type_ignores=[])
    return ast.unparse(ast.fix_missing_locations(tree))


def run(file: Path, names: list[str], steps: int) -> Run:
    """Train `steps` steps on `names` in turn, each as one document."""
    try:
        program = reduced(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise SystemExit(f"--microgpt: wanted Karpathy's microgpt.py, got {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        # what the program takes its letters from; that it is there keeps it from the network
        Path(folder, "input.txt").write_text("abcdefghijklmnopqrstuvwxyz\n", encoding="utf-8")
        command = [sys.executable, "-c", program]
        told = json.dumps([names, steps])
        done = subprocess.run(command, cwd=folder, input=told, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"--microgpt: {file} does not run as microgpt.py: {done.stderr.splitlines()[-1]}")
    return Run(**json.loads(done.stdout))


def _is_print(node: ast.stmt) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) == "print"
