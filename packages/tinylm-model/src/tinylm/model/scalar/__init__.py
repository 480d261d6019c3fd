"""The lowest rung: a language model in plain Python floats. `from tinylm.model.scalar import gpt`; nothing here uses
torch."""
