"""What prepare reads: JSON lines, Parquet and folders are documents; any number of threads; a kill loses little."""

from __future__ import annotations

import hashlib
import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinylm.tokenizer import Tokenizer
from tinylm.training import TokenDataset, TrainingError, prepare
from tinylm.training._sources import records

MODULE = sys.modules["tinylm.training.prepare"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def documents(folder: Path, split: str) -> list[list[int]]:
    """The documents of a split, put together again from its shards."""
    ids: list[int] = []
    starts: list[int] = []
    for path in sorted(p for p in folder.glob(f"{split}-*.npy") if "documents" not in p.name):
        starts += [len(ids) + int(start) for start in np.load(path.with_suffix(".documents.npy"))]
        ids += np.load(path).tolist()
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


@pytest.fixture
def texts(text) -> list[str]:
    return [text(number, 40) + "\r\nné <|endoftext|>\n" for number in range(60)]


@pytest.fixture
def lines(tmp_path, texts) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": 1, "body": t}) + "\n" + "\n" * (i % 2) for i, t in enumerate(texts)))
    return path


def encoded(house, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.load(house.tokenizer)
    return [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]


def test_each_line_is_a_document_and_the_last_tenth_of_them_is_held_back(house, lines, texts, tmp_path):
    description = prepare([lines], house.tokenizer, tmp_path / "out", field="body", license="CC0-1.0")
    wanted = encoded(house, texts)
    assert documents(tmp_path / "out", "train") == wanted[:54]
    assert documents(tmp_path / "out", "validation") == wanted[54:]
    assert description["license"] == "CC0-1.0"
    assert description["sources"] == [
        {
            "name": "corpus.jsonl",
            "bytes": lines.stat().st_size,
            "characters": sum(map(len, texts)),
            "sha256": hashlib.sha256(lines.read_bytes()).hexdigest(),
            "documents": 60,
            "field": "body",
        }
    ]
    assert sum(split["characters"] for split in description["splits"].values()) == sum(map(len, texts))


def test_a_share_of_the_documents_is_chosen_by_content(house, lines, texts, tmp_path):
    lines.write_bytes(lines.read_bytes() * 2)  # every document twice
    prepare([lines], house.tokenizer, tmp_path / "out", "documents:0.2", field="body")
    train, held = (documents(tmp_path / "out", split) for split in ("train", "validation"))
    assert sorted(train + held) == sorted(encoded(house, texts) * 2)
    assert 4 <= len(held) <= 50
    assert not [document for document in held if document in train]


def test_parquet_gives_the_shards_of_the_same_lines(house, lines, texts, tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"id": list(range(60)), "body": texts})
    parquet.write_table(table, tmp_path / "corpus.parquet", row_group_size=7)
    for name in ("jsonl", "parquet"):
        prepare([tmp_path / f"corpus.{name}"], house.tokenizer, tmp_path / name, field="body")
    for split in ("train", "validation"):
        assert documents(tmp_path / "parquet", split) == documents(tmp_path / "jsonl", split)
    assert list(records(tmp_path / "corpus.parquet", "body", 13)) == texts[13:]
    with pytest.raises(TrainingError, match=r"column 'text'.*'id', 'body'.*--field"):
        prepare([tmp_path / "corpus.parquet"], house.tokenizer, tmp_path / "no")
    with pytest.raises(TrainingError, match=r"every row of the column 'id'.*int"):
        prepare([tmp_path / "corpus.parquet"], house.tokenizer, tmp_path / "no", field="id")
    (tmp_path / "corpus.parquet").write_bytes(b"PAR1 and then something else PAR1")
    with pytest.raises(TrainingError, match="Parquet file"):
        prepare([tmp_path / "corpus.parquet"], house.tokenizer, tmp_path / "no", field="body")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_record_without_text_is_left_out_and_counted(house, texts, tmp_path, kind):
    path, given = tmp_path / f"corpus.{kind}", [*texts, None, *texts, "", None]
    if kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"text": given}), path)
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
    with pytest.warns(UserWarning, match=rf"^3 of 123 records of .*corpus.{kind} have no text, and are left out$"):
        prepare([path], house.tokenizer, tmp_path / "out", "tail:0.5")
    found = [*documents(tmp_path / "out", "train"), *documents(tmp_path / "out", "validation")]
    assert found == encoded(house, texts + texts)
    assert list(records(path, "text", 60))[:2] == ["", texts[0]]


