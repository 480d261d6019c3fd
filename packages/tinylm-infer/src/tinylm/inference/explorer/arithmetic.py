"""tinylm.inference: panel 6 of the explorer: a number, the vectors that made it, and the line that computed it.

The numbers and lines are those of one watched forward pass (`tinylm.model.tracing`); the vectors are multiplied here
once more in float64, and both results are shown. A number's name is a path: "blocks.0.mlp/5/17" is what the MLP of
block 0 adds at token 5, place 17. Next: `history.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tinylm.inference._errors import InferenceError
from tinylm.model import Transformer
from tinylm.model.tracing import Trace

PARTS = {  # a name's part after "blocks.<i>.": what the trace calls it
    "attention_norm": "attention_norm.forward.return",
    "attention.scores": "attention.attend_with_pattern.scores",
    "attention.pattern": "attention.attend_with_pattern.pattern",
    "attention.heads": "attention.attend_with_pattern.return",
    "attention.output": "attention.forward.out",
    "middle": "forward.middle",
    "mlp_norm": "mlp_norm.forward.return",
    "mlp.inner": "mlp.forward.inner",
    "mlp": "mlp.forward.out",
    "output": "forward.out",
}
WHOLE = {"embed": "_hidden.x#0", "final_norm": "final_norm.forward.return", "logits": "forward.logits"}


@dataclass(frozen=True)
class Vector:
    """Numbers that went in. `path`: the name of each, with {} for its place; None for weights."""

    name: str
    numbers: list[float]
    path: str | None


@dataclass(frozen=True)
class Number:
    """A number of the forward pass: `value` is the model's, `again` the same from the vectors by `formula`, in float64.

    `file`, `line`, `text`: the statement that computed it.
    """

    path: str
    value: float
    again: float
    formula: str
    vectors: list[Vector]
    file: str
    line: int
    text: str


@torch.no_grad()
def number(model: Transformer, ids: list[int], trace: Trace, path: str) -> Number:
    """The number called `path`, of a trace of `model` over `ids`. InferenceError for a name that there is not."""
    name, *places = path.split("/")
    key = _key(name, model)
    if key not in trace or not all(place.isdigit() for place in places):
        raise InferenceError(f"wanted the name of a number, as blocks.0.mlp/5/17, got {path[:80]!r}")
    computed = trace[key]
    index = tuple(map(int, places))
    value = computed.value[0]
    if len(index) != value.ndim or any(i >= size for i, size in zip(index, value.shape, strict=True)):
        raise InferenceError(
            f"{name} has the shape {tuple(value.shape)}, and nothing at {'/'.join(places) or 'no place'}"
        )
    if not math.isfinite(value[index]):
        raise InferenceError(f"{path} is masked: a token does not look ahead")
    formula, vectors, again = _Made(model, ids, trace).of(name, index)
    source = computed.source
    return Number(path, float(value[index]), again, formula, vectors, Path(source.file).name, source.line, source.text)


def _key(name: str, model: Transformer) -> str:
    if name in WHOLE:
        return WHOLE[name]
    first, _, rest = name.partition(".")
    layer, _, part = rest.partition(".")
    if first != "blocks" or not layer.isdigit() or part not in PARTS:
        return ""
    if part.startswith("mlp") and part != "mlp_norm" and model.config.experts:
        raise InferenceError("the experts of a mixture are not taken apart here: choose another number")
    return f"blocks.{int(layer)}.{PARTS[part]}"


class _Made:
    """How each kind of number is made: formula, vectors, and the product of them."""

    def __init__(self, model: Transformer, ids: list[int], trace: Trace) -> None:
        self.model, self.ids, self.trace = model, ids, trace

    def of(self, name: str, index: tuple[int, ...]) -> tuple[str, list[Vector], float]:
        if name == "embed":
            return self._embed(*index)
        if name == "logits":
            t, v = index
            return self._dot(self._row("final_norm", t), self.model.head_weight[v], None, f"head's row {v}")
        if name == "final_norm":
            last = f"blocks.{self.model.config.depth - 1}.output"
            return self._norm(self.model.final_norm, last, *index)
        block, part = ".".join(name.split(".")[:2]), ".".join(name.split(".")[2:])
        rules: dict[str, Callable[..., tuple[str, list[Vector], float]]] = {
            "attention_norm": self._attention_norm,
            "attention.scores": self._score,
            "attention.pattern": self._pattern,
            "attention.heads": self._head,
            "attention.output": self._attention_output,
            "middle": lambda b, t, d: self._sum([self._before(b), f"{b}.attention.output"], t, d),
            "mlp_norm": lambda b, t, d: self._norm(self.model.get_submodule(f"{b}.mlp_norm"), f"{b}.middle", t, d),
            "mlp.inner": self._inner,
            "mlp": self._mlp,
            "output": lambda b, t, d: self._sum([f"{b}.middle", f"{b}.mlp"], t, d),
        }
        return rules[part](block, *index)

    def _value(self, name: str) -> Tensor:
        return self.trace[_key(name, self.model)].value[0]

    def _row(self, name: str, *at: int) -> Vector:
        return Vector(f"{name}, token {at[-1]}", self._value(name)[at].tolist(), "/".join([name, *map(str, at), "{}"]))

    def _before(self, block: str) -> str:
        layer = int(block.split(".")[1])
        return f"blocks.{layer - 1}.output" if layer else "embed"

    def _dot(self, x: Vector, weight: Tensor, bias: Tensor | None, what: str) -> tuple[str, list[Vector], float]:
        w = Vector(what, weight.tolist(), None)
        again = math.fsum(a * b for a, b in zip(x.numbers, w.numbers, strict=True))
        if bias is None:
            return "Σ xᵢ wᵢ", [x, w], again
        return "Σ xᵢ wᵢ + b", [x, w, Vector("bias", [float(bias)], None)], again + float(bias)

    def _linear(self, module: nn.Module, x: Vector, out: int, what: str) -> tuple[str, list[Vector], float]:
        assert isinstance(module, nn.Linear)
        bias = None if module.bias is None else module.bias[out]
        return self._dot(x, module.weight[out], bias, f"{what}, row {out}")

    def _embed(self, t: int, d: int) -> tuple[str, list[Vector], float]:
        row = self.model.embed.weight[self.ids[t]]
        vectors, again = [Vector(f"embedding's row {self.ids[t]}", row.tolist(), None)], float(row[d])
        if self.model.positions is None:
            return f"the row's number {d}", vectors, again
        place = self.model.positions.weight[t]
        return (
            "token's + place's",
            [*vectors, Vector(f"row of place {t}", place.tolist(), None)],
            again + float(place[d]),
        )

    def _sum(self, names: list[str], t: int, d: int) -> tuple[str, list[Vector], float]:
        terms = [float(self._value(name)[t, d]) for name in names]
        vectors = [Vector(name, [term], f"{name}/{t}/{d}") for name, term in zip(names, terms, strict=True)]
        return "a + b", vectors, math.fsum(terms)

    def _norm(self, module: nn.Module, source: str, t: int, d: int) -> tuple[str, list[Vector], float]:
        x = self._row(source, t)
        weight, eps = module.get_parameter("weight"), float(getattr(module, "eps", 0.0))
        vectors = [x, Vector(f"weight of the norm at {d}", [float(weight[d])], None)]
        bias = getattr(module, "bias", None)
        mean = 0.0 if bias is None else math.fsum(x.numbers) / len(x.numbers)
        square = math.fsum((number - mean) ** 2 for number in x.numbers) / len(x.numbers)
        again = (x.numbers[d] - mean) / math.sqrt(square + eps) * float(weight[d])
        if bias is None:
            return "xd / √(mean(x²) + ε) · wd", vectors, again
        return (
            "(xd − mean) / √(var + ε) · wd + bd",
            [*vectors, Vector("bias", [float(bias[d])], None)],
            again + float(bias[d]),
        )

    def _attention_norm(self, block: str, t: int, d: int) -> tuple[str, list[Vector], float]:
        return self._norm(self.model.get_submodule(f"{block}.attention_norm"), self._before(block), t, d)

    def _score(self, block: str, h: int, t: int, s: int) -> tuple[str, list[Vector], float]:
        group = self.model.config.heads // self.model.config.kv_heads
        q, k = (self.trace[f"{block}.attention.forward.{name}"].value[0] for name in "qk")
        vectors = [
            Vector(f"query of token {t}", q[h, t].tolist(), None),
            Vector(f"key of token {s}", k[h // group, s].tolist(), None),
        ]
        again = math.fsum(a * b for a, b in zip(*(vector.numbers for vector in vectors), strict=True))
        return "Σ qᵢ kᵢ / √head_dim", vectors, again / math.sqrt(self.model.config.head_dim)

    def _pattern(self, block: str, h: int, t: int, s: int) -> tuple[str, list[Vector], float]:
        name = f"{block}.attention.scores"
        scores = self._row(name, h, t)
        seen = Vector(f"scores of token {t}'s query", scores.numbers[: t + 1], scores.path)
        if s > t:
            return "masked: a token does not look ahead", [seen], 0.0
        top = max(seen.numbers)
        total = math.fsum(math.exp(score - top) for score in seen.numbers)
        return f"exp(s{s}) / Σ exp(s)", [seen], math.exp(seen.numbers[s] - top) / total

    def _head(self, block: str, h: int, t: int, j: int) -> tuple[str, list[Vector], float]:
        v = self.trace[f"{block}.attention.attend_with_pattern.v"].value[0]
        pattern = self._row(f"{block}.attention.pattern", h, t)
        return self._dot(pattern, v[h, :, j], None, f"values of all tokens at {j}")

    def _attention_output(self, block: str, t: int, d: int) -> tuple[str, list[Vector], float]:
        heads = self._value(f"{block}.attention.heads")[:, t].flatten().tolist()
        x = Vector(f"all heads of token {t}", heads, f"{block}.attention.heads/{{h}}/{t}/{{}}")
        return self._linear(self.model.get_submodule(f"{block}.attention.output"), x, d, "output matrix")

    def _inner(self, block: str, t: int, m: int) -> tuple[str, list[Vector], float]:
        mlp, x = self.model.get_submodule(f"{block}.mlp"), self._row(f"{block}.mlp_norm", t)
        _, (_, *up), u = self._linear(mlp.get_submodule("up"), x, m, "up matrix")
        if getattr(mlp, "gate", None) is None:
            inside = math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)
            return "GELU(Σ xᵢ uᵢ + b)", [x, *up], 0.5 * u * (1 + math.tanh(inside))
        _, (_, *gate), g = self._linear(mlp.get_submodule("gate"), x, m, "gate matrix")
        return "SiLU(Σ xᵢ gᵢ) · Σ xᵢ uᵢ", [x, *gate, *up], g / (1 + math.exp(-g)) * u

    def _mlp(self, block: str, t: int, d: int) -> tuple[str, list[Vector], float]:
        x = self._row(f"{block}.mlp.inner", t)
        return self._linear(self.model.get_submodule(f"{block}.mlp.down"), x, d, "down matrix")
