"""The loggers that logging_cost.py compares: how each is opened, how a row is logged, what is there after a kill.

`WAYS`: name → (the package it needs, a function that opens a log in a folder and returns log(values, step)). It does
NOT measure.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Log = Callable[[dict[str, float], int], Any]


def by_hand(folder: Path) -> Log:
    descriptor = os.open(folder / "hand.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log(values: dict[str, float], step: int) -> None:
        os.write(descriptor, (json.dumps({"step": step, "time": time.time(), **values}) + "\n").encode())

    return log


def buffered_csv(folder: Path) -> Log:
    from tinylm.observability.buffered_csv import BufferedCsv

    file = BufferedCsv(folder / "rows.csv")
    return lambda values, step: file.append({"step": step, "time": time.time(), **values})


def ours(folder: Path) -> Log:
    from tinylm import observability as obs

    return obs.init(folder / "run").log


def trackio(folder: Path) -> Log:
    os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1"}
    import trackio

    run: Any = trackio.init(project="cost", name="run", embed=False)
    return lambda values, step: run.log(values, step=step)


def tensorboard(folder: Path) -> Log:
    """One event per scalar, as torch.utils.tensorboard's add_scalar writes it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))

    def log(values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    return log


def wandb(folder: Path) -> Log:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(folder)}
    import wandb

    run: Any = wandb.init(project="cost", dir=str(folder), mode="offline")
    return lambda values, step: run.log(values, step=step)


WAYS: dict[str, tuple[str | None, Callable[[Path], Log]]] = {
    "buffered CSV (a kill loses the buffer)": (None, buffered_csv),
    "json.dumps + os.write by hand": (None, by_hand),
    "run.log": (None, ours),
    "trackio": ("trackio", trackio),
    "tensorboard": ("tensorboard", tensorboard),
    "wandb, offline": ("wandb", wandb),
}


def kept(way: str, folder: Path) -> int | None:
    """How many rows are there after the writer was killed; None where nothing can be read."""
    with contextlib.suppress(Exception):  # whatever a peer's reader says of a file that was cut off
        if way == "json.dumps + os.write by hand":
            return len((folder / "hand.jsonl").read_text().splitlines())
        if way.startswith("buffered CSV"):
            return max(0, (folder / "rows.csv").read_text().count("\n") - 1)
        if way == "run.log":
            from tinylm import observability as obs

            return len(obs.read_metrics(folder / "run"))
        if way == "tensorboard":
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
            events.Reload()
            return len(events.Scalars("metric_9"))
        if way == "trackio":
            return sum(map(_sqlite_rows, folder.rglob("*.db")))
        return _wandb_rows(next(folder.rglob("*.wandb")))
    return 0


def _sqlite_rows(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = {row[0] for row in database.execute("select name from sqlite_master where type = 'table'")}
        return int(database.execute("select count(*) from metrics").fetchone()[0]) if "metrics" in tables else 0


def _wandb_rows(path: Path) -> int:
    """wandb's file is LevelDB's log format after seven bytes: blocks of 32 KiB of (CRC, length, type, part)."""
    from wandb.proto import wandb_internal_pb2

    data, place, record, rows = path.read_bytes(), 7, b"", 0
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block that holds no header
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            message: Any = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            rows += message.WhichOneof("record_type") == "history"
            record = b""
    return rows
