"""The synthetic corpus: its entropy is what its formula says, and a model trained here comes down to it, not below."""

from __future__ import annotations

import itertools
import math

import pytest

from tinylm.tokenizer import Tokenizer
from tinylm.training import Trainer, TrainingError, prepare, synthetic
from tinylm.training.synthetic import Grammar


def test_the_entropy_of_a_coin_is_known():
    flips = Grammar({"flip": [(0.5, "heads.\n"), (0.5, "tails.\n")]}, "flip")
    assert flips.entropy() == pytest.approx(math.log(2) / 7)
    lengths = Grammar({"run": [(0.75, "a<run>"), (0.25, "b")]}, "run")  # a geometric length of mean 4
    assert lengths.entropy() == pytest.approx((-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) * 4 / 4)
    certain = Grammar({"only": [(1.0, "the same")]}, "only")
    assert certain.entropy() == 0.0


def test_all_sentences_together_have_the_entropy_of_the_formula():
    """Every sentence of a grammar without recursion, one by one."""
    rules = {k: [(p, t) for p, t in v] for k, v in synthetic.RULES.items() if k in ("verb", "object")}
    rules["noun"] = [(0.6, "cat"), (0.4, "dog")]
    rules["sentence"] = [(0.3, "the <noun> <verb>.\n"), (0.7, "no <verb> <object>!\n")]
    grammar = Grammar(rules)

    def expand(text: str) -> list[tuple[float, str]]:
        before, *rest = synthetic._parts(text)
        if not rest:
            return [(1.0, text)]
        behind = text[len(before) + len(rest[0]) + 2 :]
        return [
            (p * q * r, before + middle + end)
            for p, chosen in rules[rest[0]]
            for (q, middle), (r, end) in itertools.product(expand(chosen), expand(behind))
        ]

    every = expand("<sentence>")
    assert sum(p for p, _ in every) == pytest.approx(1)
    assert len({text for _, text in every}) == len(every)
    nats, characters = sum(-p * math.log(p) for p, _ in every), sum(p * len(text) for p, text in every)
    assert grammar.entropy() == pytest.approx(nats / characters, rel=1e-12)
    for p, text in every:
        assert grammar.nats(text) == pytest.approx(-math.log(p), rel=1e-9)


def test_a_long_text_pays_about_its_entropy_and_the_same_seed_is_the_same_text(tmp_path):
    entropy = synthetic.write(tmp_path / "a.txt", 200_000, seed=1)
    text = (tmp_path / "a.txt").read_text("utf-8")
    assert len(text) >= 200_000
    assert Grammar().nats(text) / len(text) == pytest.approx(entropy, rel=0.01)
    for seed, same in ((1, True), (2, False)):
        synthetic.write(tmp_path / "b.txt", 200_000, seed=seed)
        assert ((tmp_path / "b.txt").read_text("utf-8") == text) is same
        (tmp_path / "b.txt").unlink()
    with pytest.raises(TrainingError, match="at character"):
        Grammar().nats("the cat flies.\n")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"sentence": [(0.5, "a"), (0.4, "b")]}, "add up to 1"),
        ({"sentence": [(0.5, "ab"), (0.5, "ac")]}, "different characters"),
        ({"sentence": [(0.5, "a"), (0.5, "<sentence>")]}, "different characters"),
        ({"sentence": [(1.0, "a<other>")]}, "none for other"),
        ({"sentence": [(0.5, "a<sentence><sentence>"), (0.5, "b")]}, "sentences end"),
    ],
)
def test_grammars_that_have_no_known_entropy_are_refused(rules, message):
    with pytest.raises(TrainingError, match=message):
        Grammar(rules)


def test_the_command_says_the_floor_and_overwrites_nothing(run, tmp_path):
    file = tmp_path / "corpus.txt"
    code, out, _ = run("synthetic", file, "--characters", 5000, "--seed", 3)
    assert code == 0
    assert f"Entropy: {Grammar().entropy() / math.log(2):.4f} bits per character" in out
    assert file.read_text("utf-8") == (text := "".join(_until(Grammar().sentences(3), 5000)))
    code, _, err = run("synthetic", file)
    assert (code, err.count("\n")) == (1, 1)
    assert "stands there already" in err
    assert file.read_text("utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def _until(sentences, characters):
    written = 0
    while written < characters:
        yield (sentence := next(sentences))
        written += len(sentence)


def test_a_trained_model_comes_within_three_hundredths_of_a_bit_of_the_floor(tiny, tmp_path):
    """Prepared, trained and judged as any text is. The floor is what the validation text itself must cost."""
    synthetic.write(tmp_path / "corpus.txt", 100_000)
    text = (tmp_path / "corpus.txt").read_text("utf-8")
    Tokenizer.train([text], vocab_size=290, special_tokens=["<|endoftext|>"]).save(tmp_path / "tokenizer")
    held = "".join(itertools.islice(Grammar().sentences(seed=7), 400))
    (tmp_path / "held.txt").write_text(held, "utf-8", newline="")
    prepare([tmp_path / "corpus.txt"], tmp_path / "tokenizer", tmp_path / "data", tmp_path / "held.txt")
    config = tiny(
        tmp_path / "m", data=str(tmp_path / "data"), context=64, batch_size=8, steps=250, validate_every=250,
        checkpoint_every=250,
    )  # fmt: skip
    result = Trainer(config).train()
    floor = Grammar().nats(held) / len(held) / math.log(2)
    print(floor, result.validation_bits_per_character)
    assert floor < result.validation_bits_per_character < floor + 0.03
