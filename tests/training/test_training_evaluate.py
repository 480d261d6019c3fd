"""evaluate: bits per byte, perplexity, and questions in the formats of HellaSwag, ARC and GSM8K, with intervals."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from tinylm.model import Transformer, TransformerConfig  # noqa: E402  # after importorskip
from tinylm.tokenizer import Tokenizer  # noqa: E402
from tinylm.training import TrainingError  # noqa: E402
from tinylm.training.finetuning import FinetuneConfig, finetune  # noqa: E402
from tinylm.training.tasks import Share, choice, run_task  # noqa: E402

SUMS = {"1 + 1": "2", "2 + 1": "3", "2 + 2": "4", "3 + 2": "5"}


@pytest.fixture(scope="module")
def models(house, tmp_path_factory):
    """(untrained, one that knows four sums by heart)."""
    base, tuned = tmp_path_factory.mktemp("models") / "base", tmp_path_factory.mktemp("models") / "tuned"
    tokenizer = Tokenizer.load(house.data)
    torch.manual_seed(0)
    config = TransformerConfig.preset("qwen3", vocab_size=tokenizer.vocab_size, depth=1, width=64, context=48)
    Transformer(config).save(base)
    tokenizer.save(base)
    data = base.parent / "sums.jsonl"
    write(data, *[{"prompt": f"Question: {q}\nAnswer:", "completion": f" {a}"} for q, a in SUMS.items()])
    options = {"steps": 60, "batch_size": 4, "learning_rate": 0.01, "device": "cpu"}
    finetune(FinetuneConfig(checkpoint=str(base), data=str(data), out=str(tuned), **options))
    return base, tuned


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_wilsons_interval_is_the_published_one():
    low, high = Share(8, 10).interval  # 0.4902, 0.9433: Newcombe 1998's formula worked by hand
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert Share(0, 20).interval[0] == 0
    assert Share(20, 20).interval[1] == 1


def test_questions_with_answers_are_right_after_training_and_not_before(models, tmp_path):
    file = write(tmp_path / "gsm", *[{"question": q, "answer": f"It is so.\n#### {a}"} for q, a in SUMS.items()])
    base, tuned = models
    assert run_task(tuned, file, "cpu", max_tokens=4)["exact_match"].right == 4
    assert run_task(base, file, "cpu", max_tokens=4)["exact_match"].right == 0


def test_a_question_is_not_cut_for_an_answer_that_may_be_as_long_as_the_context(models, tmp_path):
    file = write(tmp_path / "gsm", *[{"question": q, "answer": f"#### {a}"} for q, a in SUMS.items()])
    assert run_task(models[1], file, "cpu")["exact_match"].right == 4  # 128 may be written, and it sees 48


def test_multiple_choice_takes_the_likeliest_ending(models, tmp_path):
    _, tuned = models
    arc = [
        {"question": q, "choices": {"text": ["9", a, "8"], "label": ["A", "B", "C"]}, "answerKey": "B"}
        for q, a in SUMS.items()
    ]
    shares = run_task(tuned, write(tmp_path / "arc", *arc), "cpu")
    assert (shares["accuracy"].right, shares["accuracy"].asked) == (4, 4)
    wrong = [{**record, "answerKey": "A"} for record in arc]
    assert run_task(tuned, write(tmp_path / "wrong", *wrong), "cpu")["accuracy"].right == 0
    hellaswag = [
        {"ctx": f"Question: {q}\nAnswer:", "endings": ["7", a], "label": 1 if i else "1"}
        for i, (q, a) in enumerate(SUMS.items())
    ]
    assert run_task(tuned, write(tmp_path / "hs", *hellaswag), "cpu")["accuracy_per_byte"].right == 4


def test_the_command_says_it_in_words_and_in_json(run, models, house, tmp_path):
    file = write(tmp_path / "gsm", *[{"question": q, "answer": a} for q, a in SUMS.items()])
    options = ["--data", house.data, "--task", file, "--max-tokens", 4, "--device", "cpu"]
    code, stdout, stderr = run("evaluate", models[1], *options, "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    match = found["tasks"][str(file)]["exact_match"]
    assert (match["right"], match["asked"], match["value"], match["interval"]) == (4, 4, 1.0, "Wilson, 95 %")
    described = json.loads((house.data / "data.json").read_text("utf-8"))["splits"]["validation"]
    nats = found["bits_per_character"] * math.log(2) * described["characters"]
    assert found["perplexity"] == pytest.approx(math.exp(nats / described["tokens"]))
    text = house.text.read_bytes().decode()
    written = len(text[len(text) - described["characters"] :].encode())
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / written)
    for name in ("bits_per_character", "bits_per_byte", "perplexity"):
        low, high = found["intervals"][name]
        assert low < found[name] < high
    assert found["interval"].startswith("bootstrap over ")
    code, stdout, _ = run("evaluate", models[1], *options)
    assert code == 0
    assert "exact match 100.0% (4 of 4; 95 % interval, Wilson: 51.0% to 100.0%)" in stdout
    low, high = found["intervals"]["perplexity"]
    assert f"{found['perplexity']:.4f} perplexity ({low:.4f} to {high:.4f})" in stdout
    assert f"in brackets: {found['interval']}" in stdout


def test_what_cannot_be_judged_is_refused(run, models, tmp_path):
    code, _, stderr = run("evaluate", models[0])
    assert code == 1
    assert "wanted --data or --task" in stderr
    with pytest.raises(TrainingError, match="form of HellaSwag"):
        run_task(models[0], write(tmp_path / "f", {"text": "?"}), "cpu")
    long = write(tmp_path / "long", {"ctx": "a", "endings": ["b", "c " * 3000], "label": 0})
    with pytest.raises(TrainingError, match=r"long:1: wanted choices below the context of \d+ tokens, got \d{4}"):
        run_task(models[0], long, "cpu")
    with pytest.raises(TrainingError, match="here: wanted the right answer among 0, 1, got 2"):
        choice({"ctx": "a", "endings": ["b", "c"], "label": 2}, "here")
    arc = {"question": "a", "answerKey": "A"}
    for wrong in (
        {"ctx": "a", "endings": "bc", "label": 0},
        {**arc, "choices": ["b", "c"]},
        {**arc, "choices": {"text": ["b"], "label": 3}},
    ):
        with pytest.raises(TrainingError, match="here: wanted lists of choices, in the form of HellaSwag"):
            choice(wrong, "here")
