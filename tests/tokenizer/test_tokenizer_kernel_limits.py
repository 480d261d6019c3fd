"""The kernels where Python or the system gets in the way: the garbage collector, no more threads, too large a corpus.

What else bounds training: test_tokenizer_training_limits.py, test_tokenizer_sentencepiece_limits.py.
"""

import gc
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tinylm.tokenizer import Tokenizer, TokenizerError, kernels
from tinylm.tokenizer._trainers.sentencepiece_corpus import Options
from tinylm.tokenizer.kernels import sentencepiece_training, training
from tinylm.tokenizer.ladder import made_text

compiled = pytest.mark.skipif(not kernels.available(), reason="is about the compiled kernel")
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory as Linux does")

# limit(mb): the process may not have that many more megabytes of addresses than it has.
LIMIT = """
import os, resource, sys
from tinylm.tokenizer import Tokenizer, kernels
from tinylm.tokenizer.ladder import made_text
def limit(mb):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + int(mb * 2**20),) * 2)
"""
BATCH = """
tokenizer = Tokenizer.train([made_text(20_000)], vocab_size=300, algorithm=sys.argv[1])
wanted = tokenizer.encode("the quick brown fox")
limit(2500)
assert tokenizer.encode_batch(["the quick brown fox"] * 6400, threads=100) == [wanted] * 6400
"""
MERGES = """
pieces = {word: 1 for word in made_text(20_000).split()}
wanted = kernels.train_merges(pieces, 100)
limit(2500)
assert kernels.train_merges(pieces, 100, threads=8) == wanted
"""
UNIGRAM = """
words = sorted(set(made_text(200_000).split()))
characters = "".join(sorted(set("".join(words))))
def trainer():
    trainer = kernels._compiled().UnigramTrainer(
        words, [1] * len(words), characters, [1] * len(characters), 16, int(sys.argv[1])
    )
    trainer.seed(100_000)
    return trainer
def learn(trainer):
    trainer.improve()
    trainer.prune(100)
    return trainer.choose(characters, 100)
"""
FEW = """
wanted = learn(trainer())
limit(2500)
assert learn(trainer()) == wanted
"""
# Forks: each try begins with the same memory. MemoryError is a good end, a signal is not; by 127 glibc itself ends
# a process that has no memory for a thread's variables.
NO_MEMORY = """
ready = trainer()
ended = set()
for kb in range(0, 4000, 100):
    child = os.fork()
    if not child:
        code = 0
        try:
            limit(kb / 1024)
            learn(ready)
        except MemoryError:
            code = 3
        os._exit(code)
    ended.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
assert min(ended) == 0 and 3 in ended, ended
"""
# A beginning that has an id for every character says that the list will be 100 MB long; it becomes 20, there may be 60.
LIST = """
tokenizer = Tokenizer.train(["the quick brown fox " * 2000 + "0123456789"], vocab_size=300, algorithm=sys.argv[1])
text = "0123456789" * 14_000 + "the quick brown fox " * 600_000
wanted = tokenizer.encode_array(text).tolist()
limit(float(sys.argv[2]))
assert tokenizer.encode(text) == wanted
"""


def run(program: str, *arguments: str, stack: int) -> None:
    """Run a program whose threads have stacks of that many bytes."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (stack, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    command = [sys.executable, "-c", LIMIT + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 0, done.stderr


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


@compiled
@linux
@pytest.mark.parametrize(
    ("program", "argument"),
    [(BATCH, "bpe"), (BATCH, "sentencepiece-bpe"), (BATCH, "unigram"), (MERGES, ""), (UNIGRAM + FEW, "8")],
)
def test_where_no_more_threads_start_those_that_did_do_the_work(program: str, argument: str) -> None:
    """Each thread has a stack of a gigabyte, in a process that may have two and a half more."""
    run(program, argument, stack=2**30)


@compiled
@linux
@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
@pytest.mark.parametrize("megabytes", ["1000", "60"])
def test_a_list_for_which_there_is_no_more_memory_than_it_needs(algorithm: str, megabytes: str) -> None:
    run(LIST, algorithm, megabytes, stack=2**23)


@compiled
@linux
def test_a_thread_without_memory_ends_training_by_an_exception() -> None:
    run(UNIGRAM + NO_MEMORY, "4", stack=2**18)


@compiled
def test_a_corpus_too_large_for_the_kernel_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("the distinct pieces of the corpus have more than 4 GB")  # as C++ throws std::length_error

    real = kernels._compiled()
    changed = {"make_trainer": refuse, "UnigramTrainer": lambda *_: SimpleNamespace(seed=refuse)}
    fake = SimpleNamespace(WordCounter=real.WordCounter, **changed)
    counter = training.PieceCounter("gpt2")
    monkeypatch.setattr(counter, "_counter", SimpleNamespace(trainer=refuse))
    monkeypatch.setattr(kernels, "_compiled", lambda: fake)
    for learn in (
        lambda: counter.learn(10, lambda done: None, 1),
        lambda: training.train_merges({"a": 1}, 10),
        lambda: sentencepiece_training.train_unigram([made_text(20_000)], Options(400)),
    ):
        with pytest.raises(TokenizerError, match="more than 4 GB; train on a part"):
            learn()
