"""The lowest rungs: a language model in plain Python floats. `python -m tinylm.model.scalar` trains one; nothing here
uses torch or NumPy. Read autograd.py, gpt.py, training.py, derived.py in this order."""
