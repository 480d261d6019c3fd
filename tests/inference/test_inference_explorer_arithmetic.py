"""A number of the explorer: the vectors make it, and the named line is in the file and computes it."""

import ast
import sys
from pathlib import Path

import pytest
import torch

import tinylm.model.transformer
from tinylm.inference import InferenceError
from tinylm.inference.explorer import arithmetic
from tinylm.inference.explorer.library import Library
from tinylm.inference.explorer.reading import Readings
from tinylm.model.tracing import trace_forward

TEXT = "The cook says: good"
SHAPES = {
    "qwen3": {"heads": 2, "kv_heads": 1},
    "gpt2": {"heads": 2, "kv_heads": 2},
    "llama": {"heads": 4, "kv_heads": 2},
}
NAMES = [
    "embed/2/5",
    "blocks.1.attention_norm/3/7",
    "blocks.1.attention.scores/1/4/2",
    "blocks.0.attention.pattern/1/4/2",
    "blocks.1.attention.heads/1/3/9",
    "blocks.0.attention.output/3/11",
    "blocks.1.middle/2/3",
    "blocks.1.mlp_norm/4/1",
    "blocks.0.mlp.inner/3/20",
    "blocks.1.mlp/3/8",
    "blocks.0.output/4/6",
    "final_norm/4/2",
    "logits/4/30",
]


@pytest.fixture(scope="module", params=SHAPES)
def looked(request, make_checkpoint):
    folder = make_checkpoint(request.param, depth=2, **SHAPES[request.param])
    checkpoint, read, trace = Readings(Library([folder])).trace(0, TEXT)
    return checkpoint.model, read.ids, trace


def evaluated(source, run):
    """What the right side of a statement gives each time that it is about to be carried out."""
    found = []
    (statement,) = ast.parse(source.text).body if not source.text.startswith("return ") else (None,)
    text = source.text.removeprefix("return ") if statement is None else ast.unparse(statement.value)
    expression = compile(f"({text})", "line", "eval")

    def watch(frame, event, _):
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == (source.file, source.line):
            sys.settrace(None)
            local = dict(frame.f_locals)
            me = local.get("self")
            known = {**frame.f_globals, "super": lambda: super(type(me), me)}  # which evaluated text lacks
            found.append(eval(expression, known, local))  # noqa: S307  # a line of ours
            sys.settrace(watch)
        return watch

    sys.settrace(watch)
    try:
        run()
    finally:
        sys.settrace(None)
    return [part for value in found for part in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("path", NAMES)
def test_the_vectors_make_the_number_and_the_line_computes_it(looked, path):
    model, ids, trace = looked
    number = arithmetic.number(model, ids, trace, path)
    assert number.again == pytest.approx(number.value, rel=1e-4, abs=1e-5)
    key = arithmetic._key(path.split("/")[0], model)
    source = trace[key].source
    file = Path(source.file)
    assert file.parent == Path(tinylm.model.transformer.__file__).parent
    assert (file.name, source.line) == (number.file, number.line)
    assert file.read_text(encoding="utf-8").splitlines()[number.line - 1].strip() == number.text.splitlines()[0]
    with torch.no_grad():
        values = evaluated(source, lambda: model(torch.tensor([ids]), taps={}))
    index = tuple(map(int, path.split("/")[1:]))
    mine = [value for value in values if isinstance(value, torch.Tensor) and value.shape == trace[key].value.shape]
    assert any(float(value[0][index]) == number.value for value in mine)


@pytest.mark.parametrize("path", NAMES)
def test_the_vectors_numbers_lead_on(looked, path):
    model, ids, trace = looked
    for vector in arithmetic.number(model, ids, trace, path).vectors:
        if vector.path is not None:
            size = model.config.head_dim
            on = vector.path.replace("{h}", "0").replace("{}", str(min(1, len(vector.numbers) - 1)))
            at = min(1, len(vector.numbers) - 1)
            assert at < size or "{h}" not in vector.path
            assert arithmetic.number(model, ids, trace, on).value == vector.numbers[at]


def test_the_product_itself(looked):
    """What is multiplied and added up, by hand."""
    model, ids, trace = looked
    number = arithmetic.number(model, ids, trace, "logits/4/30")
    x, w = (vector.numbers for vector in number.vectors)
    assert sum(a * b for a, b in zip(x, w, strict=True)) == pytest.approx(number.value, rel=1e-4, abs=1e-5)
    assert number.text == "logits = F.linear(hidden, self.head_weight)"


@pytest.mark.parametrize(
    "path", ["", "nothing/1", "embed", "embed/99/0", "embed/a/b", "blocks.9.mlp/0/0", "blocks.0.mlp/0"]
)
def test_a_name_that_there_is_not_is_refused(looked, path):
    with pytest.raises(InferenceError):
        arithmetic.number(*looked, path)


def test_watching_changes_nothing_and_leaves_the_tracer_as_it_was(looked):
    model, ids, _ = looked

    def mine(*_):
        return None

    before = sys.gettrace()
    sys.settrace(mine)
    try:
        trace = trace_forward(model, torch.tensor([ids]))
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)
    with torch.no_grad():
        assert torch.equal(trace["forward.logits"].value, model(torch.tensor([ids]), taps={}))
