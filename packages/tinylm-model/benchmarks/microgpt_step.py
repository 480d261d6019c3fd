"""One training step of Karpathy's microgpt as a yardstick: its shape, operations and graph in our own words.

microgpt.py (2026; gist 8627fe009c40f57531cb18360106ce95) trains 4,192 parameters on one name a step: vocabulary 27,
width 16, 4 heads, 1 layer, context 16, RMSNorm without weights (also after the embedding), ReLU, no biases, an untied
head, one position at a time with remembered keys and values. What sets its time is kept: one node an operation with its
parents and slopes, numbers wrapped into nodes, subtraction and division made of negation, product and power, sum() from
0, the recursive sort, an Adam that visits each parameter, a graph that lives into the next step. From the same weights
its losses are microgpt.py's to the last bit (rungs.py --microgpt FILE compares them, and times both). Only for
rungs.py; it teaches nothing that scalar/gpt.py does not.
"""

from __future__ import annotations

import math
import random
from typing import Any

VOCABULARY, WIDTH, HEADS, CONTEXT = 27, 16, 4, 16
HEAD = WIDTH // HEADS


class Node:
    __slots__ = ("data", "grad", "parents", "slopes")

    def __init__(self, data: float, parents: tuple[Any, ...] = (), slopes: tuple[float, ...] = ()) -> None:
        self.data = data
        self.grad = 0
        self.parents = parents
        self.slopes = slopes

    def __add__(self, other: Any) -> Node:
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data + other.data, (self, other), (1, 1))

    def __mul__(self, other: Any) -> Node:
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, power: float) -> Node:
        return Node(self.data**power, (self,), (power * self.data ** (power - 1),))

    def log(self) -> Node:
        return Node(math.log(self.data), (self,), (1 / self.data,))

    def exp(self) -> Node:
        return Node(math.exp(self.data), (self,), (math.exp(self.data),))

    def relu(self) -> Node:
        return Node(max(0, self.data), (self,), (float(self.data > 0),))

    def __neg__(self) -> Node:
        return self * -1

    def __radd__(self, other: Any) -> Node:
        return self + other

    def __sub__(self, other: Any) -> Node:
        return self + (-other)

    def __rmul__(self, other: Any) -> Node:
        return self * other

    def __truediv__(self, other: Any) -> Node:
        return self * other**-1

    def backward(self) -> None:
        order: list[Node] = []
        seen = set()

        def visit(node: Node) -> None:
            if node not in seen:
                seen.add(node)
                for parent in node.parents:
                    visit(parent)
                order.append(node)

        visit(self)
        self.grad = 1
        for node in reversed(order):
            for parent, slope in zip(node.parents, node.slopes):  # noqa: B905  # as there
                parent.grad += slope * node.grad


class Microgpt:
    def __init__(self, seed: int = 0) -> None:
        chance = random.Random(seed)

        def matrix(rows: int, columns: int) -> list[list[Node]]:
            return [[Node(chance.gauss(0, 0.08)) for _ in range(columns)] for _ in range(rows)]

        self.tokens, self.positions = matrix(VOCABULARY, WIDTH), matrix(CONTEXT, WIDTH)
        self.head = matrix(VOCABULARY, WIDTH)
        self.q, self.k, self.v, self.output = (matrix(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = matrix(4 * WIDTH, WIDTH), matrix(WIDTH, 4 * WIDTH)
        matrices = (
            self.tokens, self.positions, self.head, self.q, self.k, self.v, self.output, self.up, self.down,
        )  # fmt: skip
        self.parameters = [node for table in matrices for row in table for node in row]
        self.m, self.s = [0.0] * len(self.parameters), [0.0] * len(self.parameters)
        self.steps = 0
        # There the loop is the module's, so a step's graph lives until the next loss takes its name, and Python's
        # garbage collector walks through both: with it switched off the two programs cost the same either way.
        self.last: Node | None = None

    def logits(self, token: int, place: int, keys: list[Any], values: list[Any]) -> list[Node]:
        x = norm([a + b for a, b in zip(self.tokens[token], self.positions[place])])  # noqa: B905
        before, x = x, norm(x)
        q = linear(x, self.q)
        keys.append(linear(x, self.k))
        values.append(linear(x, self.v))
        out = []
        for at in range(0, WIDTH, HEAD):
            query = q[at : at + HEAD]
            k = [row[at : at + HEAD] for row in keys]
            v = [row[at : at + HEAD] for row in values]
            scores = [sum(query[j] * row[j] for j in range(HEAD)) / HEAD**0.5 for row in k]
            weights = softmax(scores)
            out.extend([sum(weights[t] * v[t][j] for t in range(len(v))) for j in range(HEAD)])
        x = [a + b for a, b in zip(linear(out, self.output), before)]  # noqa: B905
        before, x = x, norm(x)
        x = linear([a.relu() for a in linear(x, self.up)], self.down)
        return linear([a + b for a, b in zip(x, before)], self.head)  # noqa: B905

    def step(self, ids: list[int], rate: float) -> float:
        """One step of training on ids and what follows each: forward, backward, Adam. Returns the loss."""
        keys: list[Any] = []
        values: list[Any] = []
        losses = []
        count = min(CONTEXT, len(ids) - 1)
        for place in range(count):
            p = softmax(self.logits(ids[place], place, keys, values))
            losses.append(-p[ids[place + 1]].log())
        loss: Any = (1 / count) * sum(losses)
        self.last = loss
        loss.backward()
        self.steps += 1
        for i, node in enumerate(self.parameters):
            self.m[i] = 0.85 * self.m[i] + (1 - 0.85) * node.grad
            self.s[i] = 0.99 * self.s[i] + (1 - 0.99) * node.grad**2
            m = self.m[i] / (1 - 0.85**self.steps)
            s = self.s[i] / (1 - 0.99**self.steps)
            node.data -= rate * m / (s**0.5 + 1e-8)
            node.grad = 0
        return float(loss.data)


def linear(x: list[Any], weight: list[list[Any]]) -> list[Any]:
    return [sum(w * a for w, a in zip(row, x)) for row in weight]  # noqa: B905


def softmax(scores: list[Any]) -> list[Any]:
    top = max(score.data for score in scores)
    exponentials = [(score - top).exp() for score in scores]
    total: Any = sum(exponentials)
    return [e / total for e in exponentials]


def norm(x: list[Any]) -> list[Any]:
    square: Any = sum(a * a for a in x) / len(x)
    scale = (square + 1e-5) ** -0.5
    return [a * scale for a in x]
