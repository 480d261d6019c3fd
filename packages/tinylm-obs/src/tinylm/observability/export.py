"""tinylm-obs · a run in other tools' formats: CSV, Prometheus text, TensorBoard, Parquet.

CSV and Prometheus' text exposition format are text; TensorBoard's event files are written here by hand, as TFRecords of
Event messages; Parquet needs the extra [parquet]. It does NOT read runs (`_readers.py`). Next: `sql.py`.
"""

import importlib
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ._atomic import write_bytes
from ._errors import ObservabilityError
from ._summary import columns_of
from ._values import number, utf8

_OWN = ("step", "time", "attempt")
Rows = Sequence[Mapping[str, Any]]


def prometheus(run: Mapping[str, Any], rows: Rows) -> str:
    """The newest value of every number, in Prometheus' text format (0.0.4): tinylm_loss{run="name"} 2.5."""
    newest: dict[str, tuple[float, float]] = {}
    for row in rows:
        newest |= {name: (value, row.get("time", 0.0)) for name, value in _numbers(row).items()}
    label = _label(run["name"])
    lines = []
    kinds = {name: _metric(name) for name in newest}
    seen = Counter(kinds.values())
    for name, (value, time) in newest.items():
        metric, layer = kinds[name]
        where = f',layer="{_label(layer)}"' if layer else ""
        if seen[metric, layer] > 1:  # names that differ in what Prometheus does not allow
            where += f',name="{_label(name)}"'
        shown = "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "Inf") if math.isinf(value) else repr(value)
        lines.append((metric, f'{metric}{{run="{label}"{where}}} {shown} {round(time * 1000)}'))
    text, before = "", None
    for metric, line in sorted(lines, key=lambda pair: pair[0]):
        text += (f"# TYPE {metric} gauge\n" if metric != before else "") + line + "\n"
        before = metric
    return text


def tensorboard(rows: Rows, histograms: Rows, directory: Path, name: str) -> Path:
    """Write an event file for TensorBoard into `directory` (made if missing): every number as a scalar, strings as
    text, histograms. Returns its path; an earlier export of the same run is replaced."""
    records = [_record(_event(rows[0].get("time", 0.0) if rows else 0.0, 0, [(3, b"brain.Event:2")]))]
    for row in rows:
        values = [_value(tag, [(2, _float32(value))]) for tag, value in _numbers(row).items()]
        values += [_text(tag, value) for tag, value in row.items() if isinstance(value, str)]
        if values:
            records.append(_record(_event(row.get("time", 0.0), row["step"], [(5, b"".join(values))])))
    for row in histograms:
        summary = _value(row["name"], [(5, _histogram(row["counts"], row["edges"]))])
        records.append(_record(_event(row.get("time", 0.0), row["step"], [(5, summary)])))
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObservabilityError(f"wanted a directory at {directory}, got {error.strerror}") from error
    path = directory / f"events.out.tfevents.0.{re.sub(r'[^A-Za-z0-9_.-]+', '-', name) or 'run'}"
    write_bytes(path, b"".join(records))
    return path


def parquet(rows: Rows, path: Path) -> None:
    """Write the metrics as Parquet, a column per name, missing values null. Raises ObservabilityError without
    pyarrow, or when a column holds numbers and text."""
    try:
        arrow, files = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ObservabilityError(
            'wanted pyarrow to write Parquet, got no such package: pip install "tinylm-obs[parquet]"'
        ) from None
    try:
        table = arrow.table({utf8(name): [utf8(row.get(name)) for row in rows] for name in columns_of(rows)})
    except (arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError) as error:
        raise ObservabilityError(f"wanted one type of value per name, got {error}; export CSV instead") from error
    sink = arrow.BufferOutputStream()
    files.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def _metric(name: str) -> tuple[str, str]:
    """(metric, layer) of a scalar's name."""
    base, _, layer = name.partition("/")
    return "tinylm_" + re.sub(r"[^a-zA-Z0-9_]+", "_", base).strip("_"), layer


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _float32(value: float) -> bytes:
    """Four bytes; what they cannot hold is inf."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: number(value)
        for name, value in row.items()
        if name not in _OWN and isinstance(value, int | float) and not isinstance(value, bool)
    }


# Protocol buffers, as far as Event needs them: a field is (number << 3 | wire type), then its bytes.


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _event(time: float, step: int, fields: Sequence[tuple[int, bytes]]) -> bytes:
    """Event: wall_time = 1 (double), step = 2 (int64), file_version = 3, summary = 5."""
    head = _varint(1 << 3 | 1) + struct.pack("<d", time) + _varint(2 << 3) + _varint(step)
    return head + b"".join(_bytes(field, data) for field, data in fields)


def _value(tag: str, fields: Sequence[tuple[int, bytes]]) -> bytes:
    """Summary.value (field 1): tag = 1, simple_value = 2 (float), histo = 5."""
    inner = _bytes(1, utf8(tag).encode())
    for field, data in fields:
        inner += _varint(field << 3 | 5) + data if field == 2 else _bytes(field, data)
    return _bytes(1, inner)


def _text(tag: str, text: str) -> bytes:
    """A string tensor with the metadata of TensorBoard's text plugin: tensor = 8, metadata = 9."""
    shape = _bytes(2, _bytes(2, _varint(1 << 3) + _varint(1)))
    tensor = _varint(1 << 3) + _varint(7) + shape + _bytes(8, utf8(text).encode())  # 7: DT_STRING
    metadata = _bytes(1, _bytes(1, b"text"))
    return _bytes(1, _bytes(1, utf8(tag).encode()) + _bytes(8, tensor) + _bytes(9, metadata))


def _histogram(counts: Sequence[float], edges: Sequence[float]) -> bytes:
    """HistogramProto: min, max, num, sum, sum_squares (1 to 5), bucket_limit = 6, bucket = 7 (packed doubles). The
    sums are those of the buckets' middles."""
    counts, edges = [number(count) for count in counts], [number(edge) for edge in edges]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    total = sum(count * middle for count, middle in zip(counts, middles, strict=True))
    squares = sum(count * middle * middle for count, middle in zip(counts, middles, strict=True))
    numbers = (edges[0], edges[-1], sum(counts), total, squares)
    head = b"".join(_varint(field << 3 | 1) + struct.pack("<d", value) for field, value in enumerate(numbers, 1))
    packed = [struct.pack(f"<{len(counts)}d", *values) for values in (edges[1:], counts)]
    return head + _bytes(6, packed[0]) + _bytes(7, packed[1])


def _record(data: bytes) -> bytes:
    """A TFRecord: length, its masked CRC, the data, its masked CRC."""
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of every byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()
