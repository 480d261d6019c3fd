"""Reverse-mode automatic differentiation for one number at a time: the idea behind torch.autograd, on a page.

A Value remembers which Values it was computed from and its slope to each of them. backward() then walks from the result
to where it came from and sums, over all paths, the product of the slopes along the path: the chain rule (Linnainmaa
1970; the same idea as in Karpathy's micrograd, 2020). `exp`, `log` and `tanh` take floats as well, so that a formula is
written once and works on both.

What it does not do: arrays, second derivatives, speed. Next: gpt.py, a model on it; derived.py, the same gradients
without it.
"""

from __future__ import annotations

import math
from typing import TypeVar


class Value:
    """A number in a computation. After `result.backward()`, `grad` is ∂result/∂this."""

    __slots__ = ("data", "grad", "parents", "slopes")

    def __init__(self, data: float, parents: tuple[Value, ...] = (), slopes: tuple[float, ...] = ()) -> None:
        self.data, self.grad = data, 0.0
        self.parents, self.slopes = parents, slopes  # ∂this/∂parent for each parent

    def __repr__(self) -> str:
        return f"Value({self.data})"

    def __float__(self) -> float:
        return self.data

    def __lt__(self, other: Value) -> bool:  # for max()
        return self.data < other.data

    def __add__(self, other: float | Value) -> Value:
        if isinstance(other, Value):
            return Value(self.data + other.data, (self, other), (1.0, 1.0))
        return Value(self.data + other, (self,), (1.0,))

    def __mul__(self, other: float | Value) -> Value:
        if isinstance(other, Value):
            return Value(self.data * other.data, (self, other), (other.data, self.data))
        return Value(self.data * other, (self,), (other,))

    def __pow__(self, exponent: float) -> Value:
        return Value(self.data**exponent, (self,), (exponent * self.data ** (exponent - 1),))

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: float | Value) -> Value:
        return self + -other

    def __rsub__(self, other: float) -> Value:
        return -self + other

    def __truediv__(self, other: float | Value) -> Value:
        return self * other**-1.0

    def __rtruediv__(self, other: float) -> Value:
        return self**-1.0 * other

    __radd__ = __add__
    __rmul__ = __mul__

    def backward(self) -> None:
        """Add ∂self/∂v to `grad` of every Value v that self was computed from.

        A Value's own gradient must be complete before it is passed on, so all are put in an order in which parents
        stand before what was computed from them, and that order is walked backwards. A stack of our own instead of
        recursion: a sum of a thousand terms is a thousand deep, which is where Python stops.
        """
        order: list[Value] = []
        seen = {self}
        stack = [(self, iter(self.parents))]
        while stack:
            value, parents = stack[-1]
            for parent in parents:
                if parent not in seen:
                    seen.add(parent)
                    stack.append((parent, iter(parent.parents)))
                    break
            else:  # every parent is in the order
                order.append(value)
                stack.pop()
        self.grad = 1.0
        for value in reversed(order):
            for parent, slope in zip(value.parents, value.slopes, strict=True):
                parent.grad += slope * value.grad


N = TypeVar("N", float, Value)  # a formula over N holds for floats and for Values


def exp(x: N) -> N:
    """∂eˣ/∂x = eˣ."""
    if isinstance(x, Value):
        y = math.exp(x.data)
        return Value(y, (x,), (y,))
    return math.exp(x)


def log(x: N) -> N:
    """∂ln x/∂x = 1/x."""
    if isinstance(x, Value):
        return Value(math.log(x.data), (x,), (1 / x.data,))
    return math.log(x)


def tanh(x: N) -> N:
    """∂tanh x/∂x = 1 − tanh² x."""
    if isinstance(x, Value):
        y = math.tanh(x.data)
        return Value(y, (x,), (1 - y * y,))
    return math.tanh(x)
