"""GRPO: its equation in float64, rewards that can be verified, and an answer that is found by being rewarded."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jinja2")

from tinylm.model import Transformer, TransformerConfig  # noqa: E402  # after importorskip
from tinylm.tokenizer import Tokenizer  # noqa: E402
from tinylm.training import TrainingError  # noqa: E402
from tinylm.training.finetuning import grpo, rewards  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["yes no good bad " * 9], vocab_size=266, special_tokens=["<|endoftext|>"])


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = TransformerConfig.preset("qwen3", vocab_size=tokenizer.vocab_size, depth=1, width=64, context=32)
    Transformer(config).save(folder)
    tokenizer.save(folder)
    return folder


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_advantages_and_loss_are_the_papers():
    given = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    advantage = grpo.advantages(given)
    deviation = math.sqrt(4 * 0.25 / 3)
    assert advantage[0].tolist() == pytest.approx([s * 0.5 / (deviation + 1e-4) for s in (1, -1, -1, 1)])
    assert advantage[1].tolist() == [0] * 4  # a group that agrees teaches nothing
    draw = torch.Generator().manual_seed(0)
    new, old, first = (torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(3))
    a = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)
    terms = grpo.grpo_loss(new, old, a, 0.2, first, kl=0.1)
    for i in range(6):
        ratio = math.exp(float(new[i] - old[i]))
        clipped = min(max(ratio, 0.8), 1.2)
        kl = math.exp(float(first[i] - new[i])) - float(first[i] - new[i]) - 1
        wanted = -(min(ratio * float(a[i]), clipped * float(a[i])) - 0.1 * kl)
        assert float(terms[i]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_old_probabilities_are_those_that_drew_the_answers(base, tokenizer, tmp_path, temperature):
    prompts = grpo.read_prompts(write(tmp_path / "f", {"prompt": "a", "answer": "1"}), tokenizer, 24, "number")
    model = Transformer.load(base)
    method = grpo.GRPO(model, tokenizer, prompts, rewards.number, samples=2, max_tokens=3, temperature=temperature)
    method.loss([0])
    batch = method.drawn.batch
    ids = [batch.ids[row, : column + 1] for row, column in batch.learned[batch.owner == 0].tolist()]
    start = batch.learned[0, 1] - len(prompts[0].ids)
    whole = ids[-1][start:]
    for place, old in zip(range(len(prompts[0].ids), len(whole)), method.drawn.old[batch.owner == 0], strict=True):
        logits = model(whole[None, :place])[0, -1].detach().double() / temperature
        assert float(old) == pytest.approx(float(logits.log_softmax(0)[whole[place]]), abs=1e-5)


def test_rewards_are_what_can_be_verified():
    assert rewards.number("so it is 1,234.0 then", {"answer": "... #### 1234"}) == 1
    assert rewards.number("46 or 47", {"answer": 46}) == 0
    assert rewards.number("no idea", {"answer": "46"}) == 0
    assert rewards.exact(" 46\n", {"answer": "46"}) == 1
    assert rewards.exact("is 46", {"answer": "46"}) == 0
    assert rewards.form("<think>a\nb</think>\n<answer>4</answer>", {}) == 1
    assert rewards.form("<answer>4</answer>", {}) == 0
    assert rewards.form("<answer>4</answer>", {"format": "<answer>.*</answer>"}) == 1
    assert rewards.reward("number,format")("<answer>4</answer>", {"answer": 4, "format": "<answer>.*</answer>"}) == 2
    with pytest.raises(TrainingError, match="number, exact, format, got nice"):
        rewards.reward("nice")


def test_made_tasks_are_right_and_none_twice():
    records = rewards.make_task("addition", count=300)
    assert len({record["prompt"][0]["content"] for record in records}) == 300
    for record in records:
        a, _, b, *_ = record["prompt"][0]["content"].split()
        assert rewards.number(str(int(a) + int(b)), record) == 1
    (record,) = rewards.make_task("format", count=1)
    assert rewards.reward("number,format")(f"<answer>{record['answer']}</answer>", record) == 2
    with pytest.raises(TrainingError, match="addition or format"):
        rewards.make_task("chess")


def test_drawn_answers_end_at_the_end_and_padding_changes_nothing(base, tokenizer, tmp_path):
    data = write(tmp_path / "f", {"prompt": "a", "answer": "1"}, {"prompt": "a longer one", "answer": "2"})
    prompts = grpo.read_prompts(data, tokenizer, 24, "number")
    model = Transformer.load(base)
    method = grpo.GRPO(model, tokenizer, prompts, rewards.number, max_tokens=6, temperature=0)
    together = method.answers([prompt.ids for prompt in prompts])
    assert together == [method.answers([prompt.ids])[0] for prompt in prompts]
    assert method._until_end([5, tokenizer.eos_id, 7]) == [5, tokenizer.eos_id]


def test_the_command_finds_the_answer_that_is_rewarded(run, base, tokenizer, tmp_path):
    """Of all one-token answers the digit 7 is rewarded: rare at first, nearly always said after."""
    data, out = write(tmp_path / "f.jsonl", {"prompt": "say", "answer": "7"}), tmp_path / "out"

    def probability(folder) -> float:
        row = Transformer.load(folder)(torch.tensor([tokenizer.encode("say")]))[0, -1]
        return float(torch.softmax(row, dim=-1)[tokenizer.encode("7")[0]])

    options = ["--method", "grpo", "--steps", 60, "--batch-size", 1, "--samples", 256, "--max-tokens", 1]
    options += ["--learning-rate", 0.01, "--device", "cpu", "--iterations", 2, "--kl", 0.001]
    code, _, stderr = run("finetune", base, "--data", data, "--out", out, *options)
    assert code == 0, stderr
    assert probability(base) < 0.02
    assert probability(out) > 0.9
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert rows[0]["reward"] < 0.05
    assert rows[-1]["reward"] > 0.9


@pytest.mark.parametrize("teaches", [False, True])
def test_rewards_that_are_always_equal_are_told_once(base, tokenizer, tmp_path, teaches):
    prompts = grpo.read_prompts(write(tmp_path / "f", {"prompt": "a", "answer": "1"}), tokenizer, 24, "number")
    drawn, said = [], []

    def reward(text, record):
        drawn.append(text)
        return float(teaches and len(drawn) == 1)  # the first answer of the first draw, and never again

    model = Transformer.load(base)
    method = grpo.GRPO(model, tokenizer, prompts, reward, samples=2, max_tokens=1, say=said.append)
    deviations = [method.loss([0])[1]["reward_std"] for _ in range(12)]
    assert deviations == pytest.approx([math.sqrt(0.5) * teaches, *[0.0] * 11])
    assert [line[:43] for line in said] == ([] if teaches else ["10 times all answers to each prompt had the"])


@pytest.mark.parametrize(("steps", "times"), [(1, "1 time"), (3, "2 times")])
def test_a_short_run_that_learned_nothing_says_so_at_its_end(run, base, tmp_path, steps, times):
    data = write(tmp_path / "f.jsonl", {"prompt": "say", "answer": "what no single token says"})
    options = ["--method", "grpo", "--reward", "exact", "--steps", steps, "--iterations", 2, "--batch-size", 1]
    options += ["--samples", 2, "--max-tokens", 1, "--device", "cpu"]
    code, out, stderr = run("finetune", base, "--data", data, "--out", tmp_path / "out", *options)
    assert code == 0, stderr
    assert (out + stderr).count(f"{times} all answers to each prompt had the same reward") == 1


def test_made_tasks_need_no_file(base, tokenizer):
    chat = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    prompts = grpo.read_prompts("task:addition", Tokenizer(tokenizer.engine, chat_template=chat), 24, "number")
    assert len(prompts) == 1000
    with pytest.raises(TrainingError, match="addition or format"):
        grpo.read_prompts("task:chess", tokenizer, 24, "number")


@pytest.mark.parametrize(
    ("record", "reward", "words"),
    [
        ({"answer": "1"}, "number", 'wanted {"prompt": ..., "answer": ...}'),
        ({"prompt": "a"}, "exact", 'wanted an "answer"'),
        ({"prompt": "a", "answer": "b"}, "number", 'wanted a number in "answer"'),
        ({"prompt": "a", "format": "("}, "format", "wanted a regular expression"),
    ],
)
def test_records_without_what_their_reward_needs_are_refused(tokenizer, tmp_path, record, reward, words):
    with pytest.raises(TrainingError) as error:
        grpo.read_prompts(write(tmp_path / "f", record), tokenizer, 24, reward)
    assert words in str(error.value)
