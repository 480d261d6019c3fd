"""What `Tokenizer.train` does: `choose.py` takes the algorithm, `corpus.py` reads the text, the rungs learn."""
