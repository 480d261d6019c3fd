"""A fine-tuning run: read, train, and one complete checkpoint folder at the end, in place as a whole.

    OUT/
      config.json model.safetensors tokenizer.json ...     as pre-training's: opens in transformers and tinylm-infer
      adapter/                                             --method lora: what peft loads; the model above is merged
      run/                                                 run.json, metrics.jsonl

While it trains only OUT/run is there. A run that is stopped leaves the model as it is then; a killed one leaves none,
and the same command starts again. Not here: the losses (sft.py, lora.py, dpo.py, grpo.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tinylm import observability as obs
from tinylm.model import Transformer, pick_device, read_provenance
from tinylm.tokenizer import Tokenizer
from tinylm.training._errors import TrainingError
from tinylm.training._files import new_directory, only_writer, sha256
from tinylm.training.finetuning import chat_data, dpo, grpo, lora, rewards, sft
from tinylm.training.finetuning.config import FinetuneConfig
from tinylm.training.optimizers import AdamW
from tinylm.training.schedule import learning_rate_factor

_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


class Method(Protocol):
    """What the loop asks of sft, dpo and grpo."""

    @property
    def items(self) -> Sequence[object]: ...
    def loss(self, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]: ...


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """How a run ended: `figures` are those of the last step."""

    step: int
    total_steps: int
    finished: bool
    seconds: float
    figures: dict[str, float]


def finetune(
    config: FinetuneConfig,
    report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, figures: None,
    say: Callable[[str], None] = print,
    stop: threading.Event | None = None,
) -> Finetuned:
    """Train `config.checkpoint` on `config.data` and write `config.out`. `report` is called after each step; after
    `stop` is set the step is finished, the model written, and the result says that it is not finished.

    Raises TrainingError, or the tokenizer's or the model's own error, before anything is written; and when the loss is
    no number any more, which leaves no model.
    """
    out = Path(config.out)
    _check_out(config, out)
    torch.manual_seed(config.seed)
    tokenizer = Tokenizer.load(Path(config.checkpoint) / "tokenizer.json")
    model = Transformer.load(config.checkpoint, device=pick_device(config.device))
    stored = model.embed.weight.dtype
    model = model.float()
    if tokenizer.vocab_size > model.config.vocab_size:
        raise TrainingError(
            f"{config.checkpoint}: the tokenizer has {tokenizer.vocab_size} tokens and the model knows "
            f"{model.config.vocab_size}: they do not belong together"
        )
    method = make_method(config, model, tokenizer, say)
    config = config.resolve(model.config, len(method.items))
    trained = lora.add_adapters(model, config.rank, config.alpha) if config.method == "lora" else [*model.parameters()]
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out), obs.init(directory=out / "run", config=dataclasses.asdict(config), name=out.name) as run:
        result = _train(config, method, trained, run, report, stop or threading.Event())
        run.finish("finished" if result.finished else "interrupted")
        _write(config, model, tokenizer, stored, out)
    return result


def make_method(config: FinetuneConfig, model: Transformer, tokenizer: Tokenizer, say: Callable[[str], None]) -> Method:
    """The data, and what is to be made of it."""
    longest = model.config.context
    if config.method == "dpo":
        return dpo.DPO(model, dpo.read_pairs(config.data, tokenizer, longest, say), config.beta, config.packing)
    if config.method != "grpo":
        return sft.SFT(model, chat_data.read_examples(config.data, tokenizer, longest, say), config.packing)
    if config.max_tokens >= longest:
        raise TrainingError(f"wanted max_tokens below the context of {longest}, got {config.max_tokens}")
    return grpo.GRPO(
        model,
        tokenizer,
        grpo.read_prompts(config.data, tokenizer, longest - config.max_tokens, config.reward, say),
        rewards.reward(config.reward),
        samples=config.samples,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        clip_ratio=config.clip_ratio,
        kl=config.kl,
        iterations=config.iterations,
        packing=config.packing,
        seed=config.seed,
    )


def _train(
    config: FinetuneConfig,
    method: Method,
    trained: Sequence[nn.Parameter],
    run: obs.Run,
    report: Callable[[int, int, dict[str, float]], None],
    stop: threading.Event,
) -> Finetuned:
    steps, peak = config.steps or 1, config.learning_rate or 0.0
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "lr": peak, "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "lr": peak, "weight_decay": 0.0},
    ]
    optimizer = AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95))
    order = shuffled(len(method.items), config.batch_size, config.seed)
    started, done, figures = time.monotonic(), 0, {}
    while done < steps and not stop.is_set():
        for group in optimizer.param_groups:
            group["lr"] = peak * learning_rate_factor(done, steps, config.warmup_steps, 0.0, "linear")
        loss, details = method.loss(next(order))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        norm = float(nn.utils.clip_grad_norm_(trained, config.clip))
        figures = {"loss": float(loss.detach()), "gradient_norm": norm, "learning_rate": group["lr"], **details}
        if not math.isfinite(figures["loss"]) or not math.isfinite(norm):
            run.finish("failed")
            raise TrainingError(
                f"step {done + 1}: the loss is {figures['loss']} and the gradient's norm {norm}; nothing was written: "
                f"try a --learning-rate below {peak:g}"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        run.log(figures, step=done)
        report(done, steps, figures)
    return Finetuned(done, steps, done == steps, time.monotonic() - started, figures)


def shuffled(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of the numbers below `count` for ever, each as often as every other, in a new order each epoch."""
    waiting: list[int] = []
    epoch = 0
    while True:
        while len(waiting) < batch_size:
            random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
            waiting += random.permutation(count).tolist()
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _check_out(config: FinetuneConfig, out: Path) -> None:
    """Whether OUT may be written: it is new, or holds a run without a model, or is to be overwritten."""
    if out.resolve() == Path(config.checkpoint).resolve():
        raise TrainingError(f"wanted a new folder as --out, got the checkpoint itself, {out}")
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or (inside - {"run"} and "config.json" not in inside):
        raise TrainingError(
            f"wanted a new folder or a checkpoint as --out, got something else at {out}: choose another"
        )
    if "config.json" in inside and not config.overwrite:
        raise TrainingError(f"a checkpoint stands at {out}: choose another --out, or --overwrite it")


def _write(config: FinetuneConfig, model: Transformer, tokenizer: Tokenizer, stored: torch.dtype, out: Path) -> None:
    """The whole folder beside OUT, then in its place."""
    source = Path(config.checkpoint)
    with new_directory(out) as folder:
        if config.method == "lora":
            lora.save_adapter(model, folder / "adapter", str(source))
            lora.merge(model)
        chat = {"tuned_for": "chat"} if chat_data.has_messages(config.data) else {}
        tokens = {"tokenizer_sha256": sha256(source / "tokenizer.json")}
        model.to(stored).save(folder, provenance={**read_provenance(source), **tokens, **chat})
        for name in _COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        ends = chat_data.ends_of_answer(tokenizer)
        settings = source / "generation_config.json"
        generation = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
        generation |= {"eos_token_id": ends} if ends else {}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
        shutil.copytree(out / "run", folder / "run")
