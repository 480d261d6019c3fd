"""tinylm-train: the commands prepare | pretrain | finetune | evaluate | sweep | synthetic.

The only file here that imports typer, and torch only inside a command, so that `--help` is quick. It computes
nothing: see prepare.py, trainer.py, finetuning/, evaluation.py, sweep.py and synthetic.py. The live display of a run is
_report.py.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tinylm.observability.boundary import bounded
from tinylm.training._signals import stop_after_step
from tinylm.training.config import TrainConfig
from tinylm.training.finetuning.config import FinetuneConfig
from tinylm.training.launched import refuse_many_processes, told_to_torchrun

app = typer.Typer(
    name="tinylm-train",
    help="Text to a token data set, and a token data set to a trained model.",
    epilog="Try: tinylm-train pretrain --data DATA_DIR --out CHECKPOINT_DIR --depth 4 --minutes 3",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_bounded = bounded("try a smaller --batch-size, --depth or --context")


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import importlib.metadata

    import torch

    from tinylm.model import pick_device

    try:
        version = importlib.metadata.version("tinylm-train")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed: run from a checkout)"
    print(f"tinylm-train {version}, torch {torch.__version__}, device {pick_device('auto')}")
    raise typer.Exit


@app.callback()
@_bounded
def _app(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version, torch and device.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "pretrain":
        refuse_many_processes(str(context.invoked_subcommand))


@app.command(epilog="Try: tinylm-train prepare my.txt --tokenizer TOKENIZER_DIR --validation tail:0.1 --out DATA_DIR")
@_bounded
def prepare(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="UTF-8 text, .jsonl, .parquet, folders of those.")
    ],
    tokenizer: Annotated[Path, typer.Option(metavar="TOKENIZER_DIR", help="What tinylm-tokenizer train made.")],
    out: Annotated[Path, typer.Option(metavar="DATA_DIR", help="The data set's folder.")],
    validation: Annotated[
        str, typer.Option(help="tail:0.1 (the end of each file), documents:0.01 (whole documents), or a FILE.")
    ] = "tail:0.1",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that stands at DATA_DIR.")] = False,
    field: Annotated[str, typer.Option(help="Where a JSONL or Parquet record has its text.")] = "text",
    license: Annotated[str | None, typer.Option(help="The text's licence, to be kept in data.json.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="That encode. Default: one a core.")] = None,
) -> None:
    """Tokenize text into a data set. A killed one goes on from its last whole shard when started again."""
    from tinylm.training._report import CharacterBar
    from tinylm.training.prepare import prepare as run

    with CharacterBar() as report:
        description = run(
            files, tokenizer, out, validation, overwrite, report, field=field, license=license, threads=threads
        )
    for name, split in description["splits"].items():
        per_token = split["characters"] / max(1, split["tokens"])
        print(f"{name}: {split['tokens']:,} tokens, {per_token:.2f} characters each, {split['documents']} document(s)")
    print(f"data set: {out}")


def _options(options: type, command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` a flag for every field of the dataclass `options` that it does not name itself: name, type, help
    and group come from there.

    A flag that is not given is None, so that the TOML file's value, or else the default, stands.
    """
    hints = typing.get_type_hints(options)
    own = inspect.signature(command).parameters
    spelled = typing.get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(annotation=spelled[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for field in dataclasses.fields(options):
        if field.name in own:
            continue
        text = field.metadata["help"] + (f" Default: {field.default}." if field.default not in (None, "") else "")
        option = typer.Option(help=text, rich_help_panel=field.metadata["group"], show_default=False)
        kind: Any = str if typing.get_origin(hints[field.name]) is typing.Literal else hints[field.name]
        annotation: Any = Annotated[kind | None, option]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it; mypy has no name for it
    return command


@app.command(
    epilog="Try: tinylm-train pretrain --data DATA_DIR --out CHECKPOINT_DIR --depth 4 --minutes 3. "
    "The same command again continues an interrupted run."
)
@functools.partial(_options, TrainConfig)
@_bounded
@told_to_torchrun()
def pretrain(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file with options; flags win over it.", rich_help_panel="Files"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would be, and train nothing.", rich_help_panel="Files")
    ] = False,
    **flags: Any,
) -> None:
    """Train a model from random weights. Ctrl-C saves and stops; the same command again goes on."""
    options = TrainConfig.load(config, **flags)
    # Before torch is loaded: on a busy machine its threads would otherwise spin for whole time slices, waiting for one
    # that is not running (a step of depth 4 took 3.1 s instead of 0.7 s; on a quiet machine the two are equal).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from tinylm.training import planning
    from tinylm.training._report import Display, conclude
    from tinylm.training.parallel import strategy_for
    from tinylm.training.trainer import Trainer

    with strategy_for(options) as strategy, Display(shown=strategy.is_writer) as display:
        trainer = Trainer(options, display.report, display.say, strategy)
        if strategy.description:
            display.say(strategy.description)
        if dry_run:
            for line in planning.lines(trainer.setup):
                display.say(line)
            if (found := trainer.saving.found()) is not None:
                display.say(f"continues: after step {found[1].step:,}, which stands in {options.out}")
            return
        shape, precision, threads = trainer.shape, trainer.progress.dtype, trainer.progress.threads
        display.say(
            f"device: {trainer.device}, {precision}, {threads} thread{'s' * (threads != 1)}. "
            f"Model: {trainer.config.preset}, {shape.depth} layers of width {shape.width}, "
            f"{shape.parameter_count() / 1e6:.1f}M parameters. "
            f"Batch: {trainer.config.batch_size} x {trainer.config.context} tokens"
        )
        with stop_after_step(trainer.request_stop, display.say):
            result = trainer.train()
    if strategy.is_writer:
        conclude(result, options.out)
    if not result.finished:
        raise SystemExit(130)  # no error, for torchrun either


