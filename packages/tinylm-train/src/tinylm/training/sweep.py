"""A scaling-law sweep: models of several depths, each trained for the same FLOPs, for several budgets; then the fits.

    OUT/
      flops-1e+12-depth-2/     a checkpoint folder as pretrain's, for each run
      sweep.json               the runs and the fits (scaling_law.py), and the runs left out
      sweep.svg                the picture, where matplotlib is installed (sweep_plot.py)

A run of budget C takes C / (FLOPs a token · tokens a step) steps, so depth and length are traded for each other. Each
is a Trainer's, so that a sweep that was killed goes on where it was; runs that stand are not run again, and more depths
or budgets add to them. A run that diverges, or ends no better than guessing, says nothing about its size: it is left
out, and the sweep goes on. Not here: the fits (scaling_law.py), a single run (trainer.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinylm import observability as obs
from tinylm.training._errors import TrainingError
from tinylm.training._files import write_json
from tinylm.training.config import TrainConfig
from tinylm.training.data import TokenDataset
from tinylm.training.divergence import no_better_than_guessing
from tinylm.training.policy import Diverged
from tinylm.training.scaling_law import Point, isoflops, law, optimum
from tinylm.training.status import Status
from tinylm.training.trainer import Trainer

_LEAST = 10  # steps: fewer say nothing about a size


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run, before it is run."""

    flops: float
    config: TrainConfig
    parameters: int
    tokens: int

    @property
    def name(self) -> str:
        """For the terminal, and its folder's."""
        return f"flops-{self.flops:.4g}-depth-{self.config.depth}"


