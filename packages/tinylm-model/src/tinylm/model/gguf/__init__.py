"""GGUF, llama.cpp's file: the bytes (reader.py, writer.py), the blocks of numbers (blocks.py), what the pairs say about
the model (metadata.py), the tensors' names (layout.py), and the tokenizer's pairs (tokenizer.py, written only).

Not here: text to ids from a GGUF file, which is tinylm-tokenizer's. Next: reader.py, or files.py, which ties the others
together.
"""
