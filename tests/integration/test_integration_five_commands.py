"""The five commands, one after the other, as a script would run them: what each leaves behind and says.

Run once more by `nox -s integration` after one package was upgraded alone.
"""

import json

import pytest


def test_each_command_left_the_files_that_the_next_one_reads(house) -> None:
    assert {path.name for path in house.tokenizer.iterdir()} >= {"tokenizer.json", "chat_template.jinja"}
    assert {path.name for path in house.tokens.iterdir()} >= {
        "data.json",
        "tokenizer.json",
        "train-00000.npy",
        "train-00000.documents.npy",
        "validation-00000.npy",
    }
    published = ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
    for folder in (house.model, house.model / "steps" / "00000012"):
        assert {path.name for path in folder.iterdir()} >= set(published)
    assert (house.model / "steps" / "00000012" / "state.json").is_file()
    assert (house.model / "run" / "run.json").is_file()


def test_generate_continues_the_prompt_and_the_seed_decides(house, command) -> None:
    texts = [
        command("tinylm-infer", "generate", house.model, "ANNA.", "--max-tokens", 24, "--seed", s) for s in (3, 3, 4)
    ]
    assert [done.returncode for done in texts] == [0, 0, 0]
    assert texts[0].stdout.startswith("ANNA.")
    assert len(texts[0].stdout) > len("ANNA.\n")
    assert texts[0].stdout == texts[1].stdout != texts[2].stdout


def test_the_run_can_be_listed(house, command) -> None:
    done = command("tinylm-obs", "list", house.model)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout


def test_a_finished_run_says_so_and_changes_nothing(house, command, snapshot) -> None:
    before = snapshot(house.model)
    pretrain = ["pretrain", "--data", house.tokens, "--out", house.model, *house.options.split()]
    again = command("tinylm-train", *pretrain)
    assert again.returncode == 0, again.stderr
    assert "finished" in (again.stdout + again.stderr).lower()
    weights = {name: digest for name, digest in snapshot(house.model).items() if not name.startswith("run/")}
    assert weights == {name: digest for name, digest in before.items() if not name.startswith("run/")}


def test_what_pretrain_reports_is_what_evaluate_and_bench_measure(house, command, tmp_path) -> None:
    """Three ways to the bits per character of the same characters: in training, `evaluate`, and inference's `bench`."""
    rows = [json.loads(line) for line in (house.model / "run" / "metrics.jsonl").read_text().splitlines()]
    reported = rows[-1]["validation_bits_per_character"]
    held_out = tmp_path / "held_out.txt"
    text = house.text.read_text(encoding="utf-8")
    held_out.write_text(text[int(len(text) * 0.9) :], encoding="utf-8")
    bench = command(
        "tinylm-infer", "bench", house.model, "--perplexity", held_out, "--prompt-tokens", 4, "--max-tokens", 4
    )
    assert bench.returncode == 0, bench.stderr
    measured = json.loads(bench.stdout.splitlines()[-1])["perplexity"]["bits_per_character"]
    assert measured == pytest.approx(reported, rel=0.02)  # windows and the first token are cut a little differently


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("tinylm-tokenizer", "train"),
        ("tinylm-model", "inspect"),
        ("tinylm-train", "pretrain"),
        ("tinylm-infer", "generate"),
        ("tinylm-obs", "list"),
    ],
)
def test_every_command_answers_help_and_version(name, verb, command) -> None:
    assert verb in command(name, "--help").stdout
    assert command(name, verb, "-h").stdout == command(name, verb, "--help").stdout
    shown = command(name, verb, "--help")
    assert shown.returncode == 0
    assert f"{name} {verb} " in shown.stdout.split("--help")[-1]  # an example to copy, below the options
    version = command(name, "--version")
    assert version.returncode == 0
    assert version.stdout.startswith(f"{name} ")
