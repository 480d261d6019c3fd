"""The explorer's data: which models there are, a text's tokens, its layers, and the next token's distribution."""

import base64
import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tinylm.inference import InferenceError, SamplingParams
from tinylm.inference.explorer import choice, layers, tokens
from tinylm.inference.explorer.library import Library
from tinylm.inference.explorer.reading import LIMIT, Readings, forward, read, visible
from tinylm.inference.sampling import sample

TEXT = "The cook says: naïve 你好 🙂.\nWho sings?"


@pytest.fixture(scope="module")
def run(make_checkpoint, tmp_path_factory):
    """A training run's directory: two saved steps, the newest model, and a step that was damaged."""
    folder = tmp_path_factory.mktemp("run") / "shakespeare"
    shutil.copytree(make_checkpoint(depth=2, seed=2), folder)
    for step, seed in ((20, 1), (100, 2)):
        shutil.copytree(make_checkpoint(depth=2, seed=seed), folder / "steps" / f"{step:08}")
    damaged = shutil.copytree(folder / "steps" / "00000020", folder / "steps" / "00000060")
    (damaged / "model.safetensors").write_bytes(b"half")
    return folder


@pytest.fixture(scope="module")
def readings(run):
    return Readings(Library([run]))


def test_the_points_are_the_steps_in_order_and_the_newest_model(run):
    library = Library([run])
    assert [(point.model, point.step) for point in library.points] == [(0, 20), (0, 60), (0, 100), (0, None)]
    assert {point.name for point in library.points} == {"shakespeare"}


def test_steps_given_by_themselves_stand_together_as_their_run(run, make_checkpoint):
    """In any order, beside another model, once each, and with the metrics of their run."""
    (run / "run").mkdir(exist_ok=True)
    (run / "run" / "run.json").write_text("{}")
    try:
        other = make_checkpoint()
        library = Library([run / "steps" / "00000100", other, run / "steps" / "00000020", run / "steps" / "00000020"])
        assert [(point.model, point.step) for point in library.points] == [(0, 20), (0, 100), (1, None)]
        assert [point.name for point in library.points] == ["shakespeare", "shakespeare", other.name]
        assert [point.run for point in library.points] == [run / "run", run / "run", None]
        both = Library([run, run / "steps" / "00000020"])
        assert [(point.model, point.step) for point in both.points] == [(0, 20), (0, 60), (0, 100), (0, None)]
    finally:
        shutil.rmtree(run / "run")


def test_a_damaged_step_says_so_and_the_others_open(run):
    library = Library([run])
    with pytest.raises(ValueError, match=r"00000060.*safetensors"):
        library.open(1)
    assert library.open(0).model.config.depth == 2
    with pytest.raises(InferenceError, match="no model number 9"):
        library.open(9)


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_path_that_is_no_checkpoint_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InferenceError, match="config"):
        Library([tmp_path / name])


def test_old_models_make_room_for_new_ones(run, monkeypatch):
    monkeypatch.setattr("tinylm.inference.explorer.library.KEPT_BYTES", 1)
    library = Library([run])
    first = library.open(0)
    assert library.open(0) is first
    library.open(2)
    assert library.open(0) is not first


def test_a_run_that_goes_on_is_looked_at_anew(make_checkpoint, tmp_path):
    """New steps are found, dropped ones are gone, a replaced newest model is read again; numbers keep their meaning."""
    folder = tmp_path / "poems"
    shutil.copytree(make_checkpoint(depth=1, seed=1), folder)
    for step, seed in ((20, 1), (40, 2)):
        shutil.copytree(make_checkpoint(depth=1, seed=seed), folder / "steps" / f"{step:08}")
    readings = Readings(library := Library([make_checkpoint(depth=1, seed=9), folder]))
    before, forty = readings.see(3, "The cook").taps["logits"], library.points[2]
    shutil.rmtree(folder / "steps" / "00000020")
    shutil.copytree(newer := make_checkpoint(depth=1, seed=3), folder / "steps" / "00000060")
    shutil.copy(newer / "model.safetensors", folder / "next")
    (folder / "next").rename(folder / "model.safetensors")
    assert readings.see(3, "The cook").taps["logits"].equal(before)  # until somebody looks again
    library.look()
    assert [(library.points[i].model, library.points[i].step) for i in library.listed] == [
        *((0, None), (1, 40), (1, 60), (1, None)),
    ]
    assert library.points[2] == forty
    assert library.newest(1) == 3
    now, sixty = (readings.see(number, "The cook").taps["logits"] for number in (3, library.listed[2]))
    assert now.equal(sixty)
    assert not now.equal(before)


def test_tokens_stand_where_they_say(readings):
    found = readings.read(0, TEXT)
    assert (found.text, found.cut, found.note) == (TEXT, None, None)
    tokenizer = readings.library.open(0).tokenizer
    assert found.ids == tokenizer.encode(TEXT)
    assert b"".join(bytes.fromhex(token.hex) for token in found.tokens) == TEXT.encode()
    assert all(a.start <= b.start for a, b in pairwise(found.tokens))


@pytest.mark.parametrize(("text", "start"), [("word " * 500, 45), ("a" * 100_000, 0)])
def test_a_long_text_is_cut_and_says_so(readings, text, start):
    found = readings.read(0, text)
    assert len(found.tokens) <= min(LIMIT, 63)
    assert text.startswith(found.text)
    assert found.cut > 0
    assert str(found.cut) in found.note


def test_an_empty_text_begins_at_a_special_token(readings):
    found = readings.read(0, "")
    assert [token.text for token in found.tokens] == ["<|endoftext|>"]
    assert found.tokens[0].start is None
    assert "empty" in found.note


