"""The command `tinylm-model`: init, inspect, convert, plan.

Only what people type: options in, tables out. torch is imported when a command needs it, so that --help is quick. Not
here: what the commands do (_convert.py, _contents.py, plan.py), what their tables look like (_report.py), errors as one
line (_boundary.py). Next: plan.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tinylm.model import _budget as budget
from tinylm.model import _convert as converting
from tinylm.model import _report as report
from tinylm.model import plan as planning
from tinylm.model._boundary import boundary, print_version
from tinylm.model._errors import ModelError
from tinylm.model._files import check_new_directory, ends_in_gguf
from tinylm.model._huggingface import model_type
from tinylm.model.config import TransformerConfig
from tinylm.model.hardware import DEVICES


def _examples(*commands: str) -> str:
    """The end of a --help: what can be typed as it stands, a line each."""
    return "Examples:\n\n" + "\n\n".join(f"  {command}" for command in commands)


app = typer.Typer(
    help="Make, look at, convert and plan language models in Hugging Face layout.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "tinylm-model init model --preset qwen3 --depth 4 --vocab-size 2048",
        "tinylm-model inspect model",
        "tinylm-model convert model --out model.gguf --dtype q8_0",
        "tinylm-model plan --preset gpt2 --depth 12 --device h100",
    ),
)


PresetName = Literal["gpt2", "llama", "mistral", "qwen3", "qwen3-moe", "smollm2"]
Preset = Annotated[PresetName, typer.Option(help="Family of the shape.")]
Depth = Annotated[int, typer.Option(help="The dial: layers, and from them the width.", min=1)]
Vocab = Annotated[int, typer.Option("--vocab-size", help="Tokens in the vocabulary.", min=1)]
Set = Annotated[list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Any field: context=512; repeatable.")]
Dtype = Literal["float32", "bfloat16", "float16"]


@app.callback(invoke_without_command=True)
def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Version, torch, and the devices it sees.")] = False,
) -> None:
    if show_version:
        with boundary():
            print_version()
        raise typer.Exit


@app.command(epilog=_examples("tinylm-model init model --preset qwen3 --depth 4 --vocab-size 2048"))
def init(
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    preset: Preset = "qwen3",
    depth: Depth = 4,
    vocab_size: Vocab = 50257,
    fields: Set = [],  # noqa: B006  # typer wants a list, and copies it
    residual: Annotated[Literal["scaled", "zero"], typer.Option(help="Start of the residual projections.")] = "scaled",
    dtype: Annotated[Dtype, typer.Option(help="Type of the numbers in the file.")] = "float32",
    seed: Annotated[int, typer.Option(help="Same seed, same weights.", min=0, max=2**64 - 1)] = 0,
) -> None:
    """Write a random checkpoint: config.json and model.safetensors."""
    with boundary():
        check_new_directory(out)
        config = _shape(preset, vocab_size, depth, fields)
        model_type(config)  # before anything is made: a shape that could not be saved
        import torch

        from tinylm.model.initialization import initialize
        from tinylm.model.transformer import Transformer

        model = Transformer(config)
        initialize(model, residual, torch.Generator().manual_seed(seed))
        model.to(getattr(torch, dtype)).save(out)
        _say(f"{out}: {preset}, {config.depth} layers of width {config.width}, {config.parameter_count():,} parameters")


@app.command(
    epilog=_examples(
        "tinylm-model inspect model", "tinylm-model inspect model.gguf", "tinylm-model inspect model --json"
    )
)
def inspect(
    checkpoint: Annotated[
        Path, typer.Argument(help="Directory with config.json and model.safetensors, or a GGUF file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show layers, shapes, parameters, FLOPs per token and memory. Every weight is read and checked."""
    with boundary():
        from tinylm.model._contents import read_contents

        found = read_contents(checkpoint)
        config, total = found.config, found.config.parameter_count()
        serving = {dtype: planning.serving_memory(config, config.context, dtype) for dtype in ("float32", "bfloat16")}
        if as_json:
            shapes = {name: list(shape) for name, (shape, _, _) in found.parameters.items()}
            types = {name: kind for name, (_, kind, _) in found.parameters.items()}
            said = {"kind": found.kind, "config": dataclasses.asdict(config), "dtype": found.dtype, "parameters": total}
            said |= {"flops_per_token": config.flops_per_token(), "bytes": found.size, "notes": found.notes}
            _say(report.as_json({**said, "shapes": shapes, "types": types, "memory": serving}))
            return
        facts = report.facts(config)
        facts["file"] = f"{found.kind}, {report.memory(found.size)} of weights, most in {found.dtype}"
        rows = {f"weights in {dtype}": memory["weights"] for dtype, memory in serving.items()}
        cache = serving["bfloat16"]["key/value cache"]
        rows |= {f"cache of one sequence of {config.context:,} tokens in bfloat16": cache}
        report.show(
            report.words(checkpoint.name or str(checkpoint), facts | found.notes),
            report.layers(found.parameters, total),
            report.words("memory to serve", {key: report.memory(size) for key, size in rows.items()}),
        )


