"""Text to shards: every token accounted for, the splits as documented, and nothing left behind by bad input."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import Tokenizer, TokenizerError
from tinylm.training import TokenDataset, TrainingError, prepare
from tinylm.training._files import only_writer

MODULE = sys.modules["tinylm.training.prepare"]  # the package's attribute of that name is the function


def shards(folder: Path, split: str) -> tuple[np.ndarray, list[int]]:
    """All ids of a split, and where its documents start in them."""
    ids, starts, position = [], [], 0
    for path in sorted(p for p in folder.glob(f"{split}-*.npy") if "documents" not in p.name):
        shard = np.load(path)
        documents = np.load(path.with_suffix(".documents.npy"))
        assert documents.dtype == np.uint64
        assert all(start < len(shard) for start in documents)
        starts += [position + int(start) for start in documents]
        ids.append(shard)
        position += len(shard)
    return np.concatenate(ids), starts


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def documents(tmp_path, text):
    """Ten files of made text."""
    paths = []
    for number in range(10):
        paths.append(tmp_path / f"d{number}.txt")
        paths[-1].write_bytes(text(number, 80).encode())
    return paths


def test_ids_are_those_of_the_text_and_the_tail_is_held_back(house):
    tokenizer = Tokenizer.load(house.tokenizer)
    whole = house.text.read_bytes().decode()
    cut = int(len(whole) * 0.9)
    train, starts = shards(house.data, "train")
    assert train.tolist() == tokenizer.encode(whole[:cut])  # no end of text: the document goes on
    assert starts == [0]
    held, _ = shards(house.data, "validation")
    assert held.tolist() == [*tokenizer.encode(whole[cut:]), tokenizer.eos_id]


def test_data_json_says_what_the_shards_hold(house):
    description = json.loads((house.data / "data.json").read_text("utf-8"))
    whole = house.text.read_bytes()
    assert description["format"] == 1
    assert description["dtype"] == "uint16"
    assert (
        description["tokenizer"]["sha256"] == hashlib.sha256((house.data / "tokenizer.json").read_bytes()).hexdigest()
    )
    (source,) = description["sources"]
    assert source == {
        "name": house.text.name,
        "bytes": len(whole),
        "characters": len(whole.decode()),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }
    characters = 0
    for name, split in description["splits"].items():
        ids, _ = shards(house.data, name)
        assert split["tokens"] == len(ids) == sum(shard["tokens"] for shard in split["shards"])
        for shard in split["shards"]:
            for file, digest in (("file", "sha256"), ("documents_file", "documents_sha256")):
                assert shard[digest] == hashlib.sha256((house.data / shard[file]).read_bytes()).hexdigest()
        characters += split["characters"]
    assert characters == source["characters"]
    assert (house.data / "chat_template.jinja").read_bytes() == (house.tokenizer / "chat_template.jinja").read_bytes()


def test_a_role_that_only_tokenizer_config_json_names_stays(house, tmp_path):
    folder = tmp_path / "tokenizer"
    Tokenizer.train(["some words, and some more words"], vocab_size=260, special_tokens=["<a>", "<b>"]).save(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | {"eos_token": "<b>"}), "utf-8")
    text = tmp_path / "text.txt"
    text.write_text("words and words\n\n" * 50, "utf-8")
    prepare([text], tokenizer=folder, out=tmp_path / "data", validation="tail:0.1")
    assert Tokenizer.load(tmp_path / "data").eos_id == Tokenizer.load(folder).special_tokens["<b>"]


def test_a_share_of_the_documents_is_held_back_whole(house, documents, tmp_path):
    tokenizer = Tokenizer.load(house.tokenizer)
    prepare(documents, house.tokenizer, tmp_path / "out", "documents:0.3")
    encoded = {p: [*tokenizer.encode(p.read_bytes().decode()), tokenizer.eos_id] for p in documents}
    held, held_starts = shards(tmp_path / "out", "validation")
    train, train_starts = shards(tmp_path / "out", "train")
    chosen = set(sorted(documents, key=lambda p: hashlib.sha256(p.read_bytes()).hexdigest())[:3])
    assert held.tolist() == [i for p in documents if p in chosen for i in encoded[p]]
    assert train.tolist() == [i for p in documents if p not in chosen for i in encoded[p]]
    assert (len(held_starts), len(train_starts)) == (3, 7)
    assert train_starts[1] == len(encoded[next(p for p in documents if p not in chosen)])


def test_too_little_text_for_a_tail_is_not_told_to_take_one(house, tmp_path):
    (tmp_path / "short.txt").write_text("a")
    with pytest.raises(TrainingError, match=r"got none for train .*: give more text, or name a validation file"):
        prepare([tmp_path / "short.txt"], house.tokenizer, tmp_path / "out", "tail:0.1")


def test_a_file_is_the_validation_text(house, documents, tmp_path):
    tokenizer = Tokenizer.load(house.tokenizer)
    prepare(documents[:2], house.tokenizer, tmp_path / "out", documents[2])
    held, _ = shards(tmp_path / "out", "validation")
    assert held.tolist() == [*tokenizer.encode(documents[2].read_bytes().decode()), tokenizer.eos_id]
    assert len(shards(tmp_path / "out", "train")[1]) == 2


def test_line_ends_and_special_tokens_in_the_text_stay_text(house, tmp_path):
    tokenizer = Tokenizer.load(house.tokenizer)
    written = "one\r\ntwo\rthree<|endoftext|>four\n" * 9
    (tmp_path / "a.txt").write_bytes(written.encode())
    prepare([tmp_path / "a.txt"], house.tokenizer, tmp_path / "out", house.text)
    ids = shards(tmp_path / "out", "train")[0].tolist()
    assert tokenizer.eos_id not in ids[:-1]
    assert tokenizer.decode(ids[:-1]) == written


def test_blocks_of_a_long_text_give_the_ids_of_the_whole(house, tmp_path, monkeypatch):
    monkeypatch.setattr("tinylm.training._sources.BLOCK", 13)
    prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")
    assert np.array_equal(shards(tmp_path / "out", "train")[0], shards(house.data, "train")[0])


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=60), min_size=1, max_size=5
    ),
    size=st.integers(3, 40),
    share=st.sampled_from(["tail:0.1", "tail:0.5", "documents:0.4"]),
)
def test_every_token_of_any_texts_is_in_one_shard(house, texts, size, share):
    tokenizer = Tokenizer.load(house.tokenizer)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "SHARD_TOKENS", size)
        folder = Path(name)
        files = []
        for number, text in enumerate(texts):
            files.append(folder / f"{number}.txt")
            files[-1].write_bytes(text.encode())
        wanted: dict[str, list[list[int]]] = {"train": [], "validation": []}
        kind, fraction = share.split(":")
        ranked = sorted(files, key=lambda p: hashlib.sha256(p.read_bytes()).hexdigest())
        held = set(ranked[: max(1, round(len(files) * float(fraction)))])
        for file, text in zip(files, texts, strict=True):
            cut = int(len(text) * (1 - float(fraction))) if kind == "tail" else (0 if file in held else len(text))
            for split, part in (("train", text[:cut]), ("validation", text[cut:])):
                if part:
                    whole = split == "validation" or cut == len(text)
                    wanted[split].append(tokenizer.encode(part) + [tokenizer.eos_id] * whole)
        if not all(wanted.values()):
            with pytest.raises(TrainingError, match="left for training and for validation"):
                prepare(files, house.tokenizer, folder / "out", share)
            return
        prepare(files, house.tokenizer, folder / "out", share)
        for split, parts in wanted.items():
            ids, starts = shards(folder / "out", split)
            assert ids.tolist() == [i for part in parts for i in part]
            assert starts == np.cumsum([0, *map(len, parts)])[:-1].tolist()
            dataset = TokenDataset(folder / "out", split)  # and what was written can be read
            assert all(len(shard) <= size for shard in dataset.shards)
            assert dataset.ids(0, dataset.tokens).tolist() == ids.tolist()


def test_a_large_vocabulary_takes_four_bytes(house, tmp_path, monkeypatch):
    load = Tokenizer.load

    def wide(path):
        tokenizer = load(path)
        tokenizer.vocab_size = (1 << 16) + 1
        return tokenizer

    monkeypatch.setattr(Tokenizer, "load", wide)
    assert prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")["dtype"] == "uint32"
    ids, _ = shards(tmp_path / "out", "train")
    assert ids.dtype == np.uint32
    assert np.array_equal(ids, shards(house.data, "train")[0])


def test_the_same_again_changes_nothing(house, tmp_path):
    first = prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == times


def test_something_else_is_refused_by_name_and_replaced_when_asked(house, other_house, tmp_path):
    out = tmp_path / "out"
    prepare([house.text], house.tokenizer, out, "tail:0.1")
    before = snapshot(out)
    for files, tokenizer, share, names in (
        ([other_house.text], house.tokenizer, "tail:0.1", "sources"),
        ([house.text], other_house.tokenizer, "tail:0.1", "tokenizer"),
        ([house.text], house.tokenizer, "tail:0.2", "validation"),
    ):
        with pytest.raises(TrainingError, match=rf"differs in {names}.*--overwrite"):
            prepare(files, tokenizer, out, share)
    assert snapshot(out) == before
    prepare([other_house.text], other_house.tokenizer, out, "tail:0.1", overwrite=True)
    assert snapshot(out) == snapshot(other_house.data)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_damaged_data_set_is_not_called_the_same(house, tmp_path):
    shutil.copytree(house.data, tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(TrainingError, match=r"train-00000.npy is damaged.*--overwrite"):
        prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")
    prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1", overwrite=True)
    documents = tmp_path / "out" / "validation-00000.documents.npy"
    documents.write_bytes(documents.read_bytes()[:-1] + b"\1")
    with pytest.raises(TrainingError, match=r"documents.npy is damaged.*--overwrite"):
        prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")


def test_a_folder_that_another_process_fills_is_refused_in_words(house, tmp_path):
    left = tmp_path / ".out.1.tmp"
    left.mkdir()
    with (
        only_writer(left),
        pytest.raises(TrainingError, match=r"wanted to write .*out, got.* another process is writing"),
    ):
        prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")
    assert [p.name for p in tmp_path.iterdir()] == [left.name]
    prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")  # nobody holds it: it was left by a kill
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert snapshot(tmp_path / "out") == snapshot(house.data)


def test_overwrite_removes_data_sets_and_nothing_else(house, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "mine" / "novel.txt"):
        with pytest.raises(TrainingError, match=r"novel\.txt"):
            prepare([house.text], house.tokenizer, out, "tail:0.1", overwrite=True)
    assert snapshot(tmp_path) == {"mine/novel.txt": b"mine"}
    before = snapshot(house.tokenizer)
    with pytest.raises(TrainingError, match="holds a tokenizer and no data set"):
        prepare([house.text], house.tokenizer, house.tokenizer, "tail:0.1", overwrite=True)
    assert snapshot(house.tokenizer) == before
    with pytest.raises(TrainingError, match=r"mine/data\.json"):
        prepare([house.text], house.tokenizer, tmp_path / "mine", "tail:0.1")


@pytest.mark.parametrize(
    ("make", "share", "message"),
    [
        (None, "tail:0.1", "bad.txt"),
        (b"", "tail:0.1", "empty"),
        (b"\x00\x01\x02text", "tail:0.1", "binary"),
        (b"caf\xe9 au lait", "tail:0.1", "UTF-8.*0xe9"),
        (b"cut in a character \xc3", "tail:0.1", "UTF-8"),
        (b"text " * 50, "tail:0", "fraction"),
        (b"text " * 50, "tail:1", "fraction"),
        (b"text " * 50, "tail:nan", "fraction"),
        (b"text " * 50, "tail", "fraction"),
        (b"text " * 50, "documents:much", "fraction"),
        (b"text " * 50, "documents:0.5", "left for training and for validation"),
        (b"x", "tail:0.5", "left for training and for validation"),
        (b"text " * 50, "nowhere.txt", "nowhere.txt"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(house, tmp_path, make, share, message):
    if make is not None:
        (tmp_path / "bad.txt").write_bytes(make)
    before = snapshot(tmp_path)
    with pytest.raises(TrainingError, match=message):
        prepare([tmp_path / "bad.txt"], house.tokenizer, tmp_path / "new" / "out", share)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_no_file_a_folder_and_tokenizers_that_are_none(house, tmp_path):
    with pytest.raises(TrainingError, match="at least one"):
        prepare([], house.tokenizer, tmp_path / "out")
    with pytest.raises(TrainingError, match="directory"):
        prepare([house.data], house.tokenizer, tmp_path / "out")
    with pytest.raises(TokenizerError, match="nowhere"):
        prepare([house.text], tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        prepare([house.text], tmp_path / "bare", tmp_path / "out")
    (tmp_path / "bare" / "a.tiktoken").write_bytes(
        b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256))
    )
    with pytest.raises((TrainingError, TokenizerError)):  # a tokenizer, but no tokenizer.json to carry along
        prepare([house.text], tmp_path / "bare", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_file_stands_for_its_folder(house, tmp_path):
    prepare([house.text], house.tokenizer / "tokenizer.json", tmp_path / "out", "tail:0.1")
    assert snapshot(tmp_path / "out") == snapshot(house.data)


def test_a_name_that_is_not_utf8(house, tmp_path):
    strange = tmp_path / "caf\udce9.txt"
    try:
        shutil.copy(house.text, strange)
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    description = prepare([strange], house.tokenizer, tmp_path / "out", "tail:0.1")
    assert description["sources"][0]["name"] == "caf\N{REPLACEMENT CHARACTER}.txt"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_what_stood_there(house, other_house, tmp_path, monkeypatch, overwrite):
    if overwrite:
        shutil.copytree(other_house.data, tmp_path / "out")
    before = snapshot(tmp_path)
    save, calls = np.save, []

    def full(path, *arguments):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, *arguments)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(TrainingError, match=r"wanted to write .*out, got: No space left.*Free some space"):
        prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1", overwrite=overwrite)
    assert snapshot(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"] * overwrite


def test_what_a_killed_process_left_is_removed(house, tmp_path):
    left = tmp_path / ".out.1.tmp"
    left.mkdir()
    (left / "train-00000.npy").write_bytes(b"half")
    prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_progress_counts_every_character(house, tmp_path):
    seen: list[tuple[int, int]] = []
    prepare([house.text], house.tokenizer, tmp_path / "out", "tail:0.1", report=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (len(house.text.read_bytes().decode()),) * 2
    assert seen == sorted(seen)