def numbers(text: str, name: str) -> list[float]:
    """Of "1e12,3e12". TrainingError for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise TrainingError(f"wanted {name} as numbers with commas between them, got {text!r}") from None


def plan(config: TrainConfig, depths: Sequence[float], budgets: Sequence[float]) -> list[Planned]:
    """Every run, cheapest budget first. `config`: the options that all of them share; its `out` is the sweep's folder.

    TrainingError for a length among them, and for a budget that is only a few steps of some depth.
    """
    for name in ("steps", "tokens", "minutes"):
        if getattr(config, name) is not None:
            raise TrainingError(f"wanted a sweep's lengths to follow from its budgets, got {name}: leave it")
    for value in (*depths, *budgets):
        if not (math.isfinite(value) and value > 0):
            raise TrainingError(f"wanted depths and FLOPs above 0, got {value:g}")
    if parts := [depth for depth in depths if depth != int(depth)]:
        raise TrainingError(f"wanted depths as whole numbers of layers, got {parts[0]:g}")
    vocabulary = TokenDataset(config.data, "train").vocab_size
    runs = []
    for flops in sorted(set(budgets)):
        for depth in sorted(set(map(int, depths))):
            one, shape = dataclasses.replace(config, depth=depth, steps=1).resolve(vocabulary)
            tokens = (one.batch_size or 1) * shape.context
            steps = round(flops / (shape.flops_per_token() * tokens))
            if steps < _LEAST:
                raise TrainingError(
                    f"wanted at least {_LEAST} steps, got {steps} for depth {depth} and {flops:.4g} FLOPs (a step is "
                    f"{shape.flops_per_token() * tokens:.2e}): a larger budget, or smaller depths"
                )
            run = Planned(flops, dataclasses.replace(config, depth=depth), shape.parameter_count(), steps * tokens)
            out = Path(config.out) / run.name
            runs.append(dataclasses.replace(run, config=dataclasses.replace(run.config, steps=steps, out=str(out))))
    return runs


class Sweep:
    """Runs what `plan` says, one after another. `request_stop()` ends it after the current step, with a checkpoint.

    say: called with a line for each run; report: after each step of one, with it, their number, and figures."""

    def __init__(
        self,
        runs: Sequence[Planned],
        out: Path,
        say: Callable[[str], None] = print,
        report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, figures: None,
    ) -> None:
        self.runs, self.out, self.say, self.report = runs, out, say, report
        self.trainer: Trainer | None = None
        self.stop_requested = False

    def request_stop(self) -> None:
        """From a signal handler, say."""
        self.stop_requested = True
        if self.trainer is not None:
            self.trainer.request_stop()

    def run(self) -> dict[str, Any] | None:
        """Train what is not trained yet; write and return what sweep.json holds. None when it was stopped."""
        points: dict[str, Point] = {}
        left_out: dict[str, str] = {}
        for number, planned in enumerate(self.runs, 1):
            name = planned.name
            said = f"{number}/{len(self.runs)} {name}: {planned.parameters:,} parameters, {planned.tokens:,} tokens"
            found = self._train(planned)
            if found is None:
                return None
            if isinstance(found, Point):
                points[name] = found
                self.say(f"{said}, {found.loss:.4f} nats a token")
            else:
                left_out[name] = found
                self.say(f"{said}: left out: {found}")
        if not points:
            raise TrainingError(
                f"every run of the sweep is left out ({'; '.join(left_out.values())}): a lower learning_rate in "
                "--config, and another --out"
            )
        return self._write(points, left_out)

    def _train(self, planned: Planned) -> Point | str | None:
        """What the run came to; in words, why it says nothing; None when it was stopped."""
        self.trainer = Trainer(planned.config, report=self._step)
        if self.stop_requested:
            self.trainer.request_stop()
        try:
            if not self.trainer.train().finished:
                return None
        except Diverged as error:
            return error.sign
        loss = _loss(planned, self.trainer.setup.validation_data)
        guessing = no_better_than_guessing(loss, self.trainer.shape.vocab_size)
        return guessing or Point(planned.flops, planned.parameters, planned.tokens, loss)

    def _step(self, status: Status) -> None:
        figures = {"loss": status.loss, "seconds_left": status.seconds_left}
        known = {name: value for name, value in figures.items() if value is not None}
        self.report(status.step, status.total_steps or status.step, known)

    def _write(self, points: Mapping[str, Point], left_out: Mapping[str, str]) -> dict[str, Any]:
        curves, fitted = isoflops(list(points.values())), law(list(points.values()))
        best = optimum(curves)
        found: dict[str, Any] = {
            "runs": [{**dataclasses.asdict(point), "name": name} for name, point in points.items()],
            "left_out": dict(left_out),
            "isoflop": [dataclasses.asdict(curve) for curve in curves],
            "optimum": None if best is None else dataclasses.asdict(best),
            "law": None if fitted is None else dataclasses.asdict(fitted),
        }
        new = self.out / ".new-sweep.json"
        write_json(new, found)
        new.replace(self.out / "sweep.json")
        return found


def _loss(run: Planned, data: TokenDataset) -> float:
    """Nats a token of the whole validation split, as the finished run logged them."""
    rows = [row for row in obs.read_metrics(Path(run.config.out) / "run") if row.get("validation_bits_per_character")]
    if not rows or rows[-1]["step"] != run.config.steps:
        raise TrainingError(f"wanted the validation of step {run.config.steps} in {run.config.out}/run, got none")
    return float(rows[-1]["validation_bits_per_character"]) * math.log(2) * data.characters / data.tokens


def lines(found: dict[str, Any]) -> list[str]:
    """What was found, in words."""
    said = [
        f"{name} is left out ({sign}): a lower learning_rate in --config, and another --out, may mend it"
        for name, sign in found["left_out"].items()
    ]
    curves = {curve["flops"]: curve for curve in found["isoflop"]}
    for flops in sorted({run["flops"] for run in found["runs"]}):
        if flops not in curves:
            said.append(f"{flops:.3g} FLOPs: wanted three depths at least for a best size, got fewer")
            continue
        best = f"best at {curves[flops]['parameters']:,.0f} parameters, {curves[flops]['loss']:.4f} nats a token"
        edge = "" if curves[flops]["inside"] else " (at the edge of the depths that were run: add some there)"
        said.append(f"{flops:.3g} FLOPs: {best}{edge}")
    if found["optimum"] is not None:
        said.append("best size: {coefficient:.3g} · C^{exponent:.3f} parameters".format(**found["optimum"]))
    if found["law"] is not None:
        said.append(
            "loss: {e:.3f} + {a:.3g} / N^{alpha:.3f} + {b:.3g} / D^{beta:.3f} (± {error:.4f})".format(**found["law"])
        )
    return said
