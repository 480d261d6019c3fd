"""A watched forward pass: the model's own numbers, under the names of its statements, which compute them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

import tinylm.model
from tinylm.model import Taps
from tinylm.model.tracing import trace_forward

HERE = Path(tinylm.model.__file__).parent
TRACED = {  # a tap's name behind the block: what the same value is called here
    "attention.pattern": "attention.attend_with_pattern.pattern",
    "attention.output": "attention.forward.out",
    "mlp": "mlp.forward.out",
    "output": "forward.out",
}


def carried_out(source, run):
    """What the right side of a statement gives, each time that it is about to be carried out."""
    found = []
    text = source.text.removeprefix("return ")
    if text == source.text:
        (statement,) = ast.parse(text).body
        text = ast.unparse(statement.value)
    expression = compile(f"({text})", "line", "eval")

    def watch(frame, event, _):
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == (source.file, source.line):
            me = frame.f_locals.get("self")
            known = {**frame.f_globals, "super": lambda: super(type(me), me)}  # which evaluated text lacks
            sys.settrace(None)
            found.append(eval(expression, known, dict(frame.f_locals)))  # noqa: S307  # a line of ours
            sys.settrace(watch)
        return watch

    sys.settrace(watch)
    try:
        run()
    finally:
        sys.settrace(None)
    return [part for value in found for part in (value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("preset", ["gpt2", "llama", "qwen3"])
def test_the_numbers_are_the_models_taps(preset, small, ids):
    model, tokens, taps = small(preset, depth=2), ids(1, 6), Taps()
    trace = trace_forward(model, tokens)
    with torch.no_grad():
        logits = model(tokens, taps=taps)
    assert torch.equal(trace["forward.logits"].value, logits)
    assert torch.equal(trace["_hidden.x#0"].value, taps["embed"])
    for layer in range(2):
        for tap, name in TRACED.items():
            computed = trace[f"blocks.{layer}.{name}"]
            assert torch.equal(computed.value, taps[f"blocks.{layer}.{tap}"]), tap
    assert all(computed.value.grad_fn is None for computed in trace.values())


@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_the_named_line_computes_the_value(preset, small, ids):
    """Of every value of the second block and of what stands around the blocks."""
    model, tokens = small(preset, depth=2), ids(1, 5)
    trace = trace_forward(model, tokens)
    checked = 0
    for name, (value, source) in trace.items():
        if name.startswith("blocks.0.") or "#" in name or ".return." in name:
            continue
        file = Path(source.file)
        assert file.is_relative_to(HERE), name
        line = file.read_text(encoding="utf-8").splitlines()[source.line - 1]
        assert line.strip() == source.text.splitlines()[0], name
        if source.text.startswith(("return ", f"{name.split('.')[-1]} = ", f"{name.split('.')[-1]}: Tensor = ")):
            with torch.no_grad():
                values = carried_out(source, lambda: model(tokens, taps={}))
            assert any(isinstance(one, torch.Tensor) and torch.equal(one, value) for one in values), (name, source)
            checked += 1
    assert checked > 15


def test_a_name_that_is_bound_again_keeps_each_value(small, ids):
    model, tokens = small("qwen3", depth=2), ids(1, 4)
    trace = trace_forward(model, tokens)
    embedded, *later = (trace[f"_hidden.x#{number}"].value for number in range(3))
    assert torch.equal(embedded, trace["_hidden.x#0"].value)
    assert torch.equal(later[0], trace["blocks.0.forward.out"].value)
    assert torch.equal(later[1], trace["blocks.1.forward.out"].value)
    assert trace["_hidden.x"] == trace[max((n for n in trace if n.startswith("_hidden.x#")), key=lambda n: int(n[10:]))]


def test_the_tracer_of_others_is_left_as_it_was(small, ids):
    def mine(*_):
        return None

    before = sys.gettrace()
    sys.settrace(mine)
    try:
        trace_forward(small("qwen3", depth=1), ids(1, 3))
        assert sys.gettrace() is mine
        with pytest.raises(ValueError, match="vocabulary"):
            trace_forward(small("qwen3", depth=1), torch.full((1, 3), 10**6))
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)
