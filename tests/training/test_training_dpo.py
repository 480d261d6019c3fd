"""DPO: its equation in float64, what the model was at the start as the measure, and a preference that is learned."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")

from tinylm.model import Transformer, TransformerConfig  # noqa: E402  # after importorskip
from tinylm.tokenizer import Tokenizer  # noqa: E402
from tinylm.training import TrainingError  # noqa: E402
from tinylm.training.finetuning import dpo  # noqa: E402


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


def test_the_loss_is_the_papers():
    draw = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(2, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    loss, margins = dpo.dpo_loss(policy, reference, beta=0.3)
    by_hand = []
    for (w, rw), (l, rl) in zip(  # noqa: E741  # the paper's letters
        zip(policy[0], reference[0], strict=True), zip(policy[1], reference[1], strict=True), strict=True
    ):
        by_hand.append(0.3 * ((float(w) - float(rw)) - (float(l) - float(rl))))
    assert math.isclose(float(loss), sum(math.log1p(math.exp(-m)) for m in by_hand) / 5, rel_tol=1e-12)
    assert margins.tolist() == pytest.approx(by_hand)
    assert float(dpo.dpo_loss(policy, policy, 0.1)[0]) == pytest.approx(math.log(2))


def test_reference_log_probabilities_are_those_of_the_start(base, tokenizer, tmp_path):
    data = write(tmp_path / "f", {"prompt": "is it", "chosen": " yes good", "rejected": " no"})
    model = Transformer.load(base)
    method = dpo.DPO(model, dpo.read_pairs(data, tokenizer, 32), beta=0.1, packing=True)
    before = tokenizer.encode("is it")
    for side, text in enumerate((" yes good", " no")):
        after = [*tokenizer.encode(text), tokenizer.eos_id]
        rows = torch.log_softmax(model(torch.tensor([before + after]))[0].detach().double(), dim=-1)
        wanted = sum(float(rows[len(before) - 1 + i, id]) for i, id in enumerate(after))
        assert float(method.reference[side, 0]) == pytest.approx(wanted, abs=1e-4)
    loss, figures = method.loss([0])
    assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
    assert figures["margin"] == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        model.embed.weight *= 1.5
    assert method.loss([0])[1]["margin"] != pytest.approx(0, abs=1e-3)


def test_the_command_makes_the_preferred_answer_likelier(run, base, tokenizer, tmp_path):
    pairs = [{"prompt": f"{n}", "chosen": "Y", "rejected": "N"} for n in range(8)]
    data, out = write(tmp_path / "pairs.jsonl", *pairs), tmp_path / "out"
    options = ["--method", "dpo", "--steps", 25, "--batch-size", 8, "--learning-rate", 0.003, "--device", "cpu"]
    code, _, stderr = run("finetune", base, "--data", data, "--out", out, *options)
    assert code == 0, stderr
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["loss"] < 0.4
    assert rows[-1]["accuracy"] == 1

    def preference(folder) -> float:
        row = Transformer.load(folder)(torch.tensor([tokenizer.encode("9")]))[0, -1]
        return float(row[tokenizer.encode("Y")[0]] - row[tokenizer.encode("N")[0]])

    assert preference(out) > preference(base) + 1


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "a", "chosen": "b"}, 'wanted {"prompt": ..., "chosen": ..., "rejected": ...}'),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "two different answers"),
    ],
)
def test_bad_pairs_are_refused(tokenizer, tmp_path, record, words):
    with pytest.raises(TrainingError) as error:
        dpo.read_pairs(write(tmp_path / "f", record), tokenizer, 32)
    assert words in str(error.value)


def test_a_pair_with_an_answer_too_long_is_left_out(tokenizer, tmp_path):
    short = {"prompt": "a", "chosen": "b", "rejected": "c"}
    said: list[str] = []
    data = write(tmp_path / "f", short, {**short, "rejected": "c" * 99})
    assert len(dpo.read_pairs(data, tokenizer, 32, said.append)) == 1
    assert said == ["left out 1 of 2 examples: longer than the context of 32 tokens"]
