"""run/config.toml: every option as it came out, so that the run can be repeated by one command.

Not here: run.json and the rows (tinylm.observability).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tinylm.training.checkpoint import Progress
from tinylm.training.config import TrainConfig


def repeat(out: Path, config: TrainConfig, progress: Progress) -> None:
    """Write out/run/config.toml. Precision, threads and compiling are what they came to, and minutes are steps once
    they are."""
    values = config.description() | {
        "data": str(Path(config.data).resolve()),
        "dtype": progress.dtype,
        "threads": progress.threads,
        "compile": "always" if progress.compiled else "never",
        "accept_changes": False,
    }
    if progress.total_steps is not None:
        values |= {"steps": progress.total_steps, "minutes": None}
    del values["out"]
    path = out / "run" / "config.toml"
    lines = [f"# The same run again: tinylm-train pretrain --config {path.resolve()} --out ANOTHER_DIR"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in values.items() if value is not None]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("\n".join(lines) + "\n", "utf-8")
    temporary.replace(path)
