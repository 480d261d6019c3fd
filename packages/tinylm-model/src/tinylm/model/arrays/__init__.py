"""The model in NumPy, forward and backward by hand: whole matrices instead of one multiplication at a time.

Each file holds pairs: a forward that returns its result and what the backward needs, and under it the backward with its
equation. Read layers.py, norms.py, activations.py, positions.py, attention.py, loss.py, and then transformer.py, which
puts them together for GPT-2's shape and for Llama's and Qwen3's. Nothing here uses torch.

In every file ∂y is the loss's derivative to y, written dy, of y's shape; N counts rows (positions of all sequences), B
sequences, T positions of one, D the width.
"""