@app.command(
    epilog="""Try:

sft    tinylm-train finetune CHECKPOINT --data chat.jsonl --out TUNED

lora   tinylm-train finetune CHECKPOINT --data chat.jsonl --method lora --rank 8 --out TUNED

dpo    tinylm-train finetune TUNED --data pairs.jsonl --method dpo --beta 0.1 --out BETTER

grpo   tinylm-train finetune TUNED --data prompts.jsonl --method grpo --reward number --out BETTER

A line of data: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]} or
{"prompt": ..., "completion": ...} · dpo {"prompt": ..., "chosen": ..., "rejected": ...} · grpo {"prompt": ...,
"answer": ...}"""
)
@functools.partial(_options, FinetuneConfig)
@_bounded
def finetune(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A trained model.", show_default=False)],
    data: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines.", rich_help_panel="Files")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New checkpoint folder.", rich_help_panel="Files")],
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file with options; flags win over it.", rich_help_panel="Files"),
    ] = None,
    **flags: Any,
) -> None:
    """Teach a trained model by examples (sft, lora), preferences (dpo) or rewards (grpo). Ctrl-C saves and stops; the
    same command again goes on."""
    options = FinetuneConfig.load(config, checkpoint=str(checkpoint), data=str(data), out=str(out), **flags)
    import threading

    from tinylm.training._report import Lines
    from tinylm.training.finetuning.run import finetune as run

    stop = threading.Event()
    lines = Lines()
    with stop_after_step(stop.set, lines.say):
        result = run(options, lines.report, lines.say, stop)
    steps = f"{result.step} of {result.total_steps} steps"
    if not result.finished:
        saved = f"; the model is saved in {out}" if result.step else ""
        lines.say(f"stopped: {steps}{saved}. The same command again goes on.")
        raise typer.Exit(130)
    if not result.figures:
        print(f"already finished: {steps}. The model is in {out}; another run needs another --out, or --overwrite.")
    else:
        print(f"finished: {steps} in {result.seconds / 60:.1f} minutes. Model: {out}")


