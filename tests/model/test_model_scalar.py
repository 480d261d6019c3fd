"""The scalar rung: the same logits as the transformer from the same files, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tinylm.model import ModelError, Transformer
from tinylm.model.scalar import gpt

SHAPE = {"width": 16, "heads": 4, "mlp_width": 40, "context": 12, "vocab_size": 29}


@pytest.mark.parametrize("tie", [True, False])
def test_the_same_logits_as_the_transformer(tie, small, ids, tmp_path):
    model = small("gpt2", **SHAPE, tie_embeddings=tie)
    model.save(tmp_path)
    tokens = ids(1, 12, 29)
    wanted = Transformer.load(tmp_path, dtype="float64")(tokens)[0]
    got = torch.tensor(gpt.GPT.load(tmp_path).logits(tokens[0].tolist()), dtype=torch.float64)
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=1e-10)  # both in float64 from the same float32 weights
    torch.testing.assert_close(got.float(), model(tokens)[0], atol=1e-4, rtol=1e-4)


def test_float64_files_are_read_too(small, ids, tmp_path):
    small("gpt2", **SHAPE).double().save(tmp_path)
    tokens = ids(1, 5, 29)
    got = torch.tensor(gpt.GPT.load(tmp_path).logits(tokens[0].tolist()), dtype=torch.float64)
    torch.testing.assert_close(got, Transformer.load(tmp_path)(tokens)[0], atol=1e-12, rtol=1e-12)


def test_it_works_where_torch_cannot_be_imported(small, ids, tmp_path):
    model = small("gpt2", **SHAPE)
    model.save(tmp_path)
    code = (
        "import sys; sys.modules.update(torch=None, numpy=None, safetensors=None)\n"  # None: importing raises
        "from tinylm.model.scalar.gpt import GPT\n"
        "import json; print(json.dumps(GPT.load(sys.argv[1]).logits([1, 2, 3])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    wanted = model(torch.tensor([[1, 2, 3]]))[0]
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ids", [[], [29], [-1], [0] * 13])
def test_ids_that_do_not_fit_are_refused(ids, small, tmp_path):
    small("gpt2", **SHAPE).save(tmp_path)
    with pytest.raises(ModelError, match="ids"):
        gpt.GPT.load(tmp_path).logits(ids)


def test_files_that_do_not_fit_are_refused(small, tmp_path):
    with pytest.raises(ModelError, match=r"no .*config\.json"):
        gpt.GPT.load(tmp_path)
    small("qwen3").save(tmp_path / "qwen3")
    with pytest.raises(ModelError, match="gpt2 checkpoint, got qwen3"):
        gpt.GPT.load(tmp_path / "qwen3")
    small("gpt2", **SHAPE).bfloat16().save(tmp_path / "half")
    with pytest.raises(ModelError, match="float32 or float64"):
        gpt.GPT.load(tmp_path / "half")
    small("gpt2", **SHAPE).save(tmp_path / "cut")
    path = tmp_path / "cut/model.safetensors"
    for part in (0, 5, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:part])
        with pytest.raises(ModelError, match="whole safetensors"):
            gpt.GPT.load(tmp_path / "cut")
    (tmp_path / "cut/config.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        gpt.GPT.load(tmp_path / "cut")


@pytest.mark.parametrize("text", ['{"n_embd": ' + "9" * 5000 + "}", "[" * 100_000])
def test_json_that_python_refuses_to_read(text, small, tmp_path):
    small("gpt2").save(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="wanted JSON"):
        gpt.GPT.load(tmp_path)


def test_gelu_softmax_and_norm_are_torchs():
    x = torch.randn(9, dtype=torch.float64) * 3
    values = x.tolist()
    wanted = torch.nn.functional.gelu(x, approximate="tanh").tolist()
    assert [gpt.gelu(v) for v in values] == pytest.approx(wanted, rel=1e-12)
    assert gpt.softmax([v * 1000 for v in values]) == pytest.approx(torch.softmax(x * 1000, 0).tolist(), rel=1e-12)
    norm = torch.nn.functional.layer_norm(x, (9,), x * 2, x + 1, 1e-5).tolist()
    assert gpt.layer_norm(values, (x * 2).tolist(), (x + 1).tolist(), 1e-5) == pytest.approx(norm, rel=1e-12)
