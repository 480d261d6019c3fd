"""tinylm.inference: panel 3 of the explorer: the next token's distribution, and why each candidate survived or fell.

The rules are the functions of `sampling.py`, called in their order; a token's fate is the first of them that rules it
out, and the numbers that decided are told with it. Next: `writing.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.inference import sampling
from tinylm.inference._errors import InferenceError
from tinylm.inference.explorer.reading import Seen, token_text
from tinylm.inference.sampling_params import SamplingParams

SHOWN = 40


@dataclass(frozen=True)
class Candidate:
    """A token that could come next. `model`: its probability as the model gives it; `tempered`: after temperature;
    `drawn`: what is left to draw from. `fate`: "kept", or the step that ruled it out; `why`: with which numbers."""

    id: int
    text: str
    rank: int
    logit: float
    model: float
    tempered: float
    drawn: float
    fate: str
    why: str


@dataclass(frozen=True)
class Choice:
    """`kept` of `vocabulary` tokens can be drawn; `lost`: the probability, after temperature, that each step ruled out.

    `entropy`: of the model's distribution and of what is drawn from, in bits. `chosen`: what `seed` draws.
    """

    position: int
    candidates: list[Candidate]
    kept: int
    vocabulary: int
    lost: dict[str, float]
    entropy: tuple[float, float]
    chosen: int


@torch.inference_mode()
def choose(seen: Seen, position: int, params: SamplingParams, uniform: float) -> Choice:
    """The distribution after the token at `position` (negative: from the end), drawn from with `uniform` in [0, 1)."""
    count = len(seen.read.tokens)
    if not -count <= position < count:
        raise InferenceError(f"position: wanted 0 to {count - 1}, got {position}")
    if not 0 <= uniform < 1:
        raise InferenceError(f"uniform: wanted a number from 0 to below 1, got {uniform}")
    logits = seen.taps["logits"][0, position].float()
    stages = steps(logits, params)
    probabilities = {name: stage.softmax(dim=0) for name, stage in stages.items()}
    last = stages["top-p"]
    fates = _Fates(stages, probabilities, params)
    shown = logits.topk(min(SHOWN, len(logits))).indices.tolist()
    candidates = []
    for rank, token_id in enumerate(shown, start=1):
        fate, why = fates.of(token_id, rank)
        model, tempered, drawn = (float(probabilities[name][token_id]) for name in ("model", "temperature", "top-p"))
        text = token_text(seen.checkpoint, token_id)
        logit = float(logits[token_id])
        candidates.append(Candidate(token_id, text, rank, logit, model, tempered, drawn, fate, why))
    chosen = sampling.draw(last, uniform)
    entropy = (_entropy(probabilities["model"]), _entropy(probabilities["top-p"]))
    kept = int(last.isfinite().sum())
    return Choice(position % count, candidates, kept, len(logits), fates.lost(), entropy, chosen)


def steps(logits: Tensor, params: SamplingParams) -> dict[str, Tensor]:
    """The logits (V,) after each step of `sampling.sample`, by its name; greedy keeps the likeliest token alone."""
    if params.greedy:
        alone = torch.full_like(logits, -torch.inf)
        alone[logits.argmax()] = 0.0
        return {"model": logits, "temperature": alone, "min-p": alone, "top-k": alone, "top-p": alone}
    out = {"model": logits, "temperature": sampling.apply_temperature(logits, params.temperature)}
    out["min-p"] = sampling.apply_min_p(out["temperature"], params.min_p)
    out["top-k"] = sampling.apply_top_k(out["min-p"], params.top_k)
    out["top-p"] = sampling.apply_top_p(out["top-k"], params.top_p)
    return out


class _Fates:
    def __init__(self, stages: dict[str, Tensor], probabilities: dict[str, Tensor], params: SamplingParams) -> None:
        self._stages, self._probabilities, self._params = stages, probabilities, params
        self._descending, self._order = probabilities["top-k"].sort(descending=True, stable=True)
        self._before = self._descending.cumsum(dim=0) - self._descending

    def of(self, token_id: int, rank: int) -> tuple[str, str]:
        """The step that ruled the token out, or "kept", and why."""
        params, p = self._params, self._probabilities
        place = int((self._order == token_id).nonzero()[0, 0])
        before, tempered = float(self._before[place]), p["temperature"]
        mine, best = float(tempered[token_id]), float(tempered.max())
        fell = next((name for name, stage in self._stages.items() if not stage[token_id].isfinite()), None)
        if fell is None:
            passed = [f"{mine:.2g} ≥ {params.min_p:g} × {best:.2g}"] if params.min_p > 0 else []
            passed += [f"rank {rank} of {params.top_k}"] if params.top_k > 0 else []
            passed += [f"{before:.3f} before it < {params.top_p:g}"] if params.top_p < 1 else []
            return "kept", ", ".join(passed) if passed and not params.greedy else "nothing rules it out"
        if fell == "temperature":
            return "temperature", "temperature 0 takes the likeliest alone"
        if fell == "min-p":
            return fell, f"{mine:.2g} < {params.min_p:g} × {best:.2g}, the likeliest's"
        if fell == "top-k":
            return fell, f"rank {rank} is behind the first {params.top_k}"
        return fell, f"{before:.3f} before it ≥ {params.top_p:g}"

    def lost(self) -> dict[str, float]:
        """Of the probability after temperature, what each step took away."""
        p, out, before = self._probabilities["temperature"], {}, self._stages["temperature"].isfinite()
        for name in ("min-p", "top-k", "top-p"):
            now = self._stages[name].isfinite()
            out[name] = float(p[before & ~now].sum())
            before = now
        return out


def _entropy(p: Tensor) -> float:
    return float(torch.special.entr(p.double()).sum() / torch.tensor(2.0).log())
