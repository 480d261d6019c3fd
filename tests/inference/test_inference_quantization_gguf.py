"""GGUF files of 4 and 8 bits run in their own blocks: every matrix holds exactly the numbers that decoding gives."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # after importorskip

from tinylm.inference import LLM, InferenceError, SamplingParams  # noqa: E402
from tinylm.inference.quantization import QuantizedTransformer  # noqa: E402
from tinylm.inference.quantization.gguf import is_quantized, load_gguf  # noqa: E402
from tinylm.inference.quantization.linear import QuantizedLinear  # noqa: E402
from tinylm.model import ModelError, Transformer, TransformerConfig  # noqa: E402
from tinylm.model.gguf.blocks import NAMED  # noqa: E402
from tinylm.model.gguf.layout import tensors  # noqa: E402
from tinylm.model.gguf.metadata import write_config  # noqa: E402
from tinylm.model.gguf.reader import GGUF  # noqa: E402
from tinylm.model.gguf.tokenizer import tokenizer_pairs  # noqa: E402
from tinylm.model.gguf.writer import Source, write  # noqa: E402


def random_blocks(numbers: np.ndarray, kind: str) -> np.ndarray:
    """(n, 32) -> (n, bytes): numbers of no meaning, scales (and minima) of a weight's size, the first ones 0."""
    chance = np.random.default_rng(0)
    blocks = chance.integers(0, 256, (len(numbers), NAMED[kind].size), dtype=np.uint8)
    halves = 0.02 * chance.standard_normal((len(numbers), 2 if kind == "Q4_1" else 1))
    halves[0] = 0
    blocks[:, : 2 * halves.shape[1]] = halves.astype(np.float16).view(np.uint8)
    if kind == "Q8_0":
        blocks[blocks == 128] = 127  # -128, which ggml does not write
        blocks[:, :2] = halves.astype(np.float16).view(np.uint8)
    return blocks


def write_gguf(path: Path, config: TransformerConfig, kind: str, tokenizer: Path | None = None) -> Path:
    torch.manual_seed(0)
    model = Transformer(config)
    weights = dict(model.named_parameters())
    chosen = dataclasses.replace(
        NAMED[kind], largest=1e9, encode=NAMED[kind].encode or (lambda numbers: random_blocks(numbers, kind))
    )
    sources = {}
    for name, placed in tensors(config).items():
        whole = torch.cat([weights[part].detach() for part in placed.parts]).numpy()
        plain = whole.ndim == 1 or name == "position_embd.weight"
        sources[name] = Source(whole.shape, NAMED["F32"] if plain else chosen, lambda whole=whole: whole)
    pairs = write_config(config, "test")
    if tokenizer is not None:
        pairs |= tokenizer_pairs(tokenizer, config.vocab_size)[0]
    write(path, pairs, sources)
    return path


SHAPES = {
    "llama": {"width": 96, "head_dim": 24, "heads": 4, "kv_heads": 2, "mlp_width": 64},  # rows in another order
    "gpt2": {"width": 64},  # q, k and v are one matrix
    "smollm2": {"width": 64},  # the head is the embedding
}


def config_of(shape: str, **more: object) -> TransformerConfig:
    return TransformerConfig.preset(shape, **{"vocab_size": 100, "depth": 2, "context": 64, **SHAPES[shape], **more})


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_blocks_are_taken_over_as_they_are(tmp_path: Path, shape: str, kind: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", config_of(shape), kind)
    decoded, quantized = Transformer.load(path), load_gguf(path)
    matrices = {name: module for name, module in quantized.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(matrices) == 2 * (6 if shape == "gpt2" else 7) + 1
    for name, matrix in matrices.items():
        weight = decoded.head_weight if name == "quantized_head" else decoded.get_submodule(name).weight
        assert torch.equal(matrix.weight().dequantize(), weight), name
        assert matrix.bits == int(kind[1])
    for name, parameter in quantized.named_parameters():
        assert torch.equal(parameter, decoded.get_parameter(name)), name
    ids = torch.arange(20)[None]
    wanted, got = decoded(ids), quantized(ids)
    assert (got - wanted).square().mean().sqrt() < 0.05 * wanted.std()  # activations are rounded


def test_other_types_are_rounded_to_int8(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", config_of("llama"), "F16")
    assert not is_quantized(path)
    quantized, decoded = load_gguf(path), Transformer.load(path)
    for name, module in decoded.named_modules():
        if isinstance(module, nn.Linear):
            matrix = quantized.quantized_head if name == "head" else quantized.get_submodule(name)
            assert isinstance(matrix, QuantizedLinear)
            step = module.weight.detach().abs().amax(dim=1, keepdim=True) / 127
            assert ((matrix.weight().dequantize() - module.weight).abs() <= 0.51 * step).all()


def test_llm_opens_a_file_with_its_tokenizer(tmp_path: Path, checkpoint: Path, tokenizer: object) -> None:
    config = config_of("llama", vocab_size=tokenizer.vocab_size)  # type: ignore[attr-defined]
    path = write_gguf(tmp_path / "model.gguf", config, "Q4_1", checkpoint)
    llm = LLM(str(path), device="cpu")
    assert llm.model.scheme == "gguf"
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    first = llm.generate("The cook says", params)[0].outputs[0]
    assert len(first.token_ids) == 8
    assert not isinstance(LLM(str(path), dtype="float32", device="cpu").model, QuantizedTransformer)
    assert LLM(str(path), quantization="int8", device="cpu").model.scheme == "int8"
    assert LLM(str(path), device="cpu", skip_tokenizer_init=True).tokenizer is None


@pytest.mark.parametrize("where", ["scale", "minimum", "norm"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, where: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", config_of("llama"), "Q4_1")
    file = GGUF(path)
    name = "output_norm.weight" if where == "norm" else "blk.1.attn_q.weight"
    at = file.tensors[name].offset + (2 if where == "minimum" else 0)
    data = bytearray(path.read_bytes())
    data[at : at + 2] = np.float16("nan").tobytes()
    data[at + 2 : at + 4] = data[at + 2 : at + 4] if where != "norm" else np.array([0x7FC0], np.uint16).tobytes()
    path.write_bytes(data)
    with pytest.raises(InferenceError, match="NaN or infinite"):
        load_gguf(path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", config_of("llama"), "Q4_0")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        LLM(str(path), device="cpu", skip_tokenizer_init=True)
    with pytest.raises(InferenceError, match="no such path"):
        LLM(str(tmp_path / "nothing.gguf"))
