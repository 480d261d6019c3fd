"""The command `tinylm-tokenizer`: train, encode, decode, inspect, convert. The only module that imports typer and rich.

Each command reads its options here and calls `Tokenizer`; text that goes to a terminal is made here too. Results go to
stdout, messages to stderr. Exit codes: 0 done, 1 bad input, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import codecs
import io
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from tinylm.tokenizer._engines.protocol import no_progress
from tinylm.tokenizer._errors import TokenizerError

if TYPE_CHECKING:
    from tinylm.tokenizer.tokenizer import Tokenizer

app = typer.Typer(
    help="Text to ids and back: train, use and look into tokenizers.",
    epilog="Example: tinylm-tokenizer train book.txt --vocab-size 2048 --out my-tokenizer",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CHAT_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

Where = Annotated[Path, typer.Argument(metavar="TOKENIZER", help="A tokenizer directory or file.")]
PatternOption = Annotated[
    str | None, typer.Option("--pattern", help="Pattern, for a .tiktoken or vocab.json file that is not known.")
]
SpecialOption = Annotated[
    list[str] | None,
    typer.Option(
        "--special", metavar="TEXT=ID", help="A special token, for a .tiktoken file, which names none; may be repeated."
    ),
]


def _print_version(value: bool) -> None:
    if not value:
        return
    from tinylm.tokenizer import kernels

    try:
        package = version("tinylm-tokenizer")
    except PackageNotFoundError:
        package = "(not installed)"
    backend = "kernels (C++)" if kernels.available() else "python (no compiled kernel)"
    print(f"tinylm-tokenizer {package}, backend {backend}, Python {platform.python_version()}, {os.cpu_count()} cores")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version and backend.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples: tinylm-tokenizer train book.txt --vocab-size 2048 --out my-tokenizer · "
    "tinylm-tokenizer train *.txt --algorithm unigram --vocab-size 8000 --out my-unigram",
    short_help="Learn a tokenizer from text files.",
)
def train(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="UTF-8 text files.")],
    vocab_size: Annotated[int, typer.Option(help="How many ids: 256 bytes, merges and special tokens together.")],
    out: Annotated[Path, typer.Option(help="Directory for tokenizer.json; a tokenizer in it is replaced.")],
    algorithm: Annotated[str, typer.Option(help="bpe (byte-level), sentencepiece-bpe, unigram or wordpiece.")] = "bpe",
    pattern: Annotated[
        str | None, typer.Option(help="How bpe cuts text: gpt2, cl100k (default), o200k, llama3 or qwen2.")
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A special token; may be repeated. Without it: {' '.join(CHAT_SPECIALS)} and a chat template (bpe), "
            "the usual ones for the others."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="How many threads to learn on (default: one a core); not for sentencepiece-bpe.")
    ] = None,
    head: Annotated[float, typer.Option(help="Learn from this first part of each file's characters only.")] = 1.0,
) -> None:
    """Learn a tokenizer from text files and write it to a directory.

    The result is a tokenizer.json that Hugging Face's tokenizers opens too.
    """
    from tinylm.tokenizer import Tokenizer
    from tinylm.tokenizer._chat import CHATML
    from tinylm.tokenizer._trainers.corpus import Head

    if not 0 < head <= 1:
        raise typer.BadParameter(f"wanted a number above 0 and at most 1, got {head}", param_hint="--head")
    _refuse_unwritable(out)
    started = time.monotonic()
    chat = special is None and algorithm == "bpe"
    with ExitStack() as stack:
        tokenizer = Tokenizer.train(
            [Head(file, head) for file in files],
            vocab_size=vocab_size,
            algorithm=algorithm,
            pattern=pattern,
            special_tokens=CHAT_SPECIALS if chat else special,
            chat_template=CHATML if chat else None,
            progress=_progress(stack),
            threads=threads,
        )
    tokenizer.save(out)
    seconds = time.monotonic() - started
    typer.echo(f"{tokenizer.vocab_size} tokens in {seconds:.1f} s ({tokenizer.backend}) → {out / 'tokenizer.json'}")


def _refuse_unwritable(out: Path) -> None:
    """Learning may take hours: where the result cannot go is said before."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise TokenizerError(f"cannot write the tokenizer to {out}: {there} is a file, wanted a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise TokenizerError(f"cannot write the tokenizer to {out}: no permission to write in {there}")


