"""Each algorithm with its vocabulary, as `tokenizer.py` uses it. `protocol.py` says what an engine is."""
