"""Inference tests: small checkpoints of random weights, and helpers that several test files share.

No trained model is needed: what is tested is that text, tokens and stopping are right, not that the text is good.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinylm.inference import LLM  # noqa: E402  # after importorskip
from tinylm.model import Transformer, TransformerConfig  # noqa: E402
from tinylm.tokenizer import Tokenizer  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # the same for the commands that tests start

MADE_TEXT = "The cook says: good soup! The king says: naïve wörld, 你好 🙂.\nWho sings? The bird sings in the tree.\n"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Tokenizer.train([MADE_TEXT * 20], vocab_size=300, special_tokens=special, chat_template=CHATML)


@pytest.fixture(scope="session")
def make_checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_checkpoint(preset="qwen3", depth=1, context=64, ...) writes a checkpoint directory like the trainer's."""

    def make(preset: str = "qwen3", depth: int = 1, context: int = 64, seed: int = 0, **overrides: object) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        torch.manual_seed(seed)
        overrides = {"vocab_size": tokenizer.vocab_size, **overrides}
        model = Transformer(TransformerConfig.preset(preset, depth=depth, context=context, **overrides))
        with torch.no_grad():  # larger than for training: the texts then wander instead of repeating one token
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.25)
        tokenizer.save(directory)
        sha256 = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
        model.save(directory, {"tokenizer_sha256": sha256})
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_id}))
        return directory

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint(depth=2)


@pytest.fixture(scope="session")
def llm(checkpoint: Path) -> LLM:
    return LLM(str(checkpoint), dtype="float32", device="cpu")


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """write(ids): from now on the "model" draws exactly these ids, one after the other."""

    def script(ids: list[int]) -> None:
        drawn = iter(ids)
        monkeypatch.setattr("tinylm.inference.generation.sample", lambda *_: next(drawn))

    return script


@pytest.fixture(scope="session")
def recompute() -> Callable[..., list[int]]:
    """The lowest rung, with sampling: the whole text through the model again for every token, no cache."""
    import random

    from tinylm.inference.sampling import sample

    @torch.inference_mode()
    def run(llm: LLM, prompt: list[int], params: object, count: int) -> list[int]:
        rng, output = random.Random(params.seed), []
        for _ in range(count):
            ids = torch.tensor([[*prompt, *output]], device=llm.device)
            logits = llm.model(ids)[0, -1].float().cpu()
            output.append(sample(logits, params, prompt, output, rng))
        return output

    return run


@pytest.fixture(scope="session")
def regret() -> Callable[..., list[float]]:
    """How far each greedy token's logit is below the best one, both recomputed without a cache: 0 if it is the best.

    In fractions of the largest logit. Rounding may swap two tokens that are nearly equal; a wrong cache does far worse.
    """

    @torch.inference_mode()
    def run(llm: LLM, prompt: list[int], output: list[int]) -> list[float]:
        lost = []
        for position, token_id in enumerate(output):
            ids = torch.tensor([[*prompt, *output[:position]]], device=llm.device)
            logits = llm.model(ids)[0, -1].float()
            lost.append(float((logits.max() - logits[token_id]) / logits.abs().max()))
        return lost

    return run
