"""The figures to beat: bits per character of character n-gram models on the last tenth of a text.

Two ways to give unseen n-grams a probability, after a context c that was seen count(c) times:
plain          (count(c, x) + 0.1) / (count(c) + 0.1 · alphabet), nothing else;
Witten-Bell    (count(c, x) + kinds(c) · p(x after c without its first character)) / (count(c) + kinds(c)), down to
               uniform over the alphabet, where kinds(c) is how many different characters followed c (Witten and
               Bell 1991).
They are what counting alone can do with the same nine tenths of the text.

    python packages/tinylm-train/benchmarks/ngram.py [FILE] [--quick]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHAKESPEARE = Path(__file__).parents[3] / "data" / "raw" / "shakespeare" / "shakespeare.txt"
Numbers = npt.NDArray[np.int64]


def grams(codes: Numbers, order: int, alphabet: int) -> Numbers:
    """The n-gram that ends at each position, as one number; positions before order - 1 hold what there is."""
    out = np.zeros_like(codes)
    for back in range(order - 1, -1, -1):
        shifted = np.zeros_like(codes)
        shifted[back:] = codes[: len(codes) - back]
        out = out * alphabet + shifted
    return out


def look_up(keys: Numbers, counts: Numbers, wanted: Numbers) -> Numbers:
    """The count of each wanted key, 0 where it does not occur. `keys` is sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0)


def bits_per_character(text: str, orders: int, validation: float) -> Iterator[tuple[float, float]]:
    """Train on the first part of `text`, judge on the rest: -log2 p, averaged over the rest's characters.

    Yields (plain, Witten-Bell) for n = 1 up to `orders`.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    symbols, codes = np.unique(points, return_inverse=True)
    cut, alphabet = int(len(codes) * (1 - validation)), len(symbols)
    if alphabet**orders >= 1 << 63:
        raise SystemExit(f"error: wanted n-grams that fit 63 bits, got {alphabet} characters in order {orders}")
    codes = codes.astype(np.int64)
    probability = np.full(len(codes) - cut, 1 / alphabet)
    for n in range(1, orders + 1):
        all_grams = grams(codes, n, alphabet)
        keys, counts = np.unique(all_grams[:cut], return_counts=True)
        contexts, first = np.unique(keys // alphabet, return_index=True)
        totals = np.add.reduceat(counts, first)
        kinds = np.diff(np.append(first, len(keys)))
        wanted = all_grams[cut:]
        count = look_up(keys, counts, wanted)
        total = look_up(contexts, totals, wanted // alphabet)
        kind = look_up(contexts, kinds, wanted // alphabet)
        mixed = (count + kind * probability) / np.maximum(total + kind, 1)
        probability = np.where(total > 0, mixed, probability)
        plain = (count + 0.1) / (total + 0.1 * alphabet)
        yield float(-np.log2(plain).mean()), float(-np.log2(probability).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=SHAKESPEARE, help="default: the quickstart's Shakespeare")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the first 200,000 characters only")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the text's end to judge on")
    options = parser.parse_args()
    try:
        text = options.file.read_text(encoding="utf-8")[: 200_000 if options.quick else None]
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"error: wanted UTF-8 text in {options.file}, got {error}") from None
    for order, (plain, mixed) in enumerate(bits_per_character(text, options.order, options.validation), 1):
        print(f"{order}-gram: {plain:.3f} bits per character plain, {mixed:.3f} with Witten-Bell smoothing")


if __name__ == "__main__":
    main()
