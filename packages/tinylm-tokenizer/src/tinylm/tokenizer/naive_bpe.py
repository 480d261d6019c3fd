"""Where you are: the lowest rung of the tokenizer, byte pair encoding as in Sennrich, Haddow and Birch 2015.

"Neural Machine Translation of Rare Words with Subword Units", https://arxiv.org/abs/1508.07909, algorithm 1: write each
word as its characters and an end-of-word marker, then again and again replace the most frequent pair of neighbours by
one new symbol. A word is a string of symbols with spaces between, as in the paper's own listing: `"l o w </w>"`.

What it does not do: bytes (an unknown character is `[UNK]`), regular expressions, speed (every merge counts every pair
of every word anew). Punctuation is split off without mercy: `don't` is `don`, `'`, `t`, and `U.S.A.` is six pieces.
Runs of spaces come back as one, spaces at either end as none; everything else comes back as it was.

Next: `byte_bpe.py`, where nothing is unknown. Try `python -m tinylm.tokenizer.naive_bpe FILE`.
"""

import argparse
import functools
import itertools
import json
import os
import string
import sys
from collections import Counter
from pathlib import Path

from tinylm.tokenizer._atomic import write_atomic
from tinylm.tokenizer._errors import TokenizerError

Pair = tuple[str, str]

END_OF_WORD = "</w>"  # a text that holds these four characters cannot forge it: `<` and `/` and `>` are isolated
SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[BOS]", "[EOS]")  # their places are their ids; a text cannot forge them either
UNKNOWN = SPECIAL_TOKENS.index("[UNK]")


def char_spaced_words(text: str) -> list[str]:
    """Pre-tokenisation: `"a bc, d"` -> `["a </w>", "b c", ", </w>", "d </w>"]`.

    Only the space character ends a word. Inserting spaces around punctuation makes each mark a word of its own, but the
    marker stands only where the text itself had a space or ended: that is how `decode` knows which spaces to put back.
    Other whitespace is isolated likewise, and even its marker is a word apart, so that no pair, hence no merge, has it.
    """
    isolated = string.punctuation + "".join(c for c in sorted(set(text)) if c.isspace() and c != " ")
    words = []
    for written in filter(None, text.split(" ")):
        spaced = functools.reduce(lambda t, mark: t.replace(mark, f" {mark} "), isolated, written)
        words += [" ".join(piece) for piece in spaced.split(" ") if piece]
        if words[-1].isspace():
            words.append(END_OF_WORD)
        else:
            words[-1] += f" {END_OF_WORD}"
    return words


def char_spaced_word_freq(text: str) -> dict[str, int]:
    """Count the words of `text`, each written as its characters: `"low low"` -> `{"l o w </w>": 2}`."""
    return dict(Counter(char_spaced_words(text)))


def bigram_pair_freq(word_freq: dict[str, int]) -> dict[Pair, int]:
    """Count each pair of neighbouring symbols, weighted by how often its word occurs (`get_stats` in the paper)."""
    pair_freq: Counter[Pair] = Counter()
    for word, freq in word_freq.items():
        symbols = word.split(" ")
        for pair in itertools.pairwise(symbols):
            pair_freq[pair] += freq
    return dict(pair_freq)


def _merge_symbols(pair: Pair, symbols: list[str]) -> list[str]:
    """Join `pair` wherever it stands, from left to right: `("a", "a")` in `a a a` gives `aa a`."""
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        width = 2 if tuple(symbols[i : i + 2]) == pair else 1
        merged.append("".join(symbols[i : i + width]))
        i += width
    return merged


def merge(pair: Pair, word_freq: dict[str, int]) -> dict[str, int]:
    """Replace `pair` by one symbol in every word (`merge_vocab` in the paper); `a b` never matches inside `aa b`."""
    merged: Counter[str] = Counter()
    for word, freq in word_freq.items():
        merged[" ".join(_merge_symbols(pair, word.split(" ")))] += freq
    return dict(merged)


def learn_merges(word_freq: dict[str, int], number_of_merges: int) -> list[Pair]:
    """The loop of algorithm 1. Of equally frequent pairs the first met wins; it stops early when no pair is left."""
    if number_of_merges < 0:
        raise TokenizerError(f"wanted 0 or more merges, got {number_of_merges}")
    merges = []
    for _ in range(number_of_merges):
        pair_freq = bigram_pair_freq(word_freq)
        if not pair_freq:
            break
        best = max(pair_freq, key=pair_freq.__getitem__)
        word_freq = merge(best, word_freq)
        merges.append(best)
    return merges


def build_vocab(word_freq: dict[str, int], merges: list[Pair]) -> dict[str, int]:
    """Token -> id: the special tokens, the characters of the words (sorted), the marker, then what each merge made.

    `word_freq` may be from before or after merging: its characters are the same.
    """
    characters = {c for word in word_freq for c in word.removesuffix(END_OF_WORD).replace(" ", "")}
    tokens = [*SPECIAL_TOKENS, *sorted(characters), END_OF_WORD, *(left + right for left, right in merges)]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}  # two merges may make the same token


