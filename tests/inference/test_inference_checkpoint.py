"""Opening a checkpoint: what does not belong together is refused, with the reason and before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM, InferenceError, SamplingParams  # noqa: E402  # after importorskip
from tinylm.model import ModelError, Transformer  # noqa: E402
from tinylm.tokenizer import Tokenizer  # noqa: E402


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def opened(directory: Path, **options: object) -> LLM:
    return LLM(str(directory), device="cpu", **options)


def test_another_tokenizer_is_refused(copied: Path) -> None:
    other = Tokenizer.train(["abc abd abe\n" * 50], vocab_size=262, special_tokens=["<|endoftext|>"])
    other.save(copied)
    with pytest.raises(InferenceError, match="not the tokenizer that this model was trained with"):
        opened(copied)


def test_a_tokenizer_larger_than_the_model_is_refused(copied: Path) -> None:
    model = Transformer.load(copied)
    Tokenizer.train(["abc abd abe\n" * 50], vocab_size=318, special_tokens=[f"<{i}>" for i in range(60)]).save(copied)
    model.save(copied)  # no provenance: only the sizes can tell
    with pytest.raises(InferenceError, match="do not belong together"):
        opened(copied)


def test_a_padded_vocabulary_is_fine_and_its_spare_ids_have_no_text(
    make_checkpoint: Callable[..., Path], tokenizer: Tokenizer, write: Callable[[list[int]], None]
) -> None:
    llm = opened(make_checkpoint(vocab_size=tokenizer.vocab_size + 20))
    write([tokenizer.vocab_size + 3, *tokenizer.encode("ok")])
    answer = llm.generate("x", SamplingParams(max_tokens=1 + len(tokenizer.encode("ok")), logprobs=0))[0].outputs[0]
    assert answer.text == "ok"
    assert answer.logprobs[0][tokenizer.vocab_size + 3].decoded_token is None


def test_missing_pieces_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="no such path"):
        opened(tmp_path / "nowhere")
    with pytest.raises(InferenceError, match="no config"):
        opened(tmp_path)
    (copied / "tokenizer.json").unlink()
    with pytest.raises(InferenceError, match=r"no tokenizer.json.*skip_tokenizer_init"):
        opened(copied)


def test_without_a_tokenizer_ids_go_in_and_come_out(copied: Path, llm: LLM) -> None:
    (copied / "tokenizer.json").unlink()
    bare = opened(copied, skip_tokenizer_init=True)
    params = SamplingParams(temperature=0, max_tokens=10, logprobs=1)
    answer = bare.generate({"prompt_token_ids": [5, 6]}, params)[0].outputs[0]
    assert answer.token_ids == llm.generate({"prompt_token_ids": [5, 6]}, params)[0].outputs[0].token_ids
    assert answer.text == ""
    assert all(entry.decoded_token is None for entry in answer.logprobs[0].values())
    with pytest.raises(InferenceError, match="without a tokenizer"):
        bare.generate("text")
    with pytest.raises(InferenceError, match="stop strings need a tokenizer"):
        bare.generate({"prompt_token_ids": [5, 6]}, SamplingParams(stop="x"))


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": 999999}', '{"format": 2}'])
def test_a_damaged_generation_config_is_refused(copied: Path, content: str) -> None:
    (copied / "generation_config.json").write_text(content)
    if content == '{"format": 2}':  # Hugging Face's own file has no format of ours
        opened(copied)
        return
    with pytest.raises(InferenceError, match=r"generation_config|end-of-text"):
        opened(copied)


def test_every_eos_id_of_the_generation_config_ends_a_text(copied: Path, write: Callable[[list[int]], None]) -> None:
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    llm = opened(copied)
    assert llm.eos_token_ids == (llm.tokenizer.eos_id, 7, 9)
    write([5, 9, 5])
    answer = llm.generate("x")[0].outputs[0]
    assert (answer.token_ids, answer.finish_reason) == ([5, 9], "stop")


def test_an_empty_prompt_without_a_start_token_is_refused(copied: Path) -> None:
    (copied / "generation_config.json").unlink()
    with pytest.raises(InferenceError, match="prompt is empty"):
        opened(copied, skip_tokenizer_init=True).generate({"prompt_token_ids": []})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_truncated_file_is_a_clear_error(copied: Path, name: str) -> None:
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name if name != "tokenizer.json" else "tokenizer"):
        opened(copied)


def test_a_higher_format_is_refused_in_words(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["tinylm"]["format"] = 99
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="format"):
        opened(copied)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("half", "float16"), ("bfloat16", "bfloat16")])
def test_dtype_has_vllms_names(checkpoint: Path, dtype: str, expected: str) -> None:
    assert opened(checkpoint, dtype=dtype).dtype is getattr(torch, expected)


def test_unknown_dtype_and_device_are_refused(checkpoint: Path) -> None:
    with pytest.raises(InferenceError, match="dtype must be one of"):
        opened(checkpoint, dtype="int3")
    for device in ("cuda:99", "abacus"):
        with pytest.raises(ModelError, match=r"wanted .*device"):
            LLM(str(checkpoint), device=device)
