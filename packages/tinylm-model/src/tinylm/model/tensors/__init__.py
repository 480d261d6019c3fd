"""The model in torch tensors, forward and backward by hand: the equations of ../arrays, and what torch adds to NumPy.

What it buys: the same lines run on a CPU and on a GPU, in float64, float32, bfloat16 and float16; a product of matrices
that adds as it goes (x Wᵀ + b, q kᵀ / sqrt(d) + mask) and writes where it is told (a gradient's own memory); and on a
GPU work is queued, not waited for: nothing here looks at a value on the way, so the loss comes back as a tensor.
Sums of many numbers (means, softmax, the loss, Adam's averages) are taken in float32 where the weights have 16 bits.

What it does with that: between forward and backward each block keeps no more than its backward cannot cheaply compute
again. Numbers kept per token, D the width, F the MLP's, h the head's, H and K the heads of queries and of keys:

    norms        x̂, and 1 number each            2 D + 2              y = x̂ ⊙ w + b is made again
    attention    q, k, v and y, and ln Σ exp(s)   2 (H + K) h + H      the pattern, T numbers a head, is made again
    QK-norm      x̂, and 1 number a head          (H + K) (h + 1)
    MLP          what enters GELU or SwiGLU       F or 2 F             what leaves it is made again

../arrays keeps the pattern (T numbers a head) and both sides of every norm and activation instead. Nothing here uses
torch.nn or autograd: what they do is what these files show. Read layers.py, norms.py, activations.py, positions.py,
attention.py, loss.py, blocks.py and transformer.py. The letters: N rows (positions of all sequences), B sequences, T
positions of one, V words; ∂y is the loss's derivative to y, written dy, of y's shape.
"""
