"""A fine-tuning run: read, train, and save now and then; the same command goes on after Ctrl-C or a kill.

    OUT/
      config.json model.safetensors tokenizer.json ...     as pre-training's: opens in transformers and tinylm-infer
      adapter/                                             --method lora: what peft loads; the model above is merged
      steps/00000120/                                      what a run goes on from (resuming.py)
      run/                                                 run.json, metrics.jsonl, config.toml (repeats the run)

Not here: data and optimisers (methods.py), the losses (sft.py, lora.py, dpo.py, grpo.py).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tinylm import observability as obs
from tinylm.model import Transformer, pick_device, read_provenance
from tinylm.tokenizer import Tokenizer
from tinylm.training import _options_file
from tinylm.training._errors import TrainingError
from tinylm.training._files import only_writer, remove_leftovers, sha256
from tinylm.training._watching import sampled
from tinylm.training.checkpoint import step_folders
from tinylm.training.divergence import all_finite, no_better_than_guessing
from tinylm.training.finetuning import chat_data, lora, resuming
from tinylm.training.finetuning.config import FinetuneConfig
from tinylm.training.finetuning.grpo import GRPO
from tinylm.training.finetuning.methods import Method, make_method, optimizers_for
from tinylm.training.schedule import learning_rate_factor

_COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


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
    `stop` is set the step is finished, the model saved, and the result says that it is not finished: the same call goes
    on, bit for bit on a CPU.

    Raises TrainingError, or the tokenizer's or the model's own error, before anything is written; and when the loss is
    no number any more, which leaves the last checkpoint as it stands.
    """
    out = Path(config.out)
    _check_out(config, out)
    torch.manual_seed(config.seed)
    model = Transformer.load(config.checkpoint, device=pick_device(config.device))
    tokenizer = Tokenizer.load(Path(config.checkpoint) / "tokenizer.json")
    stored = model.embed.weight.dtype
    model = model.float()
    if tokenizer.vocab_size > model.config.vocab_size:
        raise TrainingError(
            f"{config.checkpoint}: the tokenizer has {tokenizer.vocab_size} tokens and the model knows "
            f"{model.config.vocab_size}: they do not belong together"
        )
    method = make_method(config, model, tokenizer, say)
    config = config.resolve(model.config, len(method.items))
    if config.method == "lora":
        lora.add_adapters(model, config.rank, config.alpha)
    options = resuming.identity(config)
    optimizers = optimizers_for(config, model)

    def save(step: int) -> None:
        generator = method.generator
        resuming.save(
            out,
            step,
            options,
            model,
            optimizers,
            generator,
            lambda folder: _write(config, model, tokenizer, stored, folder),
        )

    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        done = _begin(config, out, options, model, optimizers, method, say)
        if done == config.steps:
            return Finetuned(done, done, True, 0.0, {})
        with obs.init(directory=out / "run", config=dataclasses.asdict(config), name=out.name) as run:
            _repeatable(config, out)
            with sampled(run):
                result = _train(config, method, model, optimizers, done, save, run, report, stop or threading.Event())
            run.finish("finished" if result.finished else "interrupted")
    if result.finished and (sign := _learned_nothing(config, model, method, result)):
        say(sign)
    return result


def _learned_nothing(config: FinetuneConfig, model: Transformer, method: Method, result: Finetuned) -> str | None:
    """What to say of a run whose loss is that of guessing, or whose rewards taught nothing; a preference has no such
    measure."""
    if isinstance(method, GRPO):
        return method.learned_nothing()
    if config.method == "dpo":
        return None
    sign = no_better_than_guessing(result.figures["loss"], model.config.vocab_size)
    return (
        sign and f"at the end {sign}: too few steps, or a --learning-rate far above or below {config.learning_rate:g}"
    )


def _repeatable(config: FinetuneConfig, out: Path) -> None:
    """run/config.toml: every option as it came out, and the command that makes the same model of them."""
    path = (out / "run" / "config.toml").resolve()
    data = config.data if config.data.startswith("task:") else str(Path(config.data).resolve())
    checkpoint, data, file = (shlex.quote(word) for word in (str(Path(config.checkpoint).resolve()), data, str(path)))
    command = f"OMP_NUM_THREADS={torch.get_num_threads()} tinylm-train finetune {checkpoint} --data {data}"
    elsewhere = ("checkpoint", "data", "out", "overwrite")
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in elsewhere}
    _options_file.write(path, [f"The same run again: {command} --config {file} --out ANOTHER_DIR"], values)


