"""What does not belong together is refused at each border, and so is what a later version wrote: in words."""

import json
import shutil

import pytest


@pytest.fixture
def refused(command):
    """Run a command that must fail with one clear message holding every one of `words`."""

    def check(*arguments, words=()):
        done = command(*arguments)
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, done.stderr
        for word in words:
            assert word in errors[0]

    return check


@pytest.fixture
def own(house, tmp_path):
    """A copy of the house's files that a test may spoil."""
    for folder in (house.tokenizer, house.tokens, house.model):
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path


def edit(path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_data_set_with_another_tokenizer_is_not_trained_on(own, other_house, refused) -> None:
    shutil.copy(other_house.tokenizer / "tokenizer.json", own / "tokens")
    new = own / "new"
    refused(
        "tinylm-train",
        "pretrain",
        "--data",
        own / "tokens",
        "--out",
        new,
        "--depth",
        1,
        "--steps",
        2,
        words=["tokenizer"],
    )
    assert not new.exists()


def test_a_data_set_is_not_prepared_over_with_another_tokenizer(own, house, other_house, refused, snapshot) -> None:
    before = snapshot(own)
    again = ["--validation", "tail:0.1", "--out", own / "tokens"]
    refused("tinylm-train", "prepare", house.text, "--tokenizer", other_house.tokenizer, *again, words=["tokenizer"])
    assert snapshot(own) == before


def test_a_checkpoint_does_not_go_on_with_another_data_set(own, other_house, refused, snapshot) -> None:
    before = snapshot(own / "model" / "steps")
    refused(
        "tinylm-train", "pretrain", "--data", other_house.tokens, "--out", own / "model", "--depth", 1, "--steps", 99
    )
    assert snapshot(own / "model" / "steps") == before


def test_a_checkpoint_does_not_write_with_another_tokenizer(own, other_house, refused) -> None:
    shutil.copy(other_house.tokenizer / "tokenizer.json", own / "model")
    refused("tinylm-infer", "generate", own / "model", "ANNA.", words=["tokenizer", "sha256"])


def test_weights_of_another_shape_are_refused(own, refused) -> None:
    edit(own / "model" / "config.json", lambda config: config.update(num_hidden_layers=2))
    refused("tinylm-infer", "generate", own / "model", "ANNA.", words=["model"])


def later(content) -> None:
    content["format"] = 2


def later_block(content) -> None:
    content["tinylm"]["format"] = 2


@pytest.mark.parametrize(
    ("file", "change", "name", "arguments"),
    [
        ("tokens/data.json", later, "tinylm-train", ["pretrain", "--data", "tokens", "--out", "new", "--steps", 2]),
        ("model/run/run.json", later, "tinylm-obs", ["compare", "model/run", "model/run"]),
        ("model/config.json", later_block, "tinylm-infer", ["generate", "model", "ANNA."]),
        ("model/config.json", later_block, "tinylm-model", ["inspect", "model"]),
    ],
    ids=["data.json", "run.json", "config.json-infer", "config.json-model"],
)
def test_a_later_format_is_refused_in_words(own, refused, file, change, name, arguments) -> None:
    edit(own / file, change)
    places = ("tokens", "model", "model/run", "new")
    refused(name, *(own / word if word in places else word for word in arguments), words=["format", "upgrade"])


def test_a_later_state_is_not_resumed(own, house, refused, snapshot) -> None:
    edit(own / "model" / "steps" / "00000012" / "state.json", later)
    before = snapshot(own / "model" / "steps")
    options = house.options.replace("--steps 12", "--steps 14").split()
    refused("tinylm-train", "pretrain", "--data", own / "tokens", "--out", own / "model", *options, words=["format"])
    assert snapshot(own / "model" / "steps") == before


def test_a_resumed_run_counts_its_attempts_and_goes_on(own, house, command) -> None:
    """The same command on the same files, as after Ctrl-C: here the last step is taken away, as if never made."""
    shutil.rmtree(own / "model" / "steps" / "00000012")
    done = command("tinylm-train", "pretrain", "--data", own / "tokens", "--out", own / "model", *house.options.split())
    assert done.returncode == 0, done.stderr
    assert json.loads((own / "model" / "run" / "run.json").read_text())["attempt"] == 2
    whole = house.model / "steps" / "00000012" / "model.safetensors"
    assert (own / "model" / "steps" / "00000012" / "model.safetensors").read_bytes() == whole.read_bytes()
