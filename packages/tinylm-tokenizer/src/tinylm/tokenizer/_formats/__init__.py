"""Tokenizers as files: `load.py` finds the reader of a path, `convert.py` writes other formats. Nothing here
encodes."""