def test_without_pyarrow_one_line_says_what_to_install(house, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    load = importlib.import_module

    def absent(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(TrainingError, match=r'pip install "tinylm-train\[parquet\]"') as raised:
        prepare([tmp_path / "a.parquet"], house.tokenizer, tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_a_folder_stands_for_its_files_and_their_split(house, texts, run, tmp_path):
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for number, (name, chosen) in enumerate(
        [
            ("data/train-00000-of-00002.jsonl", texts[:20]),
            ("data/train-00001-of-00002.jsonl", texts[20:40]),
            ("data/validation-00000-of-00001.jsonl", texts[40:50]),
            ("data/test-00000-of-00001.jsonl", texts[50:]),
        ]
    ):
        (folder / name).write_text("".join(json.dumps({"text": t, "n": number}) + "\n" for t in chosen))
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    description = prepare([folder], house.tokenizer, tmp_path / "out", folder)
    assert documents(tmp_path / "out", "train") == encoded(house, texts[:40])
    assert documents(tmp_path / "out", "validation") == encoded(house, texts[40:50])
    assert [s["name"] for s in description["sources"]] == [
        "hub/data/train-00000-of-00002.jsonl",
        "hub/data/train-00001-of-00002.jsonl",
        "hub/data/validation-00000-of-00001.jsonl",
    ]
    code, _, stderr = run("prepare", folder, house.text, "--tokenizer", house.tokenizer, "--out", tmp_path / "tail")
    left_out = f"{folder} has a validation split of its own, which --validation tail:0.1 leaves out"
    assert (code, stderr) == (0, f"warning: {left_out}: --validation {folder} takes it\n")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "b.txt").write_text(texts[1])
    (tmp_path / "plain" / "a.jsonl").write_text(json.dumps({"text": texts[0]}))
    prepare([tmp_path / "plain"], house.tokenizer, tmp_path / "out2", house.text)
    assert len(documents(tmp_path / "out2", "train")) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match=r"\.jsonl or \.parquet files in the directory .*empty, got none"):
        prepare([tmp_path / "empty"], house.tokenizer, tmp_path / "no")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"body": "b"}\n', r"field 'text' in line 2 of .*'body'.*--field"),
        (b'{"text": 5}\n', "line 1"),
        (b'["text"]\n', "line 1"),
        (b'{"text": "a"}\n{"text": "b"\n', "JSON object in line 2"),
        (b'{"text": "\\ud800"}\n', "half a surrogate"),
        (b'{"text": "\xff"}\n', "UTF-8"),
        (b'{"text": ""}\n', "--field"),
        (b"", "--field"),
        (b"[" * 100_000, "line 1"),
    ],
)
def test_lines_that_are_not_what_was_wanted(house, tmp_path, content, message):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(TrainingError, match=message) as raised:
        prepare([tmp_path / "bad.jsonl"], house.tokenizer, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_no_document_may_be_left_for_a_split(house, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "one document"}\n')
    with pytest.raises(TrainingError, match="left for training and for validation"):
        prepare([tmp_path / "one.jsonl"], house.tokenizer, tmp_path / "out", "documents:0.000001")
    assert [p.name for p in tmp_path.iterdir()] == ["one.jsonl"]


def test_any_number_of_threads_gives_the_same_bytes(house, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "SHARD_TOKENS", 333)
    monkeypatch.setattr("tinylm.training._sources.BLOCK", 100)
    monkeypatch.setattr("tinylm.tokenizer._streaming._ENOUGH", 50)
    made = []
    for threads in (1, 2, 5):
        out = tmp_path / str(threads)
        prepare([house.text, lines], house.tokenizer, out, field="body", threads=threads)
        made.append(snapshot(out))
    assert made[0] == made[1] == made[2]
    assert len(TokenDataset(tmp_path / "1").shards) > 10
    with pytest.raises(TrainingError, match="threads"):
        prepare([house.text], house.tokenizer, tmp_path / "no", threads=0)


_DYING = """
import json, os, signal, sys
saves, files, tokenizer, out, block, size = json.loads(sys.argv[1])
from tinylm.tokenizer import _streaming
from tinylm.training import _building, _sources
from tinylm.training.prepare import prepare
module = sys.modules["tinylm.training.prepare"]
_sources.BLOCK = _streaming._ENOUGH = block
module.SHARD_TOKENS = size
save, count = _building.Building.save, [0]
def dying(self):
    save(self)
    count[0] += 1
    if count[0] == saves:
        os.kill(os.getpid(), signal.SIGKILL)
_building.Building.save = dying
prepare(files, tokenizer, out, field="body")
"""


def killed_after(saves: int, files: list[Path], tokenizer: Path, out: Path, block: int, size: int) -> None:
    """In a process of its own: prepare, and die as kill -9 makes one die, after so many shards."""
    arguments = json.dumps([saves, [str(f) for f in files], str(tokenizer), str(out), block, size])
    done = subprocess.run([sys.executable, "-c", _DYING, arguments], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("saves", [1, 4, 9, 17])
def test_after_a_kill_it_goes_on_from_the_last_whole_shard(house, lines, tmp_path, monkeypatch, saves):
    block, size = 150, 301
    monkeypatch.setattr(MODULE, "SHARD_TOKENS", size)
    monkeypatch.setattr("tinylm.training._sources.BLOCK", block)
    monkeypatch.setattr("tinylm.tokenizer._streaming._ENOUGH", block)
    prepare([house.text, lines], house.tokenizer, tmp_path / "whole", field="body")
    out = tmp_path / "out"
    killed_after(saves, [house.text, lines], house.tokenizer, out, block, size)
    partial = tmp_path / ".out.partial"
    assert not out.exists()
    (partial / "train-00099.npy").write_bytes(b"half a shard, in no list")
    written = []
    fsync = MODULE.Writer._next
    monkeypatch.setattr(MODULE.Writer, "_next", lambda self: written.append(self.name) or fsync(self))
    prepare([house.text, lines], house.tokenizer, out, field="body")
    assert snapshot(out) == snapshot(tmp_path / "whole")
    assert not partial.exists()
    shards = sum(1 for name in snapshot(out) if name.endswith(".npy")) // 2
    assert len(written) < shards - saves + 4  # it began no shard that stood already


@pytest.mark.parametrize("change", ["a shard", "the state", "the input"])
def test_what_a_kill_left_of_something_else_is_not_used(house, lines, tmp_path, monkeypatch, change):
    monkeypatch.setattr(MODULE, "SHARD_TOKENS", 501)
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    killed_after(5, [lines], house.tokenizer, out, 1 << 18, 501)
    if change == "a shard":
        shard = bytearray((partial / "train-00001.npy").read_bytes())
        shard[-1] ^= 1
        (partial / "train-00001.npy").write_bytes(shard)
    elif change == "the state":
        (partial / "state.json").write_text('{"format": 1, "facts"')
    else:
        lines.write_bytes(lines.read_bytes().replace(b"<|endoftext|>", b"and so on", 1))
    prepare([lines], house.tokenizer, tmp_path / "whole", field="body")
    prepare([lines], house.tokenizer, out, field="body")
    assert snapshot(out) == snapshot(tmp_path / "whole")


def test_a_sentencepiece_tokenizer_goes_on_too(lines, texts, tmp_path, monkeypatch):
    pieces = Tokenizer.train(texts, vocab_size=300, algorithm="unigram")
    pieces.save(tmp_path / "tokenizer")
    (tmp_path / "long.txt").write_text("".join(texts))
    monkeypatch.setattr(MODULE, "SHARD_TOKENS", 501)
    prepare([tmp_path / "long.txt"], tmp_path / "tokenizer", tmp_path / "whole")
    killed_after(5, [tmp_path / "long.txt"], tmp_path / "tokenizer", tmp_path / "out", 1 << 18, 501)
    prepare([tmp_path / "long.txt"], tmp_path / "tokenizer", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


def test_ctrl_c_keeps_what_stands(house, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "SHARD_TOKENS", 501)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr("tinylm.training._sources.BLOCK", 1500)
    with pytest.raises(KeyboardInterrupt, match="The same command again goes on from its last whole shard"):
        prepare([lines], house.tokenizer, tmp_path / "out", field="body", report=stop)
    assert (tmp_path / ".out.partial" / "state.json").exists()
    prepare([lines], house.tokenizer, tmp_path / "out", field="body", report=lambda done, total: seen.append(done))
    assert seen[-1] == sum(len(text) for text in records(lines, "body"))
    assert not (tmp_path / ".out.partial").exists()
    assert sum(1 for _ in tmp_path.iterdir()) == 2
