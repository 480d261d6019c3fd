"""tinylm.inference: the commands `tinylm-infer generate | chat | serve | bench | explore`. Terminal in, terminal out.

The only file here that imports typer, and torch only inside a command, so that `--help` is quick. It computes nothing:
see `llm.py` for writing, `conversation.py` for chat, `server.py` for serving, `bench.py` for measuring.
"""

import contextlib
import json
import sys
import time
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinylm.inference._errors import InferenceError
from tinylm.observability.boundary import bounded, uninterrupted

if TYPE_CHECKING:
    from tinylm.inference.conversation import Conversation
    from tinylm.inference.generation import Generation
    from tinylm.inference.llm import LLM

app = typer.Typer(
    name="tinylm-infer",
    help="Text out of a trained model: generate, chat, serve, explore, bench.",
    epilog="Try: tinylm-infer generate CHECKPOINT 'Once upon a time'",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_bounded = bounded("try --device cpu, a smaller --dtype, or fewer tokens")


def _read_options(context: typer.Context, file: Path | None) -> Path | None:
    """What a TOML file says takes the place of the options' defaults; a flag (or a variable) still goes before it."""
    if file is None:
        return None
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise typer.BadParameter(f"wanted a TOML file with options, got: {error}") from None
    options = {option.name: option for option in context.command.params if option.param_type_name == "option"}
    known = [str(name) for name in options if name not in ("config", "help")]
    if unknown := sorted(values.keys() - known):
        raise typer.BadParameter(
            f"wanted options of {context.command.name}, got {unknown[0]}; known: {', '.join(known)}"
        )
    for name, value in values.items():
        several = getattr(options[name], "multiple", False)
        parts = value if several and isinstance(value, list) else [value]
        if (several and not isinstance(value, list)) or not all(type(part) in (str, int, float) for part in parts):
            wanted = "a list of texts" if several else "text or a number"
            raise typer.BadParameter(f"wanted {wanted} for {name}, got {value!r}")
        values[name] = [str(part) for part in parts] if several else str(value)  # read as flags are
    context.default_map = values
    return file


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=_read_options,
        is_eager=True,
        help="TOML file with options (max_tokens = 100); a flag counts more.",
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(metavar="CHECKPOINT", help="Directory in Hugging Face layout, or GGUF file.", show_default=False),
]
Device = Annotated[str, typer.Option(help="auto (cuda > mps > cpu), cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")]
Quantization = Annotated[
    str | None, typer.Option(help="int8 or int4: round the weights when they are loaded; faster, on the CPU.")
]
MaxTokens = Annotated[int, typer.Option(help="Write at most this many tokens.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token; higher is more varied.")]
TopK = Annotated[int, typer.Option(help="Draw from the k most likely tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the fewest tokens with this probability together.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this times the likeliest.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given more than once.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.")]


def _open(checkpoint: Path, dtype: str, device: str, quantization: str | None, **options: Any) -> "LLM":
    """Loads the model and states on stderr what it runs on. `options`: of the engine; one text at a time starts sooner
    with max_num_seqs=1."""
    with uninterrupted():
        from tinylm.inference.llm import LLM

    llm = LLM(str(checkpoint), dtype=dtype, device=device, quantization=quantization, **options)
    millions = llm.model.config.parameter_count() / 1e6
    numbers = getattr(llm.model, "scheme", None) or str(llm.dtype).removeprefix("torch.")
    print(f"device: {llm.device}, {numbers}, {millions:.1f}M parameters", file=sys.stderr)
    return llm


@_bounded
def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    import importlib.metadata

    with uninterrupted():
        import torch

    from tinylm.inference import kernels
    from tinylm.model import pick_device

    try:
        version = importlib.metadata.version("tinylm-infer")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed: run from a checkout)"
    print(f"tinylm-infer {version}, torch {torch.__version__}, device {pick_device('auto')}, {kernels.backend()}")
    raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Version, torch, device and kernels."),
    ] = False,
) -> None:
    pass


