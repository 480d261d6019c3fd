"""Training of SentencePiece vocabularies in C++: the same pieces as `sentencepiece_bpe_training.py` and
`unigram_training.py`, whose `train` functions these replace.

The C++ stands in `src/kernels/` of the package's source: `sentencepiece_words.hpp` normalises and counts the words,
`sentencepiece_train.hpp` and `unigram_train.hpp` learn. Unigram's sums are added up in another order than in Python, so
scores may differ in their last digits; they do not depend on the number of threads. What may be a piece, and which
characters are too rare, is still decided in Python: `_trainers/sentencepiece_corpus.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from tinylm.tokenizer import kernels, sentencepiece_bpe_training, unigram_training
from tinylm.tokenizer._engines.sentencepiece_data import SPACE, Spaces
from tinylm.tokenizer._text.sentencepiece_words import ranked_merges
from tinylm.tokenizer._trainers import counting
from tinylm.tokenizer._trainers.sentencepiece_corpus import Counted, Options, Words, _covered, model, script
from tinylm.tokenizer.kernels.sentencepiece import fused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tinylm.tokenizer._engines.sentencepiece_data import SentencePieceModel

_STEP = 64  # pieces between two calls of `progress`: often enough for a progress bar and for Ctrl-C
_ANY = 1  # the class of characters that may stand beside those of any other


def train_bpe(
    texts: Iterable[str], options: Options, progress: Callable[[int, int], None] = lambda done, wanted: None
) -> SentencePieceModel:
    """See `sentencepiece_bpe_training.train`."""
    if not kernels.available():
        kernels._warn_once()
        return sentencepiece_bpe_training.train(texts, options, progress)
    options.check()
    counted = _count(texts, options)
    wanted = options.vocab_size - len(options.first_pieces()) - len(counted.characters)
    words, numbers = list(counted.words), list(counted.words.values())
    trainer = kernels._compiled().SentencePieceBpeTrainer(words, numbers, *_classes(counted), options.longest)
    pieces: list[str] = []
    while len(pieces) < wanted:
        step: list[str] = trainer.step(min(_STEP, wanted - len(pieces)))
        pieces += step
        progress(len(pieces), wanted)
        if not step:
            break
    pieces += counted.characters
    learned = model("sentencepiece-bpe", [(piece, -float(place)) for place, piece in enumerate(pieces)], options)
    return replace(learned, merges=ranked_merges(learned))


def train_unigram(
    texts: Iterable[str],
    options: Options,
    progress: Callable[[int, int], None] = lambda done, wanted: None,
    threads: int | None = None,
) -> SentencePieceModel:
    """See `unigram_training.train`. threads: None: as many as there are cores, 8 at most."""
    if not kernels.available():
        kernels._warn_once()
        return unigram_training.train(texts, options, progress)
    options.check()
    counted = _count(texts, options)
    room = options.vocab_size - len(options.first_pieces())
    words, numbers = list(counted.words), list(counted.words.values())
    with kernels._corpus_limits():
        trainer = kernels._compiled().UnigramTrainer(
            words, numbers, *_classes(counted), options.longest, threads or os.cpu_count() or 1
        )
        first = trainer.seed(options.seeds)
    surplus = int(options.vocab_size * unigram_training._SURPLUS)
    while True:
        for _ in range(unigram_training._ITERATIONS):
            trainer.improve()
        size = trainer.prune(surplus)
        progress(first - size, max(first - room, 1))
        if size <= surplus:
            break
    named = unigram_training._BYTE_NAMES if options.byte_fallback else ""
    characters = "".join(dict.fromkeys((*counted.characters, *named)))[:room]
    return model("unigram", trainer.choose(characters, room), options)


def _count(texts: Iterable[str], options: Options) -> Counted:
    """`_trainers/sentencepiece_corpus.py: count`, with the words counted in C++."""
    spaces, charsmap = fused(options.steps) or (Spaces(), b"")
    flags = (spaces.dummy_prefix, spaces.remove_extra, spaces.suffix, spaces.escape)
    counter = kernels._compiled().WordCounter(charsmap, flags, [text for text, _ in options.first_pieces()])
    limit = counting._memory_limit()
    for text in texts:
        counter.add(text)
        counting._check_memory(Words(counter.distinct, 400 * counter.distinct + 60 * counter.bytes), limit)
    characters = _covered(Counter(dict(counter.characters())), options).characters  # each as a word of its own
    return Counted(dict(counter.covered(list(characters))), characters)


def _classes(counted: Counted) -> tuple[str, list[int]]:
    """The characters, and for each a number: pieces hold characters of one number, and any of `_ANY`."""
    numbers = {"Inherited": _ANY}
    characters = "".join(counted.characters)
    names = ["Inherited" if character == SPACE else script(character) for character in characters]
    return characters, [numbers.setdefault(name, len(numbers) + 1) for name in names]
