"""How the commands show what they found: tables with rich, sizes and times in words, one JSON object.

Colours on a terminal only, and not with NO_COLOR (rich sees to both); elsewhere the text is plain and wide enough. Not
here: the facts themselves (_contents.py, plan.py). Next: cli.py.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinylm.model.config import TransformerConfig

_BAR = 20  # characters of a share of 1


def facts(config: TransformerConfig) -> dict[str, str]:
    """A shape in words."""
    kv = "" if config.kv_heads == config.heads else f", {config.kv_heads} for keys and values"
    per_token, inner = config.flops_per_token(), config.parameter_count(embeddings=False)
    window = f", a window of {config.window:,}" if config.window else ""
    window += f" from layer {config.window_from} on" if config.window_from else ""
    stretched = f", stretched ({config.rope_scaling.rope_type})" if config.rope_scaling else ""
    mlp, active = f"{config.activation}, {config.mlp_width} wide", ""
    if config.experts:
        mlp = f"{config.experts_per_token} of {config.experts} experts, each {mlp}"
        active = f"; a token meets {config.parameter_count(embeddings=False, active=True):,}"
    return {
        "vocabulary": f"{config.vocab_size:,}, {'head tied to the embedding' if config.tie_embeddings else 'own head'}",
        "context": f"{config.context:,} tokens, {config.position} positions{stretched}",
        "layers": f"{config.depth} of width {config.width}, {config.norm}",
        "attention": f"{config.heads} heads of {config.head_dim}{kv}{', QK-norm' if config.qk_norm else ''}{window}",
        "MLP": mlp,
        "parameters": f"{config.parameter_count():,}, {inner:,} of them in the layers{active}",
        "FLOPs per token": f"{per_token:,} to train, {per_token // 3:,} to read or write one",
    }


def layers(parameters: Mapping[str, tuple[tuple[int, ...], str, int]], total: int) -> Table:
    """parameters: name -> (shape, type in the file, numbers). Blocks of the same make share a row."""
    rows: dict[tuple[str, tuple[int, ...]], list[tuple[str, int]]] = {}
    for name, (shape, kind, count) in parameters.items():
        rows.setdefault((re.sub(r"^blocks\.\d+\.", "blocks.*.", name), shape), []).append((kind, count))
    table = _new("parameter", "shape", "type", "numbers", "share")
    table.columns[3].justify = "right"
    for (name, shape), found in rows.items():
        count = found[0][1]
        numbers = f"{len(found)} x {count:,}" if len(found) > 1 else f"{count:,}"
        kinds = ", ".join(sorted({kind for kind, _ in found}))
        table.add_row(escape(name), " x ".join(map(str, shape)), kinds, numbers, bar(count * len(found) / total))
    return table


def sizes(title: str, rows: Mapping[str, float], whole: float, total: str = "together") -> Table:
    """Bytes by kind, each with its share of `whole`; `total` names the last row's."""
    table = _new(title, "", "")
    table.columns[1].justify = "right"
    for kind, size in rows.items():
        if size:
            table.add_row(escape(kind), memory(size), bar(size / whole))
    table.add_row(f"[bold]{escape(total)}[/bold]", f"[bold]{memory(whole)}[/bold]", "")
    return table


def words(title: str, rows: Mapping[str, str]) -> Table:
    """Names and what is to be said of them."""
    table = _new(title, "")
    for key, value in rows.items():
        table.add_row(escape(key), escape(value))
    return table


def show(*tables: Table) -> None:
    """Print the tables; 120 columns where nobody says how many there are."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(width=width, highlight=False)
    for table in tables:
        console.print(table)


def as_json(fields: Mapping[str, Any]) -> str:
    """One object on one line."""
    return json.dumps({"format": 1, **fields})


def bar(share: float) -> str:
    """A share from 0 to 1 as a bar and per cent."""
    full = "█" if (sys.stdout.encoding or "utf-8").lower().startswith("utf") else "#"  # as rich draws its lines
    return f"[cyan]{full * math.ceil(min(share, 1) * _BAR - 0.5):{_BAR}}[/cyan] {share:6.1%}"


def memory(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.1f} days"


def _new(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