def encode(text: str, merges: list[Pair], vocab: dict[str, int]) -> list[int]:
    """Text -> ids: replay every merge, in the order learned, on each distinct word; what has no id becomes `[UNK]`."""
    words = char_spaced_words(text)
    symbols = {word: word.split(" ") for word in words}
    for pair in merges:
        symbols = {word: _merge_symbols(pair, parts) for word, parts in symbols.items()}
    return [vocab.get(symbol, UNKNOWN) for word in words for symbol in symbols[word]]


def decode(ids: list[int], vocab: dict[str, int]) -> str:
    """Ids -> text: look each token up and turn its marker into a space; special tokens appear as their names.

    Raises TokenizerError for an id that `vocab` does not have.
    """
    tokens = {i: token for token, i in vocab.items()}
    if strangers := [i for i in ids if i not in tokens]:
        raise TokenizerError(f"wanted ids below {len(vocab)}, got {strangers[0]}; use the vocabulary that encoded them")
    # Token by token, not on the joined text: there a literal "</w>" (`<`, `/`, `w`, `>`) would look like the marker.
    return "".join(tokens[i].replace(END_OF_WORD, " ") for i in ids).removesuffix(" ")


def save_merge_rules(merges: list[Pair], path: str | os.PathLike[str]) -> None:
    """Write one pair a line, `left right`, in merge order (UTF-8), replacing what was there."""
    write_atomic(Path(path), "".join(f"{left} {right}\n" for left, right in merges).encode())


def save_vocab(vocab: dict[str, int], path: str | os.PathLike[str]) -> None:
    """Write token -> id as one flat JSON object (the layout of GPT-2's vocab.json), replacing what was there."""
    write_atomic(Path(path), (json.dumps(vocab, ensure_ascii=False, indent=0) + "\n").encode())


def load_merge_rules(path: str | os.PathLike[str]) -> list[Pair]:
    """Read what `save_merge_rules` wrote. Raises TokenizerError, or OSError for a file that cannot be read."""
    *lines, rest = _read_text(path).split("\n")
    if rest:
        raise TokenizerError(f"wanted a newline after the last pair in {path}, got {rest!r}; the file was cut off")
    merges = []
    for number, line in enumerate(lines, 1):
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(f"wanted `left right` in {path}, line {number}, got {line!r}; save the rules again")
        merges.append((left, right))
    return merges


def load_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Read what `save_vocab` wrote. Raises TokenizerError, or OSError for a file that cannot be read."""
    try:
        vocab = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as problem:
        raise TokenizerError(f"wanted JSON in {path}, got {problem}; save the vocabulary again") from None
    if not isinstance(vocab, dict) or list(vocab.values()) != list(range(len(vocab))):
        raise TokenizerError(f"wanted token -> id with ids 0, 1, 2, ... in {path}; save the vocabulary again")
    if tuple(vocab)[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
        raise TokenizerError(f"wanted {', '.join(SPECIAL_TOKENS)} as ids 0 to 3 in {path}; is it another tokenizer's?")
    return vocab


def _read_text(path: str | os.PathLike[str]) -> str:
    """The characters of a UTF-8 file, its line ends as they are."""
    data = Path(path).read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        got = f"byte {data[problem.start]:#04x} at {problem.start:,}"
        raise TokenizerError(f"wanted UTF-8 text in {path}, got {got}; name a text file") from None


def demonstrate(path: Path, number_of_merges: int = 20) -> str:
    """What `python -m tinylm.tokenizer.naive_bpe FILE` prints: merges learned from FILE, and its beginning encoded."""
    text = _read_text(path)
    if not text.strip():
        raise TokenizerError(f"wanted text in {path}, got nothing but whitespace; name a file with a few words in it")
    if "\0" in text:
        raise TokenizerError(f"wanted text in {path}, got a binary file (it has NUL bytes); name a text file")
    word_freq = char_spaced_word_freq(text)
    merges = learn_merges(word_freq, number_of_merges)
    vocab = build_vocab(word_freq, merges)
    lines = [
        f"{path.name!r}: {len(text):,} characters, {len(word_freq):,} distinct words; "
        f"{len(merges):,} merges learned, {len(vocab):,} tokens in the vocabulary",
        "",
        "merge      count  pair",
    ]
    for rank, (left, right) in enumerate(merges, 1):
        count = bigram_pair_freq(word_freq)[left, right]
        lines.append(f"{rank:5}  {count:9,}  {left!r} + {right!r} -> {left + right!r}")
        word_freq = merge((left, right), word_freq)

    sample = next(line for line in text.split("\n") if line.strip())[:60]
    ids = encode(sample, merges, vocab)
    tokens = list(vocab)
    lines += [
        "",
        f"text     {sample!r}",
        f"tokens   {' '.join(repr(tokens[i])[1:-1] for i in ids)}",
        f"ids      {ids}",
        f"decoded  {decode(ids, vocab)!r}",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the demonstration and return the exit code; bad input is one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m tinylm.tokenizer.naive_bpe", description="Naive BPE on a text.")
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="UTF-8 text; up to 60 characters of its first line are encoded"
    )
    path = parser.parse_args().file
    try:
        sys.stdout.buffer.write(demonstrate(path).encode())
        sys.stdout.flush()
    except OSError as problem:
        print(f"error: wanted a text file and room to print, got: {problem}", file=sys.stderr)
        return 1
    except TokenizerError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
