"""Taps with their sources: the line that is named computes the value that is recorded; the logit lens."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch

from tinylm.model import Taps, logit_lens

PRESETS = ("gpt2", "llama", "qwen3")


def evaluated(sources, run):
    """What the right side of each named statement gives, every time that it is about to be carried out."""
    wanted, found = {(source.file, source.line): source for source in sources}, {}

    def trace(frame, event, _):
        place = frame.f_code.co_filename, frame.f_lineno
        if event == "line" and place in wanted:
            (statement,) = ast.parse(wanted[place].text).body
            expression = compile(ast.Expression(statement.value), "line", "eval")
            sys.settrace(None)
            value = eval(expression, frame.f_globals, dict(frame.f_locals))  # noqa: S307  # a line of ours
            sys.settrace(trace)
            found.setdefault(place, []).append(value)
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return found


@pytest.mark.parametrize("preset", PRESETS)
def test_the_named_line_computes_the_value(preset, small, ids):
    model, tokens, taps = small(preset, depth=3), ids(2, 7), Taps()
    with torch.no_grad():
        model(tokens, taps=taps)
        assert taps.sources.keys() == taps.keys()
        found = evaluated(taps.sources.values(), lambda: model(tokens, taps={}))
    for name, source in taps.sources.items():
        text = Path(source.file).read_text(encoding="utf-8").splitlines()
        assert source.text.splitlines()[0] == text[source.line - 1].strip()
        assert not source.text.startswith("taps["), name
        parts = name.split(".")
        values = found[source.file, source.line]
        value = values[int(parts[1]) if parts[0] == "blocks" else 0]
        parts_of_it = value if isinstance(value, tuple) else (value,)  # a, b = f(...) computes two
        assert any(isinstance(part, torch.Tensor) and torch.equal(part, taps[name]) for part in parts_of_it), name
        assert len(values) == (3 if parts[0] == "blocks" else 1), name


def test_where_the_lines_are(small, ids):
    taps = Taps()
    small("qwen3")(ids(1, 4), taps=taps)
    lines = {name: (Path(source.file).name, source.text) for name, source in taps.sources.items()}
    assert lines["blocks.1.attention.pattern"][0] == "attention.py"
    assert "softmax" in lines["blocks.1.attention.pattern"][1]
    assert lines["blocks.0.attention_norm"] == ("transformer.py", "normed = self.attention_norm(x)")
    assert "F.linear" in lines["logits"][1]


@pytest.mark.parametrize("preset", PRESETS)
def test_taps_are_a_dict_like_any_other(preset, small, ids):
    model, tokens, plain, taps = small(preset), ids(2, 7), {}, Taps()
    assert torch.equal(model(tokens, taps=plain), model(tokens, taps=taps))
    assert list(plain) == list(taps)
    assert all(torch.equal(plain[name], taps[name]) for name in plain)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_logit_lens_ends_where_the_model_does(preset, small, ids):
    model, tokens, taps = small(preset, depth=3), ids(2, 7), {}
    logits = model(tokens, taps=taps)
    seen = dict(logit_lens(model, taps))
    assert list(seen) == ["embed", "blocks.0.output", "blocks.1.output", "blocks.2.output"]
    assert torch.equal(seen["blocks.2.output"], logits)
    assert not torch.allclose(seen["embed"], logits)


def test_where_the_statement_cannot_be_told_the_line_itself_is_named(tmp_path):
    """At a module's top level, bound by a for, and typed at a prompt, which keeps no file."""
    code = "for x in values:\n    taps['mine'] = x\n"
    for file, text in ((tmp_path / "mine.py", "taps['mine'] = x"), (tmp_path / "gone.py", "")):
        if text:
            file.write_text(code, encoding="utf-8")
        taps = Taps()
        exec(compile(code, str(file), "exec"), {"__name__": "mine", "taps": taps, "values": [torch.ones(1)]})
        assert taps.sources["mine"] == (str(file), 2, text)


def test_a_value_bound_by_a_for_is_named_by_its_line():
    taps = Taps()
    for x in [torch.ones(1)]:
        taps["mine"] = x
    assert taps.sources["mine"].text == 'taps["mine"] = x'
