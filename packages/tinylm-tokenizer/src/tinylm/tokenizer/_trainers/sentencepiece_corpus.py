"""What the trainers of SentencePiece-BPE and Unigram have in common: options, counted words, and which text may be a
piece.

A corpus is read line by line; a line is normalised as it will be when encoding, and cut before every "▁". Characters
that are too rare for the vocabulary, and the texts of special and user-defined pieces, cut a word: nothing is learned
across them. The rules are those of SentencePiece's trainer; a line has no greatest length here. Next:
`sentencepiece_bpe_training.py`, `unigram_training.py`. Source: Kudo and Richardson 2018; SentencePiece's documentation.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import regex

from tinylm.tokenizer._engines.sentencepiece_data import SPACE, Charsmap, Kind, SentencePieceModel, Spaces, Step
from tinylm.tokenizer._errors import TokenizerError
from tinylm.tokenizer._text import nfkc_rules
from tinylm.tokenizer._text.sentencepiece_words import byte_scores, words
from tinylm.tokenizer._trainers import counting
from tinylm.tokenizer.normalizer import normalize

# Every script of Unicode 16 that has letters of its own; a character of none of them counts as "Common".
_SCRIPTS = """
Adlam Ahom Anatolian_Hieroglyphs Arabic Armenian Avestan Balinese Bamum Bassa_Vah Batak Bengali Bhaiksuki Bopomofo
Brahmi Braille Buginese Buhid Canadian_Aboriginal Carian Caucasian_Albanian Chakma Cham Cherokee Chorasmian Coptic
Cuneiform Cypriot Cypro_Minoan Cyrillic Deseret Devanagari Dives_Akuru Dogra Duployan Egyptian_Hieroglyphs Elbasan
Elymaic Ethiopic Georgian Glagolitic Gothic Grantha Greek Gujarati Gunjala_Gondi Gurmukhi Han Hangul Hanifi_Rohingya
Hanunoo Hatran Hebrew Hiragana Imperial_Aramaic Inherited Inscriptional_Pahlavi Inscriptional_Parthian Javanese
Kaithi Kannada Katakana Kawi Kayah_Li Kharoshthi Khitan_Small_Script Khmer Khojki Khudawadi Lao Latin Lepcha Limbu
Linear_A Linear_B Lisu Lycian Lydian Mahajani Makasar Malayalam Mandaic Manichaean Marchen Masaram_Gondi Medefaidrin
Meetei_Mayek Mende_Kikakui Meroitic_Cursive Meroitic_Hieroglyphs Miao Modi Mongolian Mro Multani Myanmar Nabataean
Nag_Mundari Nandinagari New_Tai_Lue Newa Nko Nushu Nyiakeng_Puachue_Hmong Ogham Ol_Chiki Old_Hungarian Old_Italic
Old_North_Arabian Old_Permic Old_Persian Old_Sogdian Old_South_Arabian Old_Turkic Old_Uyghur Oriya Osage Osmanya
Pahawh_Hmong Palmyrene Pau_Cin_Hau Phags_Pa Phoenician Psalter_Pahlavi Rejang Runic Samaritan Saurashtra Sharada
Shavian Siddham SignWriting Sinhala Sogdian Sora_Sompeng Soyombo Sundanese Syloti_Nagri Syriac Tagalog Tagbanwa
Tai_Le Tai_Tham Tai_Viet Takri Tamil Tangsa Tangut Telugu Thaana Thai Tibetan Tifinagh Tirhuta Toto Ugaritic Vai
Vithkuqi Wancho Warang_Citi Yezidi Yi Zanabazar_Square
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Options:
    """How a SentencePiece vocabulary is trained.

    vocab_size: all pieces together. normalization: "identity" (nothing is lost), or "nfkc", "nmt_nfkc", "nfkc_cf",
    "nmt_nfkc_cf". dummy_prefix, remove_extra_spaces: see `Spaces`. byte_fallback: 256 byte pieces for what no piece
    covers. character_coverage: the share of the corpus's characters whose kind becomes a piece. longest: characters of
    a piece. control: pieces such as <s>; user_defined: texts that are always one piece. `<unk>` is always there, id 0.
    seeds: how many pieces Unigram starts with; the defaults of the others suit language models: decode(encode(text)) is
    text. SentencePiece's own defaults are nmt_nfkc, True, True, False.
    """

    vocab_size: int
    normalization: str = "identity"
    dummy_prefix: bool = False
    remove_extra_spaces: bool = False
    byte_fallback: bool = True
    character_coverage: float = 0.9995
    longest: int = 16
    control: tuple[str, ...] = ("<s>", "</s>")
    user_defined: tuple[str, ...] = ()
    seeds: int = 1_000_000

    def check(self) -> None:
        """Raise TokenizerError for options that make no sense."""
        if self.normalization not in ("identity", *nfkc_rules.NAMES):
            known = ", ".join(("identity", *nfkc_rules.NAMES))
            raise TokenizerError(f"unknown normalization {self.normalization!r}: choose one of {known}")
        if not 0.98 <= self.character_coverage <= 1:
            raise TokenizerError(f"wanted a character_coverage from 0.98 to 1, got {self.character_coverage}")
        named = ("<unk>", *self.control, *self.user_defined)
        if len(set(named)) < len(named) or not all(named):
            raise TokenizerError(f"wanted special tokens that differ, are not empty and not <unk>, got {named[1:]}")
        least = len(named) + 256 * self.byte_fallback + 1
        if not isinstance(self.vocab_size, int) or not least <= self.vocab_size <= 2**31:
            raise TokenizerError(
                f"wanted a vocab_size of at least {least} (<unk>, {len(named) - 1} special and user-defined tokens, "
                f"{256 * self.byte_fallback} bytes and a piece), got {self.vocab_size!r}"
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The normalisation."""
        spaces = Spaces(self.dummy_prefix, self.remove_extra_spaces)
        rules = self.normalization != "identity"
        return (Charsmap(nfkc_rules.compiled(self.normalization)), spaces) if rules else (spaces,)

    def first_pieces(self) -> list[tuple[str, int]]:
        """The pieces that are not learned, with their kinds; their ids are 0, 1, 2, ..."""
        named = [("<unk>", Kind.UNKNOWN)]
        named += [(text, Kind.CONTROL) for text in self.control]
        named += [(text, Kind.USER_DEFINED) for text in self.user_defined]
        return [*named, *((f"<0x{byte:02X}>", Kind.BYTE) for byte in range(256 * self.byte_fallback))]


@dataclass(frozen=True)
class Counted:
    """A corpus, counted. words: parts of words and how often each stands there, the most frequent first; characters:
    those that must be pieces, in the same order."""

    words: dict[str, int]
    characters: dict[str, int]


class Words(NamedTuple):
    """How many different words were counted, and the bytes that learning from them will need, about."""

    distinct: int
    memory: int


def count(texts: Iterable[str], options: Options) -> Counted:
    """Normalise and count a corpus. Errors: TokenizerError if it is empty, or has too many characters;
    UnicodeEncodeError for a lone surrogate."""
    named = sorted((text for text, _ in options.first_pieces()), key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, named)))
    found: Counter[str] = Counter()
    steps, limit = options.steps, counting._memory_limit()
    since_check = 0  # characters
    for text in texts:
        text.encode()  # UnicodeEncodeError for a lone surrogate
        for line in text.split("\n"):
            if line := line.rstrip("\r"):
                normal = normalize(line, steps)
                parts = special.split(normal) if special.search(normal) else [normal]
                for part in parts:
                    found.update(words(part))
                found[""] += len(parts) - 1
        since_check += len(text)
        if since_check >= 1 << 20:
            since_check = 0
            counting._check_memory(Words(len(found), 500 * len(found) + 300 * sum(map(len, found))), limit)
    return _covered(found, options)


def _covered(found: Counter[str], options: Options) -> Counted:
    """Find the characters that must be pieces, and cut the words at all others. As in SentencePiece a zero byte does
    not count, and each text that stands apart (special, user-defined; here "") is a character that is covered."""
    characters: Counter[str] = Counter()
    for word, number in found.items():
        for character in word or [""]:
            characters[character] += number
    total = characters.total() - characters["\0"]
    if total == characters[""]:
        raise TokenizerError("wanted a corpus with text, got an empty one")
    kept: dict[str, int] = {}
    covered = 0
    for character, number in _most_frequent(characters):
        if _float32(covered / total) >= _float32(options.character_coverage):
            break
        covered += number * (character != "\0")
        if character not in ("", "\0"):
            kept[character] = number
    room = options.vocab_size - len(options.first_pieces())
    if len(kept) > room:
        raise TokenizerError(
            f"the corpus has {len(kept)} characters that should be pieces, and a vocab_size of {options.vocab_size} "
            f"leaves {room}; wanted a larger vocab_size or a smaller character_coverage"
        )
    rare = "".join(character for character in characters if character not in kept)
    parts: Counter[str] = Counter()
    cut = re.compile(f"[{re.escape(rare)}]+") if rare else None
    for word, number in found.items():
        for part in cut.split(word) if cut else (word,):
            if part:
                parts[part] += number
    return Counted(dict(_most_frequent(parts)), kept)


def _most_frequent(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first; of equally frequent ones the one that comes first in Unicode."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _float32(value: float) -> float:
    """SentencePiece compares shares in float32."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


@cache
def script(character: str) -> str:
    """The script of a character; Hiragana and Katakana count as Han, as they are written mixed."""
    if character == "\u30fc":
        return "Han"
    for name in ("Latin", "Common", *_SCRIPTS):
        if regex.match(rf"\p{{Script={name}}}", character):
            return "Han" if name in ("Hiragana", "Katakana") else name
    return "Common"


def may_be_piece(text: str, longest: int) -> bool:
    """Whether a text may become a piece: not too long, "▁" only at its start, and characters of one script (a mark that
    fits to every script takes that of the character before it)."""
    if len(text) > longest or SPACE in text[1:] or "\0" in text:
        return False
    scripts = [script(character) for character in text.removeprefix(SPACE)]
    before = ""
    for name in scripts:
        name = before if name == "Inherited" else name
        if before and name and name != before:
            return False
        before = name
    return True


def model(
    algorithm: Literal["sentencepiece-bpe", "unigram"], learned: list[tuple[str, float]], options: Options
) -> SentencePieceModel:
    """The model of learned pieces and their scores, behind the pieces that are not learned."""
    first = options.first_pieces()
    special = {text: id for id, (text, kind) in enumerate(first) if kind == Kind.CONTROL}
    kinds = (*(kind for _, kind in first), *(Kind.NORMAL for _ in learned))
    scores = [0.0] * len(first) + [score for _, score in learned]
    is_unigram = algorithm == "unigram"
    return SentencePieceModel(
        algorithm=algorithm,
        pieces=(*(text for text, _ in first), *(text for text, _ in learned)),
        scores=tuple(map(_float32, byte_scores(scores, kinds) if is_unigram else scores)),
        kinds=kinds,
        byte_fallback=options.byte_fallback,
        double=is_unigram,
        words=is_unigram and not any(SPACE in text[1:].replace(" ", SPACE) for text in options.user_defined),
        steps=options.steps,
        drop_space="all" if options.remove_extra_spaces else "once" if options.dummy_prefix else "never",
        special_tokens=special,
        prefix=(special["<s>"],) if "<s>" in special else (),
    )