def test_what_cannot_be_seen_is_escaped():
    assert visible("a\x00\u202e\n".encode()) == "a\\x00\\u202e\\n"
    assert visible("é".encode()[:1]) == "\\xc3"


def test_a_text_that_is_not_unicode_is_refused_in_words(readings):
    with pytest.raises(ValueError, match="surrogate"):
        readings.read(0, "\ud800")


def test_the_merges_in_their_order_end_at_the_tokens(readings):
    answer = tokens.tokenize(readings.library.open(0), TEXT)
    assert answer.merges
    borders = set(range(len(TEXT.encode()) + 1))
    for step in answer.steps:
        assert {step.start, step.middle, step.end} <= borders
        borders.remove(step.middle)
    assert sorted(borders) == [0, *(end for _, end in answer.spans)]
    assert {end for _, end in answer.pieces} <= borders
    assert "".join(c.text for c in answer.characters) == visible(TEXT.encode())
    assert [byte for c in answer.characters for byte in c.bytes] == [f"{byte:02x}" for byte in TEXT.encode()]


def test_layers_are_the_models_own_numbers(readings):
    seen = readings.see(0, TEXT)
    answer, model = layers.layers(seen), seen.checkpoint.model
    taps = {}
    with torch.inference_mode():
        logits = model(torch.tensor([seen.read.ids]), taps=taps)
    assert len(answer.layers) == model.config.depth
    for i, layer in enumerate(answer.layers):
        assert layer.residual == pytest.approx(taps[f"blocks.{i}.output"][0].norm(dim=-1).tolist())
        assert layer.mlp == pytest.approx(taps[f"blocks.{i}.mlp"][0].norm(dim=-1).tolist())
        assert len(layer.heads) == model.config.heads
        for head, picture in zip(taps[f"blocks.{i}.attention.pattern"][0], layer.heads, strict=True):
            drawn = torch.frombuffer(bytearray(base64.b64decode(picture.data)), dtype=torch.uint8).view(head.shape)
            assert torch.allclose(drawn / 255, head, atol=1 / 255)
    stages = layers.lens(seen)
    assert len(stages) == model.config.depth + 1
    p = logits[0].softmax(dim=-1)
    for t, cell in enumerate(stages[-1]):
        assert cell.guesses[0].p == pytest.approx(float(p[t].max()), rel=1e-4)
        assert cell.guesses[0].id == int(p[t].argmax())
    assert stages[-1][0].truth == pytest.approx(float(p[0, seen.read.ids[1]]), rel=1e-4)
    assert stages[-1][-1].truth is None


KNOBS = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.5, "top_k": 5},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_the_choice_is_what_the_sampler_draws(readings, knobs):
    seen, params = readings.see(0, TEXT), SamplingParams(**knobs)

    class Fixed:
        def random(self):
            return uniform

    for uniform in (0.0, 0.3, 0.77, 0.9999):
        answer = choice.choose(seen, -1, params, uniform)
        wanted = sample(seen.taps["logits"][0, -1].float(), params, seen.read.ids, [], Fixed())
        assert answer.chosen == wanted
    kept = [c for c in answer.candidates if c.fate == "kept"]
    assert all(c.drawn > 0 for c in kept)
    assert all(c.drawn == 0 and c.why for c in answer.candidates if c.fate != "kept")
    if answer.kept < choice.SHOWN:
        assert len(kept) == answer.kept
        assert sum(c.drawn for c in kept) == pytest.approx(1, abs=1e-5)
    assert sum(answer.lost.values()) == pytest.approx(
        1 - sum(c.tempered for c in kept) if answer.kept < choice.SHOWN else sum(answer.lost.values()), abs=1e-4
    )


@pytest.mark.parametrize(
    ("knobs", "fate", "why"),
    [
        ({"temperature": 0.0}, "temperature", "the likeliest alone"),
        ({"top_k": 3}, "top-k", "rank 40 is behind the first 3"),
        ({"top_p": 0.3}, "top-p", "≥ 0.3"),
        ({"min_p": 0.9}, "min-p", "< 0.9 ×"),
    ],
)
def test_why_a_candidate_fell(readings, knobs, fate, why):
    last = choice.choose(readings.see(0, TEXT), -1, SamplingParams(**knobs), 0.5).candidates[-1]
    assert last.fate == fate
    assert why in last.why


def test_a_place_that_is_not_there_is_refused(readings):
    with pytest.raises(InferenceError, match="position: wanted 0 to"):
        choice.choose(readings.see(0, "The"), 50, SamplingParams(), 0.5)


def test_weights_that_are_damaged_are_told(readings):
    checkpoint = readings.library.open(0)
    weight = checkpoint.model.final_norm.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(InferenceError, match="not numbers"):
            forward(checkpoint, [1, 2])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_sentencepiece_steps_are_listed_not_merged(make_checkpoint, tmp_path):
    """A Unigram tokenizer has no merges: its candidates are listed in words."""
    from tinylm.tokenizer import Tokenizer

    folder = Path(shutil.copytree(make_checkpoint(), tmp_path / "unigram"))
    Tokenizer.train([TEXT * 30], vocab_size=290, algorithm="unigram").save(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["tinylm"]["tokenizer_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint = Library([folder]).open(0)
    answer = tokens.tokenize(checkpoint, "The cook")
    assert not answer.merges
    assert all(step.says for step in answer.steps)
    assert read(checkpoint, "The cook").ids == checkpoint.tokenizer.encode("The cook", add_special_tokens=True)
