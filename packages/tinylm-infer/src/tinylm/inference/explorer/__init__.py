"""tinylm.inference: the explorer, one page that follows a text through the reader's own model: `tinylm-infer explore`.

Each file gives one panel's data as plain dataclasses, from public parts of the packages; it computes nothing that the
model, the tokenizer, the sampler or the engine do not compute, and draws nothing: that is `page/`, by hand, with no
framework. Start with `library.py` (which models there are), then `app.py` (what the page asks for).

    1 tokens.py   2 layers.py   3 choice.py   4 writing.py   5 history.py   6 arithmetic.py   7 rungs.py, background.py
"""
