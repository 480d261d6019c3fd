"""Bad input, each kind of the table: one clear message, an exit code that says so, no traceback, nothing half-written.

A disk that is full is stood in for by a limit on the size of a file that a process may write.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def place(house, tmp_path):
    """A folder with a copy of everything, and with the bad inputs of the table."""
    for folder in (house.tokenizer, house.tokens, house.model):
        shutil.copytree(folder, tmp_path / folder.name)
    shutil.copy(house.text, tmp_path / "play.txt")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "binary.bin").write_bytes(bytes(range(256)) * 40)
    cut(tmp_path / "tokenizer", tmp_path / "cut_tokenizer", "tokenizer.json")
    cut(tmp_path / "tokens", tmp_path / "cut_tokens", "train-00000.npy")
    cut(tmp_path / "model", tmp_path / "cut_model", "model.safetensors")
    cut(tmp_path / "model", tmp_path / "cut_config", "config.json")
    shutil.copytree(tmp_path / "tokens", tmp_path / "flipped_tokens")
    with (tmp_path / "flipped_tokens" / "train-00000.npy").open("r+b") as shard:
        shard.seek(200)
        shard.write(b"\xff\xff")
    return tmp_path


def cut(source, target, name) -> None:
    """Copy a folder with one of its files cut in half."""
    shutil.copytree(source, target)
    content = (target / name).read_bytes()
    (target / name).write_bytes(content[: len(content) // 2])


def words_of(command: str, place) -> list[str]:
    """The arguments of a line of the table; @name is a path in `place`."""
    return [str(place / word[1:]) if word.startswith("@") else word for word in command.split()]


TOKENIZER = "tinylm-tokenizer train"
PREPARE = "tinylm-train prepare"
PRETRAIN = "tinylm-train pretrain --depth 1 --steps 2 --context 64 --device cpu --out @new"
GENERATE = "tinylm-infer generate"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (f"{TOKENIZER} @nowhere.txt --vocab-size 400 --out @new", 1, "nowhere.txt"),
        (f"{TOKENIZER} @empty.txt --vocab-size 400 --out @new", 1, "empty"),
        (f"{TOKENIZER} @binary.bin --vocab-size 400 --out @new", 1, "binary.bin"),
        (f"{TOKENIZER} @play.txt --vocab-size 100 --out @new", 1, "256"),
        (f"{TOKENIZER} @play.txt --vocab-size 400 --head 1.5 --out @new", (1, 2), "head"),
        (f"{TOKENIZER} @play.txt --vocab-size 400 --out @new --no-such-option", 2, "no-such-option"),
        (f"{PREPARE} @nowhere.txt --tokenizer @tokenizer --out @new", 1, "nowhere.txt"),
        (f"{PREPARE} @empty.txt --tokenizer @tokenizer --out @new", 1, "empty"),
        (f"{PREPARE} @binary.bin --tokenizer @tokenizer --out @new", 1, "binary.bin"),
        (f"{PREPARE} @play.txt --tokenizer @nowhere --out @new", 1, "nowhere"),
        (f"{PREPARE} @play.txt --tokenizer @cut_tokenizer --out @new", 1, "tokenizer.json"),
        (f"{PREPARE} @play.txt --tokenizer @tokenizer --validation tail:7 --out @new", 1, "tail:7"),
        (f"{PREPARE} @play.txt --tokenizer @tokenizer --out @new --no-such-option", 2, "no-such-option"),
        (f"{PRETRAIN} --data @nowhere", 1, "nowhere"),
        (f"{PRETRAIN} --data @cut_tokens", 1, "train-00000.npy"),
        (f"{PRETRAIN} --data @flipped_tokens", 1, "train-00000.npy"),
        (f"{PRETRAIN} --data @tokens --no-such-option", 2, "no-such-option"),
        (f"{PRETRAIN} --data @tokens --minutes 1", 1, "minutes"),
        (f"{GENERATE} @nowhere ANNA.", 1, "nowhere"),
        (f"{GENERATE} @cut_model ANNA.", 1, "model.safetensors"),
        (f"{GENERATE} @cut_config ANNA.", 1, "config.json"),
        (f"{GENERATE} @model ANNA. --top-p 7", (1, 2), "top"),
        (f"{GENERATE} @model ANNA. --no-such-option", 2, "no-such-option"),
        ("tinylm-model inspect @cut_model", 1, "model.safetensors"),
        ("tinylm-obs list @nowhere", 1, "nowhere"),
        ("tinylm-obs compare @tokens @model/run", 1, "tokens"),
    ],
)
def test_bad_input_is_one_message(line, code, said, place, command, snapshot) -> None:
    before = snapshot(place)
    name, *arguments = words_of(line, place)
    done = command(name, *arguments)
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    assert said.lower() in done.stderr.lower()
    if done.returncode == 1:
        assert len([row for row in done.stderr.splitlines() if row.startswith("error:")]) == 1, done.stderr
    assert snapshot(place) == before
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        (f"{TOKENIZER} @play.txt --vocab-size 400 --out @new", 100),
        (f"{PREPARE} @play.txt --tokenizer @tokenizer --validation tail:0.1 --out @new", 12000),
        (f"{PRETRAIN} --data @tokens", 100_000),
    ],
)
def test_a_full_disk_is_one_message_and_leaves_nothing_half_written(line, limit, place, command, snapshot) -> None:
    before = snapshot(place)
    name, *arguments = words_of(line, place)
    done = command(name, *arguments, file_size_limit=limit)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert len([row for row in done.stderr.splitlines() if row.startswith("error:")]) == 1, done.stderr
    left = {file for file in snapshot(place) if file not in before}
    assert {file for file in left if not file.startswith("new/run/")} == set()  # a run's log may stand: it is whole


def test_text_goes_to_a_full_device_without_a_traceback(house) -> None:
    line = [sys.executable, "-m", "tinylm.inference", "generate", str(house.model), "ANNA.", "--max-tokens", "4"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error:" in done.stderr
