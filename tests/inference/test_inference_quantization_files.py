"""Quantised checkpoints on disk: what is opened is what `quantize` gives, and files that are not right are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402  # after importorskip

from tinylm.inference import LLM, InferenceError, SamplingParams  # noqa: E402
from tinylm.inference.quantization import quantize, save_quantized  # noqa: E402
from tinylm.inference.quantization.files import load_quantized  # noqa: E402
from tinylm.model import Transformer  # noqa: E402

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint in int8 and in int4, and its origin."""
    origin = make_checkpoint(preset="llama", depth=2)
    out = {"origin": origin}
    for scheme in ("int8", "int4"):
        out[scheme] = tmp_path_factory.mktemp("saved") / "model"
        save_quantized(origin, out[scheme], scheme)
    return out


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("preset", ["gpt2", "qwen3", "llama"])
@torch.inference_mode()
def test_what_is_saved_opens_as_the_same_model(make_checkpoint: Make, tmp_path: Path, preset: str, scheme: str) -> None:
    origin, out = make_checkpoint(preset=preset), tmp_path / "out"
    save_quantized(origin, out, scheme)
    ids = torch.arange(30)[None]
    assert torch.equal(load_quantized(out)(ids), quantize(Transformer.load(origin), scheme)(ids))
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    answers = [
        llm.generate("The cook", params)[0].outputs[0].token_ids
        for llm in (LLM(str(out), device="cpu"), LLM(str(origin), quantization=scheme, device="cpu"))
    ]
    assert answers[0] == answers[1]
    assert LLM(str(out), device="cpu", quantization=scheme).model.scheme == scheme


def test_the_weights_are_as_readable_as_the_other_files(saved: dict[str, Path]) -> None:
    modes = {
        path.stat().st_mode for path in saved["int8"].iterdir() if path.name in ("config.json", "model.safetensors")
    }
    assert len(modes) == 1


def test_the_file_is_as_compressed_tensors_describes_it(saved: dict[str, Path]) -> None:
    origin = load_file(saved["origin"] / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    weight = origin[f"{name}.weight"].float()
    eight = load_file(saved["int8"] / "model.safetensors")
    back = eight[f"{name}.weight"].float() * eight[f"{name}.weight_scale"].float()
    assert (back - weight).abs().max() < weight.abs().max() / 200
    four = load_file(saved["int4"] / "model.safetensors")
    outputs, inputs = four[f"{name}.weight_shape"].tolist()
    assert (outputs, inputs) == weight.shape
    packed = four[f"{name}.weight_packed"]
    numbers = torch.stack([(packed >> (4 * i)) & 15 for i in range(8)], dim=2).view(outputs, -1)[:, :inputs] - 8
    scales = four[f"{name}.weight_scale"].float().repeat_interleave(32, dim=1)[:, :inputs]
    assert (numbers * scales - weight).abs().max() < weight.abs().max() / 6
    config = json.loads((saved["int4"] / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 32
    size = {key: (path / "model.safetensors").stat().st_size for key, path in saved.items()}
    assert size["int4"] < size["int8"] < size["origin"]


def broken(folder: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors")
    return out


DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("scheme", "change", "message"),
    [
        ("int8", lambda t: t.pop(f"{DOWN}.weight"), "wanted model.layers.0.mlp.down_proj.weight"),
        ("int8", lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"].int()}), "got torch.int32"),
        ("int8", lambda t: t.update({f"{DOWN}.weight_scale": t[f"{DOWN}.weight_scale"][:-1]}), "wanted .*weight_scale"),
        ("int8", lambda t: t[f"{DOWN}.weight_scale"].fill_(torch.nan), "NaN"),
        ("int8", lambda t: t.update(more=torch.zeros(1)), "got also more"),
        ("int4", lambda t: t[f"{DOWN}.weight_shape"].add_(1), "of shape"),
        ("int4", lambda t: t.pop("model.norm.weight"), "wanted model.norm.weight"),
    ],
)
def test_files_that_are_not_right_are_refused(
    saved: dict[str, Path], tmp_path: Path, scheme: str, change: Callable[..., None], message: str
) -> None:
    with pytest.raises(InferenceError, match=message):
        LLM(str(broken(saved[scheme], tmp_path / "broken", change)), device="cpu")


def test_other_kinds_of_quantisation_and_other_places_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="already"):
        LLM(str(saved["int8"]), quantization="int4", device="cpu")
    with pytest.raises(InferenceError, match="is quantised"):
        LLM(str(saved["int8"]), dtype="bfloat16", device="cpu")
    with pytest.raises(InferenceError, match="exists"):
        save_quantized(saved["origin"], saved["int8"], "int8")
    with pytest.raises(InferenceError, match="one of floats"):
        load_quantized(saved["origin"])
    with pytest.raises(InferenceError, match="wanted one of"):
        save_quantized(saved["origin"], tmp_path / "new", "int3")
    with pytest.raises(InferenceError, match="got a file"):
        save_quantized(saved["origin"] / "config.json", tmp_path / "new", "int8")
    assert not (tmp_path / "new").exists()
    other = broken(saved["int8"], tmp_path / "awq", lambda _: None)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(InferenceError, match="got quant_method 'awq'"):
        LLM(str(other), device="cpu")
    truncated = broken(saved["int8"], tmp_path / "short", lambda _: None)
    path = truncated / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InferenceError, match="whole safetensors file"):
        LLM(str(truncated), device="cpu")