@app.command(epilog="Try: tinylm-infer generate CHECKPOINT 'ROMEO:' --max-tokens 100 --temperature 0.8 --seed 1")
@_bounded
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; '' begins a new one.")],
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.8,
    seed: Seed = 0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    stop: Stop = None,
    json_schema: Annotated[Path | None, typer.Option(help="File: write JSON that this schema admits.")] = None,
    regex: Annotated[str | None, typer.Option(help="Write text that this expression matches as a whole.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="Write one of these; give it more than once.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    config: Config = None,
) -> None:
    """Continue a text. It appears as it is written; the speed is printed on stderr."""
    from tinylm.inference.sampling_params import SamplingParams
    from tinylm.inference.structured_params import StructuredOutputsParams

    schema = None if json_schema is None else _read_text(json_schema)
    given = (("json", schema), ("regex", regex), ("choice", choice or None))
    form: dict[str, Any] = {name: value for name, value in given if value is not None}  # "" is refused, not forgotten
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=stop,
        structured_outputs=StructuredOutputsParams(**form) if form else None,
    )
    llm = _open(checkpoint, dtype, device, quantization, max_num_seqs=1)
    start = time.perf_counter()
    generation = llm.stream(prompt, params)
    print(prompt, end="", flush=True)
    _show(generation)
    _print_speed(generation, time.perf_counter() - start)
    if generation.finish_reason == "length" and len(generation.token_ids) < max_tokens:
        print(f"note: the model's context of {llm.engine.context} tokens is full", file=sys.stderr)


def _show(generation: "Generation") -> None:
    try:
        for piece in generation:
            print(piece, end="", flush=True)
    except InferenceError:
        print(flush=True)  # what went wrong stands on a line of its own
        raise
    print(flush=True)


def _print_speed(generation: "Generation", seconds: float) -> None:
    count = len(generation.token_ids)
    speed = f"{count} tokens in {seconds:.2f} s: {count / seconds:.1f} tokens/s"
    print(f"{speed} (ended by: {generation.finish_reason})", file=sys.stderr)


@app.command(epilog="Try: tinylm-infer chat CHECKPOINT      or: echo 'Who are you?' | tinylm-infer chat CHECKPOINT")
@_bounded
def chat(
    checkpoint: Checkpoint,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.8,
    seed: Seed = None,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    stop: Stop = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    config: Config = None,
) -> None:
    """Talk to a model. /clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."""
    from tinylm.inference.conversation import Conversation
    from tinylm.inference.sampling_params import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, seed=seed, top_k=top_k, top_p=top_p, min_p=min_p, stop=stop
    )
    llm = _open(checkpoint, dtype, device, quantization, max_num_seqs=1)
    if not llm.tuned_for_chat:
        print("note: this model is not tuned for chat; it continues your text instead of answering", file=sys.stderr)
    conversation, failed = Conversation(llm, params, system), False
    for line in _lines():
        with contextlib.suppress(KeyboardInterrupt):  # just before a turn, or a second one at its end
            if line.strip() == "/exit":
                break
            if line.strip() == "/clear":
                conversation.clear()
                print("(conversation forgotten)", file=sys.stderr)
            elif line.strip():
                failed |= not _answer(conversation, line)
    if failed and not sys.stdin.isatty():
        raise typer.Exit(1)  # a script must not take what it has for all answers