@app.command(
    epilog=_examples(
        "tinylm-model convert model --out model-bf16 --dtype bfloat16",
        "tinylm-model convert model --out model.gguf --dtype q8_0",
        "tinylm-model convert model.gguf --out model-again",
    )
)
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Hugging Face directory, sharded or not, or a GGUF file.")],
    out: Annotated[Path, typer.Option(help="Directory to write, or a file that ends in .gguf.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float64", "q8_0"] | None,
        typer.Option(help="Type of the numbers; the source's if not given."),
    ] = None,
    to: Annotated[
        Literal["huggingface", "gguf"] | None, typer.Option(help="Format; if not given, told from the end of --out.")
    ] = None,
) -> None:
    """Rewrite a checkpoint: another number type, another format, shards into one file, old field names into today's.

    Types for GGUF: float32, float16, bfloat16, q8_0 (8.5 bits a number). From a GGUF file the numbers come as float32.
    """
    with boundary():
        chosen = to or ("gguf" if ends_in_gguf(out) else "huggingface")
        for line in converting.convert(checkpoint, out, chosen, dtype):
            _say(line)


@app.command(
    epilog=_examples(
        "tinylm-model plan --preset gpt2 --depth 12",
        "tinylm-model plan --preset llama --depth 16 --tokens 3e9 --device h100 --price 2.5",
        "tinylm-model plan --depth 32 --device h100 --fsdp 8 --checkpointing --json",
    )
)
def plan(
    preset: Preset = "qwen3",
    depth: Depth = 4,
    vocab_size: Vocab = 50257,
    fields: Set = [],  # noqa: B006  # typer wants a list, and copies it
    tokens: Annotated[float | None, typer.Option(help="Training tokens; 20 per parameter if not given.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in one device's memory at once.", min=1)] = 16384,
    dtype: Annotated[Dtype, typer.Option(help="Type of activations and products.")] = "bfloat16",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again in backward.")
    ] = False,
    device: Annotated[str | None, typer.Option(help=f"One of {', '.join(DEVICES)}.")] = None,
    data: Annotated[int, typer.Option(help="Copies of the model.", min=1)] = 1,
    fsdp: Annotated[int, typer.Option(help="Devices that share one copy's weights and state (ZeRO-3).", min=1)] = 1,
    tensor: Annotated[int, typer.Option(help="Devices that share each matrix.", min=1)] = 1,
    mfu: Annotated[
        float | None, typer.Option(help="Part of --device's peak that is reached, waiting included; 0.4 if not given.")
    ] = None,
    flops_per_second: Annotated[float | None, typer.Option(help="Sustained rate of all, instead of a device.")] = None,
    price: Annotated[float | None, typer.Option(help="Of one device for an hour, in your currency.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Parameters, FLOPs, memory by kind and at its peak, and the time and money that training takes."""
    with boundary():
        config, layout = _shape(preset, vocab_size, depth, fields), planning.Layout(data, fsdp, tensor)
        if tokens is not None and not 1 <= tokens < float("inf"):
            raise ModelError(f"--tokens: wanted a number of at least 1, got {tokens}")
        count = 20 * config.parameter_count() if tokens is None else int(tokens)
        memory = planning.training_memory(config, batch_tokens, dtype, checkpointing, layout, gpu=device is not None)
        rate = budget.rate(device, mfu, flops_per_second, dtype, layout)
        cost = budget.cost(config, count, batch_tokens, checkpointing, layout, rate, price)
        serving = planning.serving_memory(config, config.context, "bfloat16")
        if as_json:
            said = {
                "config": dataclasses.asdict(config),
                "parameters": config.parameter_count(),
                "tokens": count,
                "layout": vars(layout),
            }
            said |= {"flops_per_token": config.flops_per_token(), "training_flops": count * config.flops_per_token()}
            said |= {"memory_is": planning.MEMORY_IS}
            said |= {} if device is None else {"fits": memory["peak"] <= DEVICES[device].memory}
            _say(report.as_json({**said, "memory": memory, "serving": serving, **cost}))
            return
        facts = report.facts(config)
        facts["training tokens"] = f"{count:,}" + (" (20 per parameter)" if tokens is None else "")
        facts["training FLOPs"] = f"{count * config.flops_per_token():.3e}"
        facts |= budget.in_words(cost, device, mfu, layout)
        facts["memory below"] = planning.MEMORY_IS
        peak = memory.pop("peak")
        room = 0.0 if device is None else DEVICES[device].memory
        whole = f"peak, {peak / room:.0%} of {device}'s {report.memory(room)}" if room else "peak"
        if room and peak > room:
            facts["does not fit"] = f"{report.memory(peak)} are more than {device} has: {budget.SMALLER}"
        report.show(
            report.words(f"{preset}, depth {config.depth}", facts),
            report.sizes(f"memory to train, {batch_tokens:,} tokens at once on a device", memory, peak, whole),
            report.words("memory to serve in bfloat16", {key: report.memory(size) for key, size in serving.items()}),
        )


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
        except (ValueError, RecursionError):
            overrides[name] = value
    return TransformerConfig.preset(preset, vocab_size, depth, **overrides)


def _say(text: str) -> None:
    print(text)  # plain: paths and JSON are not markup
