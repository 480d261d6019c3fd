"""LoRA: nothing changes at first, few parameters learn, merging is exact, and Hugging Face's peft reads the adapter."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("jinja2")

from safetensors.torch import load_file  # noqa: E402  # after importorskip

from tinylm.model import Transformer, TransformerConfig  # noqa: E402
from tinylm.tokenizer import Tokenizer  # noqa: E402
from tinylm.training import TrainingError  # noqa: E402
from tinylm.training.finetuning import lora  # noqa: E402

IDS = torch.tensor([[1, 5, 9, 200, 31, 7]])


def make_model(**options) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        TransformerConfig.preset("qwen3", **{"vocab_size": 290, "depth": 2, "width": 64, "context": 64, **options})
    )


def disturb(model: Transformer) -> None:
    """Give the adapters something to hold."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, lora.LoRALinear):
                module.b.copy_(torch.randn(module.b.shape, generator=draw) / 10)


def test_an_adapter_is_the_equation_changes_nothing_at_first_and_merges_exactly():
    model = make_model()
    before = model(IDS)
    trained = lora.add_adapters(model, rank=4, alpha=8.0)
    assert torch.equal(model(IDS), before)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    assert len(trained) == 2 * 7 * 2
    disturb(model)
    layer = model.blocks[0].attention.q
    x = torch.randn(3, 64, dtype=torch.float64)
    w, a, b = (t.detach().double() for t in (layer.base.weight, layer.a, layer.b))
    assert torch.allclose(layer(x.float()).double(), x @ w.T + 8 / 4 * (x @ a.T @ b.T), atol=1e-5)
    changed = model(IDS)
    assert not torch.allclose(changed, before, atol=1e-3)
    lora.merge(model)
    assert not any(isinstance(module, lora.LoRALinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.allclose(model(IDS), changed, atol=1e-5)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_peft_reads_the_adapter_and_comes_to_the_same_logits(tmp_path, tie_embeddings):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = make_model(tie_embeddings=tie_embeddings)
    model.save(tmp_path / "base")
    lora.add_adapters(model, rank=4, alpha=8.0)
    disturb(model)
    lora.save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, model(IDS), atol=1e-4)
        assert torch.allclose(theirs.merge_and_unload()(IDS).logits, model(IDS), atol=1e-4)


def test_what_peft_writes_is_read(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = make_model()
    model.save(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        base, peft.LoraConfig(r=3, lora_alpha=5, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    theirs.save_pretrained(tmp_path / "adapter")
    lora.load_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(theirs.eval()(IDS).logits, model(IDS), atol=1e-4)


def test_a_saved_adapter_comes_back(tmp_path):
    model = make_model()
    lora.add_adapters(model, rank=4, alpha=8.0)
    disturb(model)
    lora.save_adapter(model, tmp_path, "base")
    again = make_model()
    lora.load_adapter(again, tmp_path)
    assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "wanted peft_type LORA, got 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "one rank and one alpha"),
        ({"r": 0}, "wanted r"),
        ({"r": 3}, "of shape (3, 64), got (4, 64)"),
    ],
)
def test_adapters_of_another_kind_are_refused(tmp_path, change, words):
    model = make_model()
    lora.add_adapters(model, rank=4, alpha=8.0)
    lora.save_adapter(model, tmp_path, "base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(TrainingError) as error:
        lora.load_adapter(make_model(), tmp_path)
    assert words in str(error.value)


def test_shapes_and_ranks_that_do_not_go_are_refused():
    with pytest.raises(TrainingError, match="use --method sft"):
        lora.add_adapters(make_model(experts=2, experts_per_token=1), rank=4, alpha=8.0)
    with pytest.raises(TrainingError, match="at most the width 64"):
        lora.add_adapters(make_model(), rank=65, alpha=8.0)


def test_the_command_learns_with_adapters_alone(run, tmp_path):
    """A model that repeats a digit learns to say nine minus it. The adapter and the model before it make the published
    one, and only what the adapters touch has changed."""
    tokenizer = Tokenizer.train(["one two three four " * 9], vocab_size=270, special_tokens=["<|endoftext|>"])
    start, base, out = (tmp_path / name for name in ("start", "base", "out"))
    make_model(vocab_size=tokenizer.vocab_size).save(start)
    tokenizer.save(start)
    for name, answer in (("same", lambda n: n), ("nine", lambda n: 9 - n)):
        lines = (json.dumps({"prompt": f"{n}", "completion": f"{answer(n)}"}) + "\n" for n in range(10))
        (tmp_path / name).write_text("".join(lines), "utf-8")
    options = ["--batch-size", 10, "--learning-rate", 0.01, "--device", "cpu"]
    code, _, stderr = run("finetune", start, "--data", tmp_path / "same", "--out", base, "--steps", 40, *options)
    assert code == 0, stderr
    options += ["--method", "lora", "--rank", 8, "--steps", 60]
    code, _, stderr = run("finetune", base, "--data", tmp_path / "nine", "--out", out, *options)
    assert code == 0, stderr
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert rows[-1]["loss"] < 0.3 < 2 < rows[0]["loss"]
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    touched = {name for name in before if not torch.equal(before[name], after[name])}
    assert touched == {name for name in before if "_proj" in name}
    model = Transformer.load(base)
    lora.load_adapter(model, out / "adapter")
    ids = torch.tensor([tokenizer.encode("1 two")])
    assert torch.allclose(model(ids), Transformer.load(out)(ids), atol=1e-3)
