"""tinylm-obs · look into a model while it trains: activations, gradients, updates, per layer.

    watch = obs.watch(model, run, [optimizer], every=100)
    for step in range(steps):
        watch.begin(step)
        loss = ...; loss.backward(); optimizer.step()       # hooks look, on every hundredth step only
        watch.end(float(loss))                              # rows of metrics, histograms and alerts

Any torch.nn.Module, any torch.optim.Optimizer. All figures of a step come to the host in one copy. It does NOT decide
what is alarming (`alerts.py`), and does NOT see activations inside a compiled model. Next: `diagnosis.py`, which finds
the layer where a NaN began.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from . import diagnosis
from ._errors import ObservabilityError
from ._run import Run
from .alerts import Alerts, Thresholds

_BINS = 32
_SAMPLED = 16_384  # numbers of a tensor that a histogram is made from, evenly spaced
_DEAD = 1e-4  # a unit is dead when no token moves it further than this share of the layer's root mean square


class Watch:
    """Looks at a model every so many steps; made by `watch`."""

    def __init__(
        self,
        model: Any,
        run: Run,
        optimizers: Iterable[Any],
        every: int,
        thresholds: Thresholds | None,
        activations: bool,
    ) -> None:
        if type(every) is not int or every < 1:
            raise ObservabilityError(f"wanted a whole number of steps >= 1 between two looks, got {every!r}")
        self.model, self.run, self.every = model, run, every
        self.alerts = Alerts(lambda kind, layer, message, step: run.alert(kind, layer, message, step), thresholds)
        self._step = 0
        self._activations = activations
        self._figures: dict[tuple[str, str], Any] = {}  # (what, layer) → a tensor of one number, on the device
        self._histograms: dict[str, tuple[Any, Any]] = {}
        self._peaks: dict[str, Any] = {}
        self._before: dict[int, list[Any]] = {}
        self._hooks: list[Any] = []
        self._layer_of = {
            id(parameter): name or "(model)"
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        self._always = [
            handle
            for optimizer in optimizers
            for handle in (
                optimizer.register_step_pre_hook(self._before_update),
                optimizer.register_step_post_hook(self._after_update),
            )
        ]

    @property
    def due(self) -> bool:
        """Whether the step that has begun is one of those looked at."""
        return self._step % self.every == 0

    def begin(self, step: int) -> None:
        """A step begins: on every `every`-th one, hooks go onto the modules until `end`."""
        self._step = step
        self._clear()
        if self.due and self._activations:
            self._look()

    def probe(self, forward: Callable[[], object]) -> None:
        """On a step that is due: a forward pass of its own to take activations from, without gradients. For models
        whose training pass must not be looked into: compiled, sharded, computed twice."""
        if self.due:
            self._look()
            with _torch().no_grad():
                forward()
            self._take_off()

    def attention(self, patterns: Mapping[str, Any]) -> None:
        """Attention probabilities (batch, heads, queries, keys) per layer, of a step that is due; of a TinyLM model
        the taps `blocks.<i>.attention.pattern` are such. The first eight queries, which have little choice, are left
        out."""
        torch = _torch()
        for layer, pattern in patterns.items():
            rows = pattern.detach()[:, :, 8:].float()
            if rows.numel():
                self._peaks[layer.removesuffix(".pattern")] = rows.amax(-1).mean((0, 2))
                entropy = torch.special.entr(rows).sum(-1).mean()
                self._figures["attention_entropy", layer.removesuffix(".pattern")] = entropy

    def end(self, loss: float | None = None) -> None:
        """The step is over: write what was seen, and alert. loss: this step's, every step, for spikes and plateaus."""
        if self._figures or self._peaks:
            self._write()
        if loss is not None:
            self.alerts.loss(self._step, loss)
        self._clear()

    def diagnose(self, loss_function: Callable[[], Any], step: int) -> str:
        """Find where a loss or gradient that is not finite begins: forward and backward once more, looking at every
        module. Writes an alert and returns it as "layer: message". Before the optimiser has stepped the weights are
        those that gave the loss; gradients are left alone."""
        self._clear()
        layer, message = diagnosis.origin(self.model, loss_function)
        self.alerts.found("nan", layer, message, step)
        return f"{layer}: {message}"

    def close(self) -> None:
        """Take all hooks off."""
        self._clear()
        while self._always:
            self._always.pop().remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _look(self) -> None:
        for name, module in self.model.named_modules():
            if name:
                self._hooks.append(module.register_forward_hook(self._activation(name)))

    def _take_off(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _clear(self) -> None:
        self._take_off()
        self._figures, self._histograms, self._peaks, self._before = {}, {}, {}, {}

    def _activation(self, name: str) -> Callable[[Any, Any, Any], None]:
        torch = _torch()

        def hook(module: Any, inputs: Any, output: Any) -> None:
            with torch.no_grad():
                x = diagnosis.first_tensor(output)
                if x is not None and x.is_floating_point() and x.numel():
                    size = torch.linalg.vector_norm(x, dtype=torch.float32)
                    self._figures["activation_rms", name] = size / x.numel() ** 0.5
                    low, high = torch.aminmax(x)
                    self._figures["activation_max", name] = torch.maximum(high, -low)
                if isinstance(module, torch.nn.Linear) and inputs:
                    self._figures["dead_units", name] = _dead(inputs[0])

        return hook

    def _before_update(self, optimizer: Any, *_: object) -> None:
        if not self.due:
            return
        torch = _torch()
        with torch.no_grad():
            own = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if not own:
                return
            gradients = [parameter.grad for parameter in own]
            kinds = [torch.promote_types(gradient.dtype, torch.float32) for gradient in gradients]  # some have 16 bits
            norms = [torch.linalg.vector_norm(g, dtype=kind) for g, kind in zip(gradients, kinds, strict=True)]
            self._sum_squares("gradient_norm", own, norms)
            self._sum_squares("weight_norm", own, torch._foreach_norm(own))
            for parameter in own:
                layer = self._layer_of.get(id(parameter), "(model)")
                if f"gradient/{layer}" not in self._histograms:  # the weight; a bias comes after it
                    self._histograms[f"gradient/{layer}"] = _histogram(parameter.grad)
                    self._histograms[f"weight/{layer}"] = _histogram(parameter.detach())
            self._before[id(optimizer)] = [parameter.detach().clone() for parameter in own]

    def _after_update(self, optimizer: Any, *_: object) -> None:
        before = self._before.pop(id(optimizer), None)
        if before is None:
            return
        torch = _torch()
        with torch.no_grad():
            own = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_sub_(before, [parameter.detach() for parameter in own])
            self._sum_squares("update_norm", own, torch._foreach_norm(before))

    def _sum_squares(self, what: str, parameters: list[Any], norms: Iterable[Any]) -> None:
        """Norms of parameters → squared norms of layers (a layer: a module with its weight and bias)."""
        for parameter, norm in zip(parameters, norms, strict=True):
            key = (what, self._layer_of.get(id(parameter), "(model)"))
            square = norm.float() ** 2
            self._figures[key] = self._figures[key] + square if key in self._figures else square

    def _write(self) -> None:
        figures = self._on_host()
        found: dict[str, dict[str, float]] = {}
        for (what, layer), value in figures.items():
            found.setdefault(what, {})[layer] = value**0.5 if what.endswith("_norm") else value
        weights = found.get("weight_norm", {})
        moved = {layer: norm / weights[layer] for layer, norm in found.get("update_norm", {}).items() if weights[layer]}
        if moved:
            found["update_ratio"] = moved
            found.pop("update_norm")
        row = {f"{what}/{layer}": value for what, layers in found.items() for layer, value in layers.items()}
        self.run.log(row, step=self._step)
        self.alerts.activations(self._step, found.get("activation_max", {}))
        places = {layer: place for place, layer in enumerate(self._layer_of.values())}
        norms = found.get("gradient_norm", {}).items()  # in the optimisers' order; alerts want the model's
        self.alerts.gradients(self._step, dict(sorted(norms, key=lambda one: places.get(one[0], -1))))
        self.alerts.updates(moved)
        self.alerts.dead_units(self._step, found.get("dead_units", {}))

    def _on_host(self) -> dict[tuple[str, str], float]:
        """Every figure, peak and histogram, in one copy per device."""
        torch = _torch()
        parts: list[Any] = [value.reshape(1).double() for value in self._figures.values()]
        parts += [peaks.double() for peaks in self._peaks.values()]
        parts += [part.reshape(-1).double() for pair in self._histograms.values() for part in pair]
        by_device: dict[Any, list[int]] = {}
        for index, part in enumerate(parts):
            by_device.setdefault(part.device, []).append(index)
        lists: list[list[float]] = [[] for _ in parts]
        for indices in by_device.values():
            flat = torch.cat([parts[index] for index in indices]).tolist()
            for index in indices:
                count = parts[index].numel()
                lists[index], flat = flat[:count], flat[count:]
        values = iter(lists)
        figures = {key: next(values)[0] for key in self._figures}
        self.alerts.attention(self._step, {layer: next(values) for layer in self._peaks})
        for name in self._histograms:
            (largest,), counts = next(values), next(values)
            edges = [float(f"{largest * (2 * i / _BINS - 1):.6g}") for i in range(_BINS + 1)]
            self.run.histogram(name, [int(count) for count in counts], edges, self._step)
        return figures


def watch(
    model: Any,
    run: Run,
    optimizers: Iterable[Any] = (),
    every: int = 100,
    thresholds: Thresholds | None = None,
    activations: bool = True,
) -> Watch:
    """Watch a torch.nn.Module while it trains.

    Every `every` steps (0, every, 2 · every, ...) a row of metrics gets, per module: "activation_rms/NAME",
    "activation_max/NAME", "dead_units/NAME" (of torch.nn.Linear: the share of its inputs that no token moves), and per
    module with parameters "gradient_norm/NAME" (as the optimiser sees it: after clipping), "weight_norm/NAME",
    "update_ratio/NAME" (the step's change of its weights over their norm); histograms.jsonl gets "gradient/NAME" and
    "weight/NAME". activations=False puts no hooks on the training pass; `Watch.probe` then gives them. Raises
    ObservabilityError for `every` below 1.
    """
    return Watch(model, run, optimizers, every, thresholds, activations)


def _dead(x: Any) -> Any:
    """The share of the last axis's units of x (..., units) whose largest absolute value over all tokens is nearly 0."""
    torch = _torch()
    x = x.detach().reshape(-1, x.shape[-1])
    low, high = torch.aminmax(x, dim=0)
    size = torch.linalg.vector_norm(x, dtype=torch.float32) / x.numel() ** 0.5
    return (torch.maximum(high, -low).float() <= _DEAD * size).float().mean()


def _histogram(x: Any) -> tuple[Any, Any]:
    """(largest absolute value, counts in 32 equal bins from minus that to plus that) of evenly spaced numbers of x."""
    torch = _torch()
    flat = x.detach().reshape(-1)
    flat = flat[:: max(1, flat.numel() // _SAMPLED)].float()
    flat = flat.nan_to_num(0, 0, 0)
    largest = flat.abs().max()
    bins = ((flat / largest.clamp_min(1e-45) + 1) * (_BINS / 2)).long().clamp(0, _BINS - 1)
    return largest, torch.bincount(bins, minlength=_BINS)


def _torch() -> Any:
    import torch  # a model at hand means that it is loaded

    return torch