@app.command(
    epilog="""Try: tinylm-train evaluate CHECKPOINT_DIR --data DATA_DIR

or: tinylm-train evaluate CHECKPOINT_DIR --task hellaswag.jsonl --task gsm8k.jsonl --json"""
)
@_bounded
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT_DIR", help="A trained model.")],
    data: Annotated[Path | None, typer.Option(metavar="DATA_DIR", help="The data set to judge it on.")] = None,
    split: Annotated[str, typer.Option(help="validation or train.")] = "validation",
    task: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="JSON lines as HellaSwag's, ARC's or GSM8K's; may be given more than once."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer to a question like GSM8K's.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, and nothing else.")] = False,
    device: Annotated[str, typer.Option(help="auto (cuda > mps > cpu), cpu, cuda, mps.")] = "auto",
) -> None:
    """Bits per character and byte and perplexity on a data set's split; right answers to a task's questions."""
    import json

    from tinylm.training._errors import TrainingError
    from tinylm.training.evaluation import measures
    from tinylm.training.tasks import run_task

    if data is None and not task:
        raise TrainingError("wanted --data or --task, got neither: say what to judge the model on")
    found: dict[str, Any] = {"format": 1, "checkpoint": str(checkpoint)}
    if data is not None:
        figures, intervals = measures(checkpoint, data, split, device)
        found |= {"data": str(data), "split": split, **{name: figure.value for name, figure in figures.items()}}
        found["intervals"] = {name: [figure.low, figure.high] for name, figure in figures.items()}
        found["interval"] = intervals
        for name, figure in () if as_json else figures.items():
            within = "" if figure.low is None else f" ({figure.low:.4f} to {figure.high:.4f})"
            print(f"{split}: {figure.value:.4f} {name.replace('_', ' ')}{within}")
        if not as_json:
            print(f"in brackets: {intervals}")
    for file in task or []:
        shares = run_task(checkpoint, file, device, max_tokens)
        found.setdefault("tasks", {})[str(file)] = {name: share.description() for name, share in shares.items()}
        for name, share in () if as_json else shares.items():
            low, high = share.interval
            print(
                f"{file}: {name.replace('_', ' ')} {share.right / share.asked:.1%} ({share.right} of {share.asked}; "
                f"95 % interval, Wilson: {low:.1%} to {high:.1%})"
            )
    if as_json:
        print(json.dumps(found))


@app.command(
    epilog="""Try: tinylm-train sweep --data DATA_DIR --out SWEEP_DIR

or: tinylm-train sweep --data DATA_DIR --out SWEEP_DIR --depths 2,3,4,5,6 --flops 1e13,3e13,1e14 --dry-run

The same command again goes on; more depths and budgets add to what stands there."""
)
@_bounded
def sweep(
    data: Annotated[Path, typer.Option(metavar="DATA_DIR", help="What tinylm-train prepare made.")],
    out: Annotated[Path, typer.Option(metavar="SWEEP_DIR", help="A checkpoint folder for each run, and the fits.")],
    depths: Annotated[str, typer.Option(help="Sizes, with commas: three at least for a fit.")] = "1,2,3,4",
    flops: Annotated[str, typer.Option(help="Budgets, with commas: each is spent on every depth.")] = "1e12,3e12,1e13",
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A TOML file with options of pretrain.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the runs would be, and train nothing.")] = False,
) -> None:
    """Train models of several depths for equal FLOPs, fit the law of scaling, and plot it (sweep.svg)."""
    from tinylm.training._errors import TrainingError
    from tinylm.training._report import Lines
    from tinylm.training.sweep import Sweep, lines, numbers, plan
    from tinylm.training.sweep_plot import plot

    options = TrainConfig.load(config, data=str(data), out=str(out))
    runs = plan(options, numbers(depths, "depths"), numbers(flops, "flops"))
    for run in runs if dry_run else ():
        print(f"{run.name}: {run.parameters:,} parameters, {run.config.steps:,} steps, {run.tokens:,} tokens")
    if dry_run:
        return
    shown = Lines()
    ladder = Sweep(runs, out, shown.say, shown.report)
    with stop_after_step(ladder.request_stop, shown.say):
        found = ladder.run()
    if found is None:
        shown.say("stopped. The same command again goes on.")
        raise typer.Exit(130)
    for line in lines(found):
        print(line)
    try:
        plot(found, out / "sweep.svg")
        print(f"runs and fits: {out / 'sweep.json'}, picture: {out / 'sweep.svg'}")
    except TrainingError as error:  # the figures stand all the same
        print(f"runs and fits: {out / 'sweep.json'}. No picture: {error}")


@app.command(epilog="Try: tinylm-train synthetic corpus.txt --characters 1000000")
@_bounded
def synthetic(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the text goes.")],
    characters: Annotated[int, typer.Option(min=1, help="At least so many; the last sentence ends.")] = 1_000_000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same text.")] = 0,
) -> None:
    """Write a made text whose entropy is known exactly: what no model gets below, and a right trainer comes down to."""
    import math

    from tinylm.training.synthetic import write

    bits = write(file, characters, seed) / math.log(2)
    print(f"{file}: at least {characters:,} characters. Entropy: {bits:.4f} bits per character, the floor of any model")


def main() -> Any:
    """The console script."""
    app()
