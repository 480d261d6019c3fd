"""Training's ladders as plain data, for `tinylm-obs ladder optimizer` and `data`.

A collector: the rungs stand in _optimizer_ladder.py and _data_ladder.py. No import of tinylm.observability, and torch
only once work is made. Not here: timing and tables.
"""

from __future__ import annotations

from typing import Any

from tinylm.training import _data_ladder, _optimizer_ladder


def rungs() -> list[dict[str, Any]]:
    """Lowest rung first within each ladder; see tinylm.observability for the meaning of the keys."""
    return [*_data_ladder.rungs(), *_optimizer_ladder.rungs()]