def _progress(stack: ExitStack) -> Callable[[str, int, int], None]:
    """A bar on a terminal, one plain line every 5 seconds elsewhere; both on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress, TaskID

        bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, wanted: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=None)
            bar.update(tasks[what], completed=done, total=wanted or None)

        return show
    last = time.monotonic()

    def line(what: str, done: int, wanted: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 5:
            last = time.monotonic()
            typer.echo(f"{what} {done}/{wanted}", err=True)

    return line


@app.command(
    epilog='Examples: tinylm-tokenizer encode DIR "Hello there" · tinylm-tokenizer encode DIR --file a.txt --json',
    short_help="Text → ids.",
)
def encode(
    tokenizer: Where,
    text: Annotated[str | None, typer.Argument(help="The text; without it and --file: stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file.")] = None,
    json_list: Annotated[bool, typer.Option("--json", help="One JSON list instead of ids with spaces.")] = False,
    allow_special: Annotated[bool, typer.Option(help="Take special tokens in the text for what they are.")] = False,
    add_special_tokens: Annotated[bool, typer.Option(help="Put the tokenizer's BOS and EOS around the text.")] = False,
    pattern: PatternOption = None,
    special: SpecialOption = None,
) -> None:
    """Print the ids of a text.

    A file or stdin may be of any size: it is read and encoded in parts, with progress when the ids go to a file.
    """
    if text is not None and file is not None:
        raise typer.BadParameter("give the text or --file, not both")
    loaded = _load(tokenizer, pattern, special)
    prefix, suffix = (loaded.engine.prefix, loaded.engine.suffix) if add_special_tokens else ((), ())
    with ExitStack() as stack:
        chunks = iter([text]) if text is not None else _chunks(file, stack)
        ids = loaded.encode_stream(chunks, allowed_special="all" if allow_special else ())
        between, start, end = (", ", "[", "]") if json_list else (" ", "", "")
        sys.stdout.write(start)
        all_ids = chain(prefix, ids, suffix)
        separator = ""
        while part := list(islice(all_ids, 65536)):
            sys.stdout.write(separator + between.join(map(str, part)))
            separator = between
        sys.stdout.write(f"{end}\n")
        sys.stdout.flush()


@app.command(
    epilog='Examples: tinylm-tokenizer decode DIR 39 420 78 · tinylm-tokenizer decode DIR "[39, 420]"',
    short_help="Ids → text.",
)
def decode(
    tokenizer: Where,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids, or one JSON list; without them: stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the ids from this file.")] = None,
    pattern: PatternOption = None,
    special: SpecialOption = None,
) -> None:
    """Print the text of ids, byte for byte and with no line end of its own."""
    loaded = _load(tokenizer, pattern, special)
    written = _text(" ".join(ids) if ids else None, file)
    words = written.replace(",", " ").strip().removeprefix("[").removesuffix("]").split()
    numbers = []
    for word in words:
        try:
            numbers.append(int(word))
        except ValueError:
            what = "wanted ids (numbers with spaces between, or a JSON list)"
            raise TokenizerError(f"{what}, got {word[:100]!r}") from None
    sys.stdout.buffer.write(loaded.decode_bytes(numbers))
    sys.stdout.buffer.flush()


@app.command(
    epilog='Examples: tinylm-tokenizer inspect my-tokenizer "Tokenizers are not magic." · '
    "tinylm-tokenizer inspect my-tokenizer --with cl100k_base.tiktoken --file english.txt --file german.txt",
    short_help="Show how a text is cut into tokens; compare tokenizers.",
)
def inspect(
    tokenizer: Where,
    text: Annotated[str | None, typer.Argument(help="The text; without it and --file: stdin.")] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Read the text from this file; may be repeated.")] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="TOKENIZER", help="Compare with this tokenizer, in a table; may be repeated."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="One line for each token: id, bytes, text.")] = False,
    pattern: PatternOption = None,
) -> None:
    """Show the tokens of a text in colours, their ids, and how many bytes a token holds on average.

    With --with, or with several files: a table of tokens and bytes per token, a row for each file.
    """
    from tinylm.tokenizer import _show
    from tinylm.tokenizer._formats.load import says_no_pattern

    if each and (others or len(file or []) > 1):
        raise typer.BadParameter("--each shows one text in one tokenizer, not a table", param_hint="--each")
    paths = [tokenizer, *(others or [])]
    theirs = [len(paths) == 1 or (pattern is not None and says_no_pattern(path)) for path in paths]
    loaded = [_load(path, pattern if wanted else None) for path, wanted in zip(paths, theirs, strict=True)]
    if pattern is not None and not any(theirs):
        raise typer.BadParameter("each of these tokenizers has a pattern of its own", param_hint="--pattern")
    texts = [_text(text, None)] if not file else [_text(text, path) for path in file]
    titles = [path.name for path in file] if file else ["text"]
    if len(loaded) > 1 or len(texts) > 1:
        lines = _show.comparison(loaded, _show.names_of(paths), texts, titles, _colour(), _columns())
    else:
        lines = (_show.each if each else _show.tokens)(loaded[0], texts[0], _colour())
    typer.echo("\n".join(lines), color=True)


def _columns() -> int | None:
    """How wide the terminal behind stdout is; None: there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _colour() -> bool:
    """Whether stdout is a terminal that shows colours, and nobody asked for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@app.command(
    epilog="Examples: tinylm-tokenizer convert cl100k_base.tiktoken cl100k · "
    "tinylm-tokenizer convert my-tokenizer mine.tiktoken",
    short_help="Rewrite a tokenizer in another format.",
)
def convert(
    source: Annotated[Path, typer.Argument(help="A tokenizer directory or file in any format that can be read.")],
    target: Annotated[
        Path,
        typer.Argument(
            help="A directory (tokenizer.json), *.tiktoken, *.model, or a file called vocab.json or vocab.txt."
        ),
    ],
    pattern: PatternOption = None,
    special: SpecialOption = None,
) -> None:
    """Rewrite a tokenizer in another format; says what the target cannot hold."""
    from tinylm.tokenizer._formats.convert import convert as run

    for line in run(_load(source, pattern, special), target):
        typer.echo(line, err=True)
    typer.echo(f"{source} → {target}")


def _load(path: Path, pattern: str | None, special: list[str] | None = None) -> Tokenizer:
    from tinylm.tokenizer import Tokenizer

    named = {}
    for entry in special or []:
        text, _, id = entry.rpartition("=")
        if not text or not (id.isascii() and id.isdigit()):
            raise typer.BadParameter(
                f"wanted TEXT=ID like '<|endoftext|>=100257', got {entry!r}", param_hint="--special"
            )
        named[text] = int(id)
    return Tokenizer.load(path, pattern=pattern, special_tokens=named or None)


def _chunks(file: Path | None, stack: ExitStack) -> Iterator[str]:
    """A file (None: stdin) in parts of whole characters, with progress on stderr while the ids go elsewhere."""
    from tinylm.tokenizer._trainers.corpus import CHUNK, decode_text

    where = "stdin" if file is None else str(file)
    try:
        stream: IO[bytes] = sys.stdin.buffer if file is None else stack.enter_context(file.open("rb"))
        size = 0 if file is None else file.stat().st_size
    except OSError as error:
        raise TokenizerError(f"wanted a text file, got {where}: {error.strerror or error}; check the path") from None
    report = _progress(stack) if not sys.stdout.isatty() else no_progress
    held, offset = b"", 0
    while data := stream.read(CHUNK):
        held += data
        _, whole = codecs.utf_8_decode(held, "replace", False)  # a character that is not there to its end waits
        yield decode_text(held[:whole], where, offset)
        held, offset = held[whole:], offset + whole
        report("bytes", offset, size)
    if held:
        yield decode_text(held, where, offset)


def _text(argument: str | None, file: Path | None) -> str:
    """The one input that was given: an argument, a file, or stdin."""
    from tinylm.tokenizer._trainers.corpus import decode_text, read_text

    if argument is not None and file is not None:
        raise typer.BadParameter("give the text or --file, not both")
    if argument is not None:
        return argument
    return read_text(file) if file is not None else decode_text(sys.stdin.buffer.read(), "stdin")


def main() -> None:
    """Run the command; expected errors become one line on stderr and exit code 1."""
    warnings.showwarning = lambda message, *_: typer.echo(f"warning: {message}", err=True)
    _standard_streams()
    try:
        app(prog_name="tinylm-tokenizer")
    except (TokenizerError, OSError) as error:
        _fail(str(error))
    except MemoryError:
        _fail("not enough memory for this input")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _standard_streams() -> None:
    """What stdout's encoding does not have is written as \\u and its number; a stream that is closed is empty."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  (until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    try:
        sys.stdout.flush()
    except OSError:  # a full disk behind stdout: nothing more can be said there, so that exit does not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(1)
