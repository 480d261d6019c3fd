"""GPT-2 with every gradient worked out by hand: the same floats as gpt.py, without autograd's hundred thousand Values.

Each backward stands under its forward and takes ∂y, the loss's derivative to what the forward returned; its docstring
says the equation. Most of autograd's time went into making a Value for each multiplication and walking them back;
here a product of vectors is one sum(map(mul, a, b)). What it does not do: batches, other shapes. Next: ../arrays/,
where a product of matrices is one operation.

x and y are (T, D): a row for each position. ∂ is written d: dx has the shape of x.
"""

from __future__ import annotations

import math
from itertools import chain
from operator import mul
from typing import Any

from tinylm.model.scalar import gpt
from tinylm.model.scalar.files import Weights
from tinylm.model.scalar.gpt import IGNORED, softmax

Vector = list[float]
Matrix = list[Vector]


def columns(x: Matrix) -> Any:
    """The matrix turned: its columns as tuples."""
    return list(zip(*x, strict=True))


def add(a: Matrix, b: Matrix) -> Matrix:
    """a + b. Backward: ∂a = ∂b = ∂y, so that a residual connection hands its gradient on to both sides."""
    return [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


def product(a: Any, b: Any) -> Matrix:
    """(n, k), (m, k) -> (n, m): every row of a times every row of b, that is a bᵀ."""
    return [[sum(map(mul, row, other), 0.0) for other in b] for row in a]


def linear(x: Matrix, weight: Matrix, bias: Vector) -> Matrix:
    """y = x W + b."""
    turned = columns(weight)
    return [[sum(map(mul, row, column), b) for column, b in zip(turned, bias, strict=True)] for row in x]


def linear_backward(dy: Matrix, x: Matrix, weight: Matrix) -> tuple[Matrix, Matrix, Vector]:
    """∂x = ∂y Wᵀ,  ∂W = xᵀ ∂y,  ∂b = Σₜ ∂yₜ."""
    turned = columns(dy)
    return product(dy, weight), product(columns(x), turned), [sum(column) for column in turned]


def embed(ids: list[int], tokens: Matrix, positions: Matrix) -> Matrix:
    """xₜ = E[idₜ] + P[t]."""
    return [[a + b for a, b in zip(tokens[i], place, strict=True)] for i, place in zip(ids, positions, strict=False)]


def embed_backward(dx: Matrix, ids: list[int], d_tokens: Matrix, d_positions: Matrix) -> None:
    """∂E[i] += Σ over the t with idₜ = i of ∂xₜ,  ∂P[t] += ∂xₜ: a table's row gets what its uses got. In place."""
    for t, (i, row) in enumerate(zip(ids, dx, strict=True)):
        d_tokens[i] = [a + b for a, b in zip(d_tokens[i], row, strict=True)]
        d_positions[t] = [a + b for a, b in zip(d_positions[t], row, strict=True)]


def layer_norm(x: Matrix, weight: Vector, bias: Vector, eps: float) -> tuple[Matrix, Any]:
    """x̂ = r (x − mean) with r = 1 / sqrt(variance + eps),  y = x̂ ⊙ w + b. Also what the backward needs: (x̂, r)."""
    normal, scales = [], []
    for row in x:
        mean = sum(row) / len(row)
        centred = [v - mean for v in row]
        r = 1 / math.sqrt(sum(map(mul, centred, centred)) / len(row) + eps)
        normal.append([v * r for v in centred])
        scales.append(r)
    return [[v * w + b for v, w, b in zip(row, weight, bias, strict=True)] for row in normal], (normal, scales)


def layer_norm_backward(dy: Matrix, weight: Vector, saved: Any) -> tuple[Matrix, Vector, Vector]:
    """With ∂x̂ = ∂y ⊙ w:  ∂x = r (∂x̂ − mean(∂x̂) − x̂ · mean(∂x̂ ⊙ x̂)),  ∂w = Σₜ ∂y ⊙ x̂,  ∂b = Σₜ ∂y.

    The two means are what x loses through the row's own mean and variance: a change of x along the ones or along x̂ is
    normalised away, so no gradient comes back along either.
    """
    normal, scales = saved
    dx = []
    for row, hat, r in zip(dy, normal, scales, strict=True):
        d_hat = list(map(mul, row, weight))
        mean, along = sum(d_hat) / len(row), sum(map(mul, d_hat, hat)) / len(row)
        dx.append([r * (d - mean - h * along) for d, h in zip(d_hat, hat, strict=True)])
    turned = columns(dy)
    d_weight = [sum(map(mul, a, b)) for a, b in zip(turned, columns(normal), strict=True)]
    return dx, d_weight, [sum(column) for column in turned]


def gelu(x: Matrix) -> tuple[Matrix, Matrix]:
    """y = ½ x (1 + t) with t = tanh(c (x + a x³)), c = sqrt(2/π), a = 0.044715. Also t."""
    c = math.sqrt(2 / math.pi)
    t = [[math.tanh(c * (v + 0.044715 * v * v * v)) for v in row] for row in x]
    return [[0.5 * v * (1 + u) for v, u in zip(*rows, strict=True)] for rows in zip(x, t, strict=True)], t


def gelu_backward(dy: Matrix, x: Matrix, t: Matrix) -> Matrix:
    """∂x = ∂y ⊙ (½ (1 + t) + ½ x (1 − t²) c (1 + 3 a x²))."""
    c = math.sqrt(2 / math.pi)
    return [
        [
            d * 0.5 * (1 + u + v * (1 - u * u) * c * (1 + 0.134145 * v * v))
            for d, v, u in zip(*rows, strict=True)
        ]
        for rows in zip(dy, x, t, strict=True)
    ]  # fmt: skip


def attention(q: Matrix, k: Matrix, v: Matrix) -> tuple[Matrix, Matrix]:
    """One head: s = q kᵀ / sqrt(head_dim), p = softmax(s) over the positions so far, y = p v. Also p (T, ≤ T)."""
    scale = 1 / math.sqrt(len(q[0]))
    pattern = [softmax([scale * sum(map(mul, row, key)) for key in k[: t + 1]]) for t, row in enumerate(q)]
    turned = columns(v)
    return [[sum(map(mul, row, column)) for column in turned] for row in pattern], pattern  # map stops with the row


def attention_backward(dy: Matrix, q: Matrix, k: Matrix, v: Matrix, pattern: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """∂v = pᵀ ∂y,  ∂p = ∂y vᵀ,  ∂s = p ⊙ (∂p − Σⱼ pⱼ ∂pⱼ)  (softmax's derivative, row by row),
    ∂q = ∂s k / sqrt(head_dim),  ∂k = ∂sᵀ q / sqrt(head_dim)."""
    scale = 1 / math.sqrt(len(q[0]))
    time = len(q)
    ds = []
    for t, row in enumerate(pattern):
        dp = [sum(map(mul, dy[t], value)) for value in v[: t + 1]]
        mean = sum(map(mul, row, dp))
        ds.append([p * (d - mean) * scale for p, d in zip(row, dp, strict=True)] + [0.0] * (time - 1 - t))
    by_key = columns([row + [0.0] * (time - len(row)) for row in pattern])
    return product(ds, columns(k)), product(columns(ds), columns(q)), product(by_key, columns(dy))


def cross_entropy(logits: Matrix, targets: list[int]) -> tuple[float, Matrix]:
    """loss = mean over the n targets that count of ln Σ exp(z) − z[target]. Also p = softmax(z)."""
    pattern, losses = [], []
    for row, target in zip(logits, targets, strict=True):
        top = max(row)
        exponentials = [math.exp(z - top) for z in row]
        total = sum(exponentials)
        pattern.append([e / total for e in exponentials])
        if target != IGNORED:
            losses.append(math.log(total) + top - row[target])
    return (sum(losses) / len(losses) if losses else 0.0), pattern


def cross_entropy_backward(p: Matrix, targets: list[int]) -> Matrix:
    """∂z = (p − onehot(target)) / n; rows that do not count get 0."""
    n = sum(target != IGNORED for target in targets)
    dz = [[0.0] * len(row) if i == IGNORED else [x / n for x in row] for row, i in zip(p, targets, strict=True)]
    for row, target in zip(dz, targets, strict=True):
        if target != IGNORED:
            row[target] -= 1 / n
    return dz


class GPT(gpt.GPT):
    """gpt.GPT with its gradients by hand. Loading, saving and logits are inherited."""

    def loss_and_gradients(self, ids: list[int], targets: list[int]) -> tuple[float, Weights]:
        """The loss, and its derivative to every weight, nested like the weights."""
        self._check(ids, targets)
        w, config = self.weights, self.config
        head = "transformer.wte.weight" if config.tie_embeddings else "lm_head.weight"
        g: Weights = {}

        x = embed(ids, w["transformer.wte.weight"], w["transformer.wpe.weight"])
        blocks = []
        for layer in range(config.depth):
            x, saved = self._block(x, f"transformer.h.{layer}")
            blocks.append(saved)
        final, norm = self._norm(x, "transformer.ln_f")
        loss, p = cross_entropy(product(final, w[head]), targets)

        dz = cross_entropy_backward(p, targets)
        g[head] = product(columns(dz), columns(final))
        dx = self._norm_backward(product(dz, columns(w[head])), "transformer.ln_f", norm, g)
        for layer in reversed(range(config.depth)):
            dx = self._block_backward(dx, f"transformer.h.{layer}", blocks[layer], g)
        for name in ("transformer.wte.weight", "transformer.wpe.weight"):
            g.setdefault(name, [[0.0] * config.width for _ in w[name]])  # a tied head has put its part there already
        embed_backward(dx, ids, g["transformer.wte.weight"], g["transformer.wpe.weight"])
        return loss, {name: g[name] for name in w}

    def _block(self, x: Matrix, name: str) -> tuple[Matrix, Any]:
        """x + attention(norm(x)), then x + mlp(norm(x)); and all that the backward needs."""
        normed1, norm1 = self._norm(x, f"{name}.ln_1")
        qkv = self._heads(self._linear(normed1, f"{name}.attn.c_attn"), 3)
        heads = self.config.heads
        outs, patterns = zip(
            *(attention(qkv[h], qkv[heads + h], qkv[2 * heads + h]) for h in range(heads)), strict=True
        )
        joined = [list(chain.from_iterable(rows)) for rows in zip(*outs, strict=True)]
        x = add(x, self._linear(joined, f"{name}.attn.c_proj"))
        normed2, norm2 = self._norm(x, f"{name}.ln_2")
        up = self._linear(normed2, f"{name}.mlp.c_fc")
        inner, t = gelu(up)
        x = add(x, self._linear(inner, f"{name}.mlp.c_proj"))
        return x, (normed1, norm1, qkv, patterns, joined, normed2, norm2, up, t, inner)

    def _block_backward(self, dx: Matrix, name: str, saved: Any, g: Weights) -> Matrix:
        """The block's steps in reverse order; at each residual connection the two ways' gradients add up."""
        normed1, norm1, qkv, patterns, joined, normed2, norm2, up, t, inner = saved
        d = gelu_backward(self._linear_backward(dx, f"{name}.mlp.c_proj", inner, g), up, t)
        d = self._linear_backward(d, f"{name}.mlp.c_fc", normed2, g)
        dx = add(dx, self._norm_backward(d, f"{name}.ln_2", norm2, g))
        d_heads = self._heads(self._linear_backward(dx, f"{name}.attn.c_proj", joined, g), 1)
        heads = self.config.heads
        triples = [
            attention_backward(d_heads[h], qkv[h], qkv[heads + h], qkv[2 * heads + h], patterns[h])
            for h in range(heads)
        ]
        parts = chain.from_iterable(zip(*triples, strict=True))  # every head's dq, then every dk, then every dv
        d_qkv = [list(chain.from_iterable(rows)) for rows in zip(*parts, strict=True)]
        d = self._linear_backward(d_qkv, f"{name}.attn.c_attn", normed1, g)
        return add(dx, self._norm_backward(d, f"{name}.ln_1", norm1, g))

    def _heads(self, x: Matrix, times: int) -> list[Matrix]:
        """(T, times · width) -> times · heads matrices of (T, head_dim)."""
        size = self.config.head_dim
        return [[row[at : at + size] for row in x] for at in range(0, times * self.config.width, size)]

    def _linear(self, x: Matrix, name: str) -> Matrix:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _linear_backward(self, dy: Matrix, name: str, x: Matrix, g: Weights) -> Matrix:
        dx, g[f"{name}.weight"], g[f"{name}.bias"] = linear_backward(dy, x, self.weights[f"{name}.weight"])
        return dx

    def _norm(self, x: Matrix, name: str) -> tuple[Matrix, Any]:
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.config.norm_eps)

    def _norm_backward(self, dy: Matrix, name: str, saved: Any, g: Weights) -> Matrix:
        dx, g[f"{name}.weight"], g[f"{name}.bias"] = layer_norm_backward(dy, self.weights[f"{name}.weight"], saved)
        return dx
