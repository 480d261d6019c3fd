"""The command `tinylm-model`: init, inspect, convert, plan.

Only what people type and see: options in, tables out, errors as one line. torch is imported when a command needs it, so
that --help is quick. Not here: what the commands do (checkpoint.py, plan.py). Next: plan.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from tinylm.model import plan as planning
from tinylm.model._errors import ModelError
from tinylm.model.config import TransformerConfig

app = typer.Typer(
    help="Make, look at, convert and plan language models in Hugging Face layout.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

PresetName = Literal["gpt2", "llama", "qwen3"]
Preset = Annotated[PresetName, typer.Option(help="Family of the shape.")]
Depth = Annotated[int, typer.Option(help="The dial: layers, and from them the width.", min=1)]
Vocab = Annotated[int, typer.Option("--vocab-size", help="Tokens in the vocabulary.", min=1)]
Set = Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Any field: context=512; repeatable.")]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


@app.callback(invoke_without_command=True)
def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Version, torch, and the devices it sees.")] = False,
) -> None:
    if show_version:
        with _boundary():
            _print_version()
        raise typer.Exit


@app.command(epilog="Example: tinylm-model init model --preset qwen3 --depth 4 --vocab-size 2048")
def init(
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    preset: Preset = "qwen3",
    depth: Depth = 4,
    vocab_size: Vocab = 50257,
    fields: Set = [],  # noqa: B006  # typer wants a list, and copies it
    residual: Annotated[Literal["scaled", "zero"], typer.Option(help="Start of the residual projections.")] = "scaled",
    dtype: Annotated[Dtype, typer.Option(help="Type of the numbers in the file.")] = "float32",
    seed: Annotated[int, typer.Option(help="Same seed, same weights.")] = 0,
) -> None:
    """Write a random checkpoint: config.json and model.safetensors."""
    with _boundary():
        if (out / "config.json").exists():
            raise ModelError(f"{out}: wanted a directory without a model, got one with config.json; choose another")
        config = _shape(preset, vocab_size, depth, fields)
        import torch

        from tinylm.model.initialisation import initialise
        from tinylm.model.transformer import Transformer

        model = Transformer(config)
        initialise(model, residual, torch.Generator().manual_seed(seed))
        model.to(getattr(torch, dtype)).save(out)
        _say(f"{out}: {preset}, {config.depth} layers of width {config.width}, {config.parameter_count():,} parameters")


@app.command(epilog="Example: tinylm-model inspect data/processed/shakespeare/model")
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="Directory with config.json and model.safetensors.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show layers, shapes, parameters, FLOPs per token and memory. Every weight is read and checked."""
    with _boundary():
        from tinylm.model.checkpoint import read_provenance
        from tinylm.model.transformer import Transformer

        model = Transformer.load(checkpoint)
        config, dtype = model.config, str(model.embed.weight.dtype).removeprefix("torch.")
        shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        facts = _facts(config) | {f"written with {k}": v for k, v in read_provenance(checkpoint).items()}
        memory = planning.inference_memory(config, config.context, dtype)
        if as_json:
            _say(json.dumps({"format": 1, "config": vars(config), "dtype": dtype, "shapes": shapes, "memory": memory}))
            return
        _table(f"{checkpoint} ({dtype})", facts)
        _layers(shapes, config.depth)
        _table(f"Memory to serve one sequence of {config.context} tokens", {k: _bytes(v) for k, v in memory.items()})


@app.command(epilog="Example: tinylm-model convert model --out model-bf16 --dtype bfloat16")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Hugging Face directory (gpt2, llama, qwen3), sharded or not.")],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the numbers; the source's if not given.")] = None,
    to: Annotated[str, typer.Option(help="File format; so far huggingface.")] = "huggingface",
) -> None:
    """Rewrite a checkpoint: another number type, shards into one file, old field names into today's."""
    with _boundary():
        if to != "huggingface" or checkpoint.suffix == ".gguf":
            wanted = checkpoint.name if checkpoint.suffix == ".gguf" else to
            raise ModelError(f"convert: wanted Hugging Face directories on both sides, got {wanted!r}: not supported")
        if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
            raise ModelError(f"convert: wanted --out to be another directory than the source, got {out} for both")
        from tinylm.model.checkpoint import read_provenance
        from tinylm.model.transformer import Transformer

        model = Transformer.load(checkpoint, dtype=dtype)
        model.save(out, read_provenance(checkpoint))
        for name in COMPANIONS:
            if (checkpoint / name).exists():
                _copy(checkpoint / name, out / name)
        _say(f"{out}: {model.config.parameter_count():,} parameters in {str(model.embed.weight.dtype)[6:]}")


