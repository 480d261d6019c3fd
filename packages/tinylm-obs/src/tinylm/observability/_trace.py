"""tinylm-obs · torch's trace → time by operation and by module, a memory timeline, each operation on the roofline.

Reads the events of a Chrome trace: operations lie within each other in time, so an operation's own time is its
duration less its children's; a module's are the spans that `_modules.py` put around its calls; a backward operation
belongs to the module whose forward operation has the same sequence number. Plain data in, plain data out: it does NOT
record (`profiling.py`). Next: `_page.py`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ._cost import cost, kind
from .roofline import Roofline

MODULE = "module: "  # what `_modules.py` puts before a module's name
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
Event = Mapping[str, Any]


class Span(NamedTuple):
    """One operation with its own time (without what it calls), in seconds."""

    event: Event
    depth: int
    own: float
    module: str
    backward: bool


def spans(events: Iterable[Event]) -> list[Span]:
    """Operations and module calls of all threads, in order of time, each with its own time and module."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "user_annotation"):
            threads[event.get("pid"), event.get("tid")].append(event)
    found: list[Span] = []
    module_of: dict[int, str] = {}  # sequence number → the module that ran the forward operation
    for own in threads.values():
        found += _nested(sorted(own, key=lambda event: (event["ts"], -event["dur"])), module_of)
    return sorted(found, key=lambda span: float(span.event["ts"]))


def _nested(events: list[Event], module_of: dict[int, str]) -> list[Span]:
    found: list[tuple[Event, int, str, bool]] = []
    children: dict[int, float] = defaultdict(float)
    stack: list[tuple[float, int, str, bool]] = []  # end, index, module, backward
    for index, event in enumerate(events):
        start, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        while stack and start >= stack[-1][0] - 1e-3:
            stack.pop()
        if stack:
            children[stack[-1][1]] += float(event["dur"])
        _, _, module, backward = stack[-1] if stack else (0.0, 0, "", False)
        name, arguments = event["name"], event.get("args", {})
        sequence = arguments.get("Sequence number", -1)
        if name.startswith(MODULE):
            module, backward = name.removeprefix(MODULE), False
        elif name.startswith("autograd::engine::evaluate_function"):
            module, backward = module_of.get(sequence, ""), True
        elif sequence >= 0 and not backward:
            module_of.setdefault(sequence, module)  # the outermost operation with this number comes first
        found.append((event, len(stack), module, backward))
        stack.append((end, index, module, backward))
    return [
        Span(event, depth, max(0.0, float(event["dur"]) - children[index]) / 1e6, module, backward)
        for index, (event, depth, module, backward) in enumerate(found)
    ]


def device_seconds(events: Iterable[Event]) -> dict[int, float]:
    """Seconds on the GPU by the external id of the operation that launched them."""
    found: dict[int, float] = defaultdict(float)
    for event in events:
        if event.get("cat") in _DEVICE:
            found[event.get("args", {}).get("External id", -1)] += float(event["dur"]) / 1e6
    return found


def operations(found: Iterable[Span], device: Mapping[int, float], limit: Roofline | None) -> list[dict[str, Any]]:
    """One row per operation and type: calls, own CPU seconds, GPU seconds, FLOPs, bytes, and with a roofline the least
    time, the fraction of it and which limit applies; the most time first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for span in found:
        name, arguments = str(span.event["name"]), span.event.get("args", {})
        if span.event["cat"] != "cpu_op" or name.startswith("autograd::engine"):
            continue
        shapes, types = arguments.get("Input Dims", []), arguments.get("Input type", [])
        flops, moved = cost(name, shapes, types)
        row = rows.setdefault(
            (name, kind(types)),
            {"operation": name, "type": kind(types), "calls": 0, "cpu": 0.0, "gpu": 0.0, "flops": 0.0, "bytes": 0.0}
            | {"least": 0.0, "memory bound": 0.0},
        )
        row["calls"] += 1
        row["cpu"] += span.own
        row["gpu"] += device.get(arguments.get("External id", -2), 0.0)
        if limit is not None and moved and span.own > 0.25 * float(span.event["dur"]) / 1e6:
            least, bound = limit.seconds(flops, moved, kind(types))
            row["least"] += least
            row["memory bound"] += least if bound == "memory" else 0.0
            row["flops"] += flops
            row["bytes"] += moved
    return sorted((_placed(row) for row in rows.values()), key=lambda row: -max(row["cpu"], row["gpu"]))


def _placed(row: dict[str, Any]) -> dict[str, Any]:
    least, memory = row.pop("least"), row.pop("memory bound")
    seconds = row["gpu"] or row["cpu"]
    row["fraction of roofline"] = least / seconds if least and seconds else None
    row["bound"] = None if not least else "memory" if memory > least / 2 else "compute"
    return row


def modules(found: Iterable[Span], device: Mapping[int, float]) -> list[dict[str, Any]]:
    """One row per module: calls, own seconds forward and backward on the CPU (without the modules within it), GPU
    seconds; the most time first. What ran outside of any module stands under "(outside)"."""
    rows: dict[str, dict[str, Any]] = {}
    for span in found:
        name = span.module or "(outside)"
        row = rows.setdefault(name, {"module": name, "calls": 0, "forward": 0.0, "backward": 0.0, "gpu": 0.0})
        row["calls"] += str(span.event["name"]).startswith(MODULE)
        row["backward" if span.backward else "forward"] += span.own
        row["gpu"] += device.get(span.event.get("args", {}).get("External id", -2), 0.0)
    return sorted(rows.values(), key=lambda row: -(row["forward"] + row["backward"]))


def memory(events: Iterable[Event]) -> dict[str, list[tuple[float, int]]]:
    """device ("cpu", "cuda:0") → (seconds since the first event, bytes that torch has allocated)."""
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    timed = sorted(
        (event for event in events if "ts" in event and event.get("ph") in ("X", "i")), key=lambda e: e["ts"]
    )
    started = next((float(event["ts"]) for event in timed if event.get("cat") == "cpu_op"), 0.0)
    for event in timed:
        arguments = event.get("args", {})
        if event["name"] == "[memory]" and "Bytes" in arguments:
            device = "cpu" if arguments.get("Device Type") == 0 else f"cuda:{arguments.get('Device Id', 0)}"
            totals[device] += arguments["Bytes"]
            found[device].append((max(0.0, (float(event["ts"]) - started) / 1e6), totals[device]))
    return {device: _raised(points) for device, points in found.items()}


def _raised(points: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Memory that was allocated before the profile began is freed within it: the curve begins high enough for that."""
    lowest = min(0, min(size for _, size in points))
    return [(seconds, size - lowest) for seconds, size in points]