def _lines() -> Iterator[str]:
    """Lines of the terminal, with a prompt and editing, or of whatever is piped in."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it gives input() line editing and history
    print("/clear forgets, /exit or Ctrl-D leaves, Ctrl-C stops an answer", file=sys.stderr)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)


def _answer(conversation: "Conversation", text: str) -> bool:
    """One turn, and whether it was answered. An error or Ctrl-C ends the turn, not the conversation."""
    try:
        generation = conversation.ask(text)
        try:
            if conversation.left_out:
                print(f"(context full: the oldest {conversation.left_out} messages are left out)", file=sys.stderr)
            _show(generation)
        except ValueError:
            conversation.take_back()
            raise
        except BaseException:
            conversation.answered(generation.text)
            raise
        conversation.answered(generation.text)
    except KeyboardInterrupt:  # while the prompt was being read, too
        print("\n(stopped)", file=sys.stderr)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


@app.command(epilog="Try: tinylm-infer serve CHECKPOINT --port 8000      then: curl http://127.0.0.1:8000/v1/models")
@_bounded
def serve(
    checkpoint: Checkpoint,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in: give an --api-key then.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TINYLM_API_KEY", help="What clients must show; the variable keeps it out of `ps`."),
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="Beyond so many requests without a first token: 429.")] = 128,
    max_model_len: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer together; the model's context unless given.")
    ] = None,
    max_request_bytes: Annotated[int, typer.Option(help="Beyond this size of a request: 413.")] = 1 << 20,
    request_seconds: Annotated[float, typer.Option(help="Beyond this time for an answer: 504. 0: no limit.")] = 600.0,
    drain_seconds: Annotated[float, typer.Option(help="How long SIGTERM waits for what is being written.")] = 30.0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    config: Config = None,
) -> None:
    """Answer over HTTP as OpenAI does: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics."""
    with uninterrupted():
        from tinylm.inference import server
    from tinylm.inference.server_limits import ServerLimits

    limits = ServerLimits(
        request_bytes=max_request_bytes,
        waiting=max_waiting,
        request_seconds=request_seconds or None,
        drain_seconds=drain_seconds,
        api_key=api_key,
    )
    with server.bind(host, port) as listener:
        if api_key is None and not ip_address(listener.getsockname()[0]).is_loopback:
            print(f"warning: whoever reaches {host} may use this server: give it an --api-key", file=sys.stderr)
        llm = _open(checkpoint, dtype, device, quantization, max_model_len=max_model_len)
        server.serve(llm, checkpoint.resolve().name, listener, limits)


@app.command(epilog="Try: tinylm-infer bench CHECKPOINT --prompt-tokens 64 --max-tokens 128 --perplexity book.txt")
@_bounded
def bench(
    checkpoint: Checkpoint,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt (random tokens).")] = 64,
    max_tokens: MaxTokens = 128,
    repetitions: Annotated[int, typer.Option(min=1, help="The figures are medians of so many runs.")] = 3,
    perplexity: Annotated[Path | None, typer.Option(help="Also: how well the model predicts this text file.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    config: Config = None,
) -> None:
    """Measure speed, and with --perplexity quality. The last line of the output is one JSON object."""
    text = None if perplexity is None else _read_text(perplexity)
    llm = _open(checkpoint, dtype, device, quantization, max_num_seqs=1)
    from tinylm.inference import bench as measure

    figures: dict[str, Any] = {
        "format": 1,
        "checkpoint": str(checkpoint),
        "device": str(llm.device),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "quantization": getattr(llm.model, "scheme", None),
        "parameters": llm.model.config.parameter_count(),
        **measure.speed(llm, prompt_tokens, max_tokens, repetitions),
    }
    print(f"time to first token  {figures['time_to_first_token_s'] * 1e3:.1f} ms (prompt of {prompt_tokens} tokens)")
    print(f"time per token       {figures['time_per_token_s'] * 1e3:.2f} ms")
    print(f"tokens per second    {figures['tokens_per_s']:.1f}", flush=True)
    moved, limit = figures["bytes_per_token"] / 1e6, figures["roofline_gb_per_s"]
    print(f"memory               {figures['gb_per_s']:.1f} GB/s: {moved:.1f} MB for each token")
    print(
        f"of the roofline      {figures['roofline_fraction']:.2f} ({limit:.1f} GB/s, a matrix of that size read here)"
    )
    if text is not None:
        quality = measure.perplexity(llm, text)
        shown = "infinite" if quality["perplexity"] is None else f"{quality['perplexity']:.3f}"
        print(f"perplexity           {shown} over {quality['tokens']} tokens")
        print(f"bits per character   {quality['bits_per_character']:.4f} over {quality['characters']} characters")
        figures["perplexity"] = quality
    print(json.dumps(figures))


@app.command(epilog="Try: tinylm-infer explore CHECKPOINT      several: tinylm-infer explore run/steps/*")
@_bounded
def explore(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help="Directories in Hugging Face layout, or GGUF files."),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8200,
) -> None:
    """Look inside: a page that follows your text through your model, at every saved step. On this machine alone."""
    with uninterrupted():
        from tinylm.inference import server
    from tinylm.inference.explorer.app import serve
    from tinylm.inference.explorer.library import Library

    with server.bind("127.0.0.1", port) as listener:
        serve(Library(checkpoints), listener)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InferenceError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None


@_bounded  # --help, too, may be written to a full disk
def main() -> None:
    """Entry point of `tinylm-infer` and of `python -m tinylm.inference`."""
    app(prog_name="tinylm-infer")