@app.command(epilog="Example: tinylm-model plan --preset llama --depth 16 --tokens 3e9 --device h100")
def plan(
    preset: Preset = "qwen3",
    depth: Depth = 4,
    vocab_size: Vocab = 50257,
    fields: Set = [],  # noqa: B006  # typer wants a list, and copies it
    tokens: Annotated[float | None, typer.Option(help="Training tokens; 20 per parameter if not given.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in memory at once.", min=1)] = 16384,
    dtype: Annotated[Dtype, typer.Option(help="Type of activations and products.")] = "bfloat16",
    device: Annotated[str | None, typer.Option(help=f"One of {', '.join(planning.DEVICES)}.")] = None,
    mfu: Annotated[float, typer.Option(help="Part of the device's peak that is reached.")] = 0.4,
    flops_per_second: Annotated[float | None, typer.Option(help="Sustained rate, instead of a device.")] = None,
) -> None:
    """Parameters, FLOPs, memory by kind, and the time that training takes."""
    with _boundary():
        config = _shape(preset, vocab_size, depth, fields)
        if tokens is not None and not 1 <= tokens < float("inf"):
            raise ModelError(f"--tokens: wanted a number of at least 1, got {tokens}")
        count = 20 * config.parameter_count() if tokens is None else int(tokens)
        facts = _facts(config)
        facts["training tokens"] = f"{count:,}" + (" (20 per parameter)" if tokens is None else "")
        facts["training FLOPs"] = f"{count * config.flops_per_token():.3e}"
        rate, source = _rate(device, mfu, flops_per_second, dtype)
        if rate is not None:
            facts["training time"] = f"{_time(planning.training_seconds(config, count, rate))} at {source}"
        memory = planning.training_memory(config, batch_tokens, dtype)
        total = sum(memory.values())
        rows = {kind: _bytes(size) for kind, size in memory.items()} | {"together": _bytes(total)}
        if device is not None:
            room = planning.DEVICES[device][1]
            rows[f"of {device}'s"] = f"{_bytes(room)} ({total / room:.0%})"
        _table(f"{preset}, depth {config.depth}", facts)
        _table(f"Memory to train with {batch_tokens:,} tokens at once", rows)


def main() -> None:
    """Entry point of `tinylm-model` and `python -m tinylm.model`."""
    app(prog_name="tinylm-model")


def _shape(preset: str, vocab_size: int, depth: int, fields: list[str]) -> TransformerConfig:
    overrides: dict[str, Any] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            raise ModelError(f"--set: wanted FIELD=VALUE, got {field!r}")
        if name in ("vocab_size", "depth"):
            raise ModelError(f"--set: {name} has an option of its own, --{name.replace('_', '-')}")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value
    return TransformerConfig.preset(preset, vocab_size, depth, **overrides)


def _rate(device: str | None, mfu: float, flops_per_second: float | None, dtype: str) -> tuple[float | None, str]:
    if device is None:
        return flops_per_second, f"{flops_per_second or 0:.3e} FLOP/s"
    if device not in planning.DEVICES:
        raise ModelError(f"--device: wanted one of {', '.join(planning.DEVICES)}, got {device!r}")
    if flops_per_second is not None:
        raise ModelError("plan: wanted --device or --flops-per-second, got both")
    if dtype not in ("bfloat16", "float16"):
        raise ModelError(f"plan: the devices' peaks are for bfloat16, got --dtype {dtype}; give --flops-per-second")
    if not 0 < mfu <= 1:
        raise ModelError(f"--mfu: wanted a part of the peak, above 0 and at most 1, got {mfu}")
    peak = planning.DEVICES[device][0]
    return peak * mfu, f"{mfu:.0%} of {device}'s {peak / 1e12:.0f} TFLOP/s"


def _facts(config: TransformerConfig) -> dict[str, str]:
    kv = "" if config.kv_heads == config.heads else f", {config.kv_heads} for keys and values"
    return {
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.context:,} tokens, {config.position} positions",
        "layers": f"{config.depth} of width {config.width}, {config.norm}",
        "attention": f"{config.heads} heads of {config.head_dim}{kv}{', QK-norm' if config.qk_norm else ''}",
        "MLP": f"{config.activation}, {config.mlp_width} wide",
        "head": "tied to the embedding" if config.tie_embeddings else "its own matrix",
        "parameters": f"{config.parameter_count():,} ({config.parameter_count(embeddings=False):,} in the layers)",
        "training FLOPs per token": f"{config.flops_per_token():,}",
    }


def _layers(shapes: Mapping[str, list[int]], depth: int) -> None:
    table = Table("parameter", "shape", "numbers", title="Layers", title_justify="left")
    table.columns[2].justify = "right"
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        if name.startswith("blocks.0."):
            name, numbers = f"blocks.[0-{depth - 1}].{name[9:]}", f"{depth} x {count:,}"
        elif name.startswith("blocks."):
            continue  # every block is like the first
        else:
            numbers = f"{count:,}"
        table.add_row(name.replace("[", r"\["), " x ".join(map(str, shape)), numbers)
    Console().print(table)


def _table(title: str, rows: Mapping[str, str]) -> None:
    table = Table(show_header=False, title=title, title_justify="left")
    for key, value in rows.items():
        table.add_row(f"[bold]{key}[/bold]", value)
    Console().print(table)


def _say(text: str) -> None:
    print(text)  # plain: paths and JSON are not markup


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _copy(source: Path, target: Path) -> None:
    from tinylm.model._atomic import atomic_path

    with atomic_path(target) as path:
        shutil.copyfile(source, path)


def _print_version() -> None:
    import torch

    try:
        own = version("tinylm-model")
    except PackageNotFoundError:
        own = "(run from source)"
    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device"
    _say(f"tinylm-model {own}, torch {torch.__version__}, Python {platform.python_version()}")
    _say(f"devices: {cuda}; CPU with {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")


@contextlib.contextmanager
def _boundary() -> Iterator[None]:
    """Expected errors become one line on stderr and exit code 1; Ctrl-C becomes 130."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        raise typer.Exit(1) from None
    except (ModelError, OSError, MemoryError) as error:
        print(f"error: {error or 'out of memory'}", file=sys.stderr)
        _drop_stdout()
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(130) from None


def _drop_stdout() -> None:
    """What stdout could not take must not be tried again when Python ends."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
