"""The kernels where Python or the system gets in the way: the garbage collector, no more threads, too large a corpus.

What else bounds training: test_tokenizer_training_limits.py, test_tokenizer_sentencepiece_limits.py.
"""

import gc

import pytest

from tinylm.tokenizer import Tokenizer, kernels
from tinylm.tokenizer.ladder import made_text

compiled = pytest.mark.skipif(not kernels.available(), reason="is about the compiled kernel")


@compiled
@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "sentencepiece-bpe", "unigram"])
def test_a_destructor_may_encode_while_a_list_of_ids_is_made(algorithm: str) -> None:
    """Making a list can start the garbage collector; what it frees may encode with the same tokenizer."""
    tokenizer = Tokenizer.train([made_text(20_000)], vocab_size=300, algorithm=algorithm)
    ended = []

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ended.append(tokenizer.encode("fox " * 200))

    wanted = tokenizer.encode("the quick brown fox")
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(10)
    try:
        got = []
        for _ in range(500):
            Cycle()
            got += [tokenizer.encode("the quick brown fox") for _ in range(20)]
    finally:
        gc.set_threshold(*before)
    assert ended
    assert all(ids == wanted for ids in got)