def _begin(
    config: FinetuneConfig,
    out: Path,
    options: Mapping[str, object],
    model: Transformer,
    optimizers: Mapping[str, torch.optim.Optimizer],
    method: Method,
    say: Callable[[str], None],
) -> int:
    """The updates done: of the run that stands at OUT and is taken up, or none."""
    remove_leftovers(out / "steps")
    saved = None if config.overwrite and not _same_unfinished(out, options) else resuming.newest(out, say)
    if saved is None:
        for folder in (out / "steps", out / "run") if config.overwrite else ():
            shutil.rmtree(folder, ignore_errors=True)
        return 0
    resuming.refuse_changes(saved, options, out)
    resuming.publish(saved.folder, out)  # a kill may have come between the folder and its copy
    if not saved.finished:
        say(f"going on after step {saved.step}")
        resuming.restore(saved, model, optimizers, method.generator)
    return saved.step


def _same_unfinished(out: Path, options: Mapping[str, object]) -> bool:
    """Whether what stands at OUT is this very run, stopped: --overwrite then does not throw its steps away."""
    try:
        saved = resuming.newest(out, lambda line: None)
    except TrainingError:
        return False
    return saved is not None and not saved.finished and saved.state["options"] == options


def _train(
    config: FinetuneConfig,
    method: Method,
    model: Transformer,
    optimizers: Mapping[str, torch.optim.Optimizer],
    done: int,
    save: Callable[[int], None],
    run: obs.Run,
    report: Callable[[int, int, dict[str, float]], None],
    stop: threading.Event,
) -> Finetuned:
    steps, saved, figures = config.steps or 1, done, dict[str, float]()
    every = config.checkpoint_every or max(1, steps // 10)
    trained = [p for p in model.parameters() if p.requires_grad]
    order = itertools.islice(shuffled(len(method.items), config.batch_size, config.seed), done, None)
    started = time.monotonic()
    while done < steps and not (stop.is_set() and method.settled):
        factor = learning_rate_factor(done, steps, config.warmup_steps, 0.0, "linear")
        loss, details = method.loss(next(order))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        norm = float(nn.utils.clip_grad_norm_(trained, config.clip))
        figures = {
            "loss": float(loss.detach()),
            "gradient_norm": norm,
            "learning_rate": (config.learning_rate or 0.0) * factor,
            **details,
        }
        if not math.isfinite(figures["loss"]) or not math.isfinite(norm):
            run.finish("failed")
            raise _diverged(config, f"the loss is {figures['loss']} and the gradient's norm {norm} at step {done + 1}")
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done += 1
        run.log(figures, step=done)
        report(done, steps, figures)
        if done == steps or (method.settled and (stop.is_set() or done - saved >= every)):
            if not all_finite(parameter.detach() for parameter in trained):
                run.finish("failed")
                raise _diverged(config, f"a weight is not a number after step {done}")
            save(done)
            saved = done
    return Finetuned(done, steps, done == steps, time.monotonic() - started, figures)


def _diverged(config: FinetuneConfig, sign: str) -> TrainingError:
    stands = "the last checkpoint still stands" if step_folders(Path(config.out)) else "no checkpoint had been saved"
    return TrainingError(
        f"{sign}; {stands}: start again in another --out, and try a --learning-rate below {config.learning_rate:g}"
    )


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
    """Whether OUT may be written: it is new, or holds a fine-tuning, or is to be overwritten."""
    if out.resolve() == Path(config.checkpoint).resolve():
        raise TrainingError(f"wanted a new folder as --out, got the checkpoint itself, {out}")
    inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or (inside - {"run", "steps"} and "config.json" not in inside):
        raise TrainingError(
            f"wanted a new folder or a checkpoint as --out, got something else at {out}: choose another"
        )
    if "config.json" in inside and not config.overwrite and not step_folders(out):
        raise TrainingError(f"a checkpoint stands at {out}: choose another --out, or --overwrite it")


def _write(config: FinetuneConfig, model: Transformer, tokenizer: Tokenizer, stored: torch.dtype, folder: Path) -> None:
    """The model as it is now, in the precision it came in."""
    source = Path(config.checkpoint)
    if config.method == "lora":
        lora.save_adapter(model, folder / "adapter", str(source))
    if config.method == "lora" or stored != torch.float32:
        model = copy.deepcopy(model)  # training goes on with adapters, in float32
    if config.method == "lora":
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
