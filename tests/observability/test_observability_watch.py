"""Watching a model: per-layer figures against torch's own, alerts that name the layer and the step, throughput."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinylm import observability as obs
from tinylm.observability import alerts, throughput

torch = pytest.importorskip("torch")


def network() -> Any:
    """Four layers of 8 units with a ReLU in each, named layers.0 to layers.3."""
    torch.manual_seed(0)
    layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(4)]
    return torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers), "head": torch.nn.Linear(8, 1)})


def forward(model: Any, x: Any) -> Any:
    for layer in model["layers"]:
        x = layer(x)
    return model["head"](x).square().mean()


def trained(model: Any, run: obs.Run, steps: int, every: int) -> tuple[obs.Watch, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = obs.watch(model, run, [optimizer], every=every)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    for step in range(steps):
        watch.begin(step)
        optimizer.zero_grad()
        loss = forward(model, x)
        loss.backward()
        optimizer.step()
        run.log({"loss": float(loss.detach())}, step=step)
        watch.end(float(loss.detach()))
    return watch, x


def test_figures_equal_what_torch_says(tmp_path: Path) -> None:
    model = network()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with obs.init(tmp_path) as run:
        watch, x = trained(model, run, 1, 10)
        watch.close()
    row = obs.read_metrics(tmp_path)[0]
    hidden = x
    reference = network()
    for index, layer in enumerate(reference["layers"]):
        hidden = layer(hidden)
        assert row[f"activation_rms/layers.{index}"] == pytest.approx(float(hidden.detach().square().mean() ** 0.5))
        assert row[f"activation_max/layers.{index}"] == pytest.approx(float(hidden.detach().abs().max()))
    forward(reference, x).backward()
    linear = reference["layers"][2][0]
    gradient = float((linear.weight.grad.square().sum() + linear.bias.grad.square().sum()) ** 0.5)
    assert row["gradient_norm/layers.2.0"] == pytest.approx(gradient)
    old, new = before["layers.2.0.weight"], model["layers"][2][0].weight.detach()
    bias, moved = before["layers.2.0.bias"], model["layers"][2][0].bias.detach()
    weight = float((old.square().sum() + bias.square().sum()) ** 0.5)
    update = float(((new - old).square().sum() + (moved - bias).square().sum()) ** 0.5)
    assert row["weight_norm/layers.2.0"] == pytest.approx(weight)
    assert row["update_ratio/layers.2.0"] == pytest.approx(update / weight, rel=1e-4)
    assert "update_norm/layers.2.0" not in row
    (histogram,) = [one for one in obs.read_histograms(tmp_path) if one["name"] == "weight/layers.2.0"]
    counts = torch.histc(old, 32, -float(old.abs().max()), float(old.abs().max())).int().tolist()
    assert histogram["counts"] == counts
    assert histogram["edges"][-1] == pytest.approx(float(old.abs().max()), rel=1e-5)


def test_it_looks_at_the_chosen_steps_only_and_changes_nothing(tmp_path: Path) -> None:
    watched, plain = network(), network()
    with obs.init(tmp_path / "a") as run:
        watch, _ = trained(watched, run, 7, 3)
        watch.close()
    rows = obs.read_metrics(tmp_path / "a")
    assert [row["step"] for row in rows if "gradient_norm/head" in row] == [0, 3, 6]
    with obs.init(tmp_path / "b") as run:
        trained(plain, run, 7, 1000)[0].close()
    for ours, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(module._forward_hooks for module in watched.modules())
    with pytest.raises(obs.ObservabilityError, match="wanted a whole number of steps"):
        obs.watch(watched, run, every=0)


@pytest.mark.parametrize("weight", ["weight", "bias"])
def test_a_nan_planted_in_layer_3_is_named(tmp_path: Path, weight: str) -> None:
    model = network()
    with obs.init(tmp_path) as run:
        watch, x = trained(model, run, 6, 5)
        with torch.no_grad():
            getattr(model["layers"][3][0], weight).view(-1)[2] = float("nan")
        said = watch.diagnose(lambda: forward(model, x), 6)
        assert said.startswith(f"layers.3.0: its output is not finite, what it was given is; 1 numbers of its {weight}")
        watch.begin(6)
        watch.end(float("nan"))  # does not say it a second time under another name
    (alert,) = obs.read_alerts(tmp_path)
    assert (alert["alert"], alert["layer"], alert["step"]) == ("nan", "layers.3.0", 6)


def test_a_nan_that_begins_in_the_backward_pass_is_named(tmp_path: Path) -> None:
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(context: Any, dy: Any) -> Any:
            return dy * float("nan")

    class Spoils(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            return Spoilt.apply(super().forward(x))

    model = network()
    model["layers"][1][0] = Spoils(8, 8)
    with obs.init(tmp_path) as run:
        watch = obs.watch(model, run)
        assert watch.diagnose(lambda: forward(model, torch.randn(4, 8)), 9).startswith("layers.1.0: its gradient")
        sound = network()
        with obs.watch(sound, run) as other:
            assert "every module's output and gradient is finite" in other.diagnose(
                lambda: forward(sound, torch.randn(4, 8)), 9
            )


def test_dead_units_are_counted_and_named(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model["layers"][1][0].bias[:6] = -100.0  # ReLU never opens for six of eight
    with obs.init(tmp_path) as run:
        trained(model, run, 1, 1)[0].close()
    assert obs.read_metrics(tmp_path)[0]["dead_units/layers.2.0"] == 0.75
    named = [(one["layer"], one["alert"]) for one in obs.read_alerts(tmp_path)]
    assert ("layers.2.0", "dead units") in named


def test_a_probe_gives_activations_where_the_training_pass_is_left_alone(tmp_path: Path) -> None:
    model = network()
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    with obs.init(tmp_path) as run, obs.watch(model, run, every=2, activations=False) as watch:
        for step in (0, 1):
            watch.begin(step)
            watch.probe(lambda: forward(model, x[:4]))
            assert not any(module._forward_hooks for module in model.modules())
            watch.end(float(forward(model, x).detach()))
    (row,) = obs.read_metrics(tmp_path)
    hidden = model["layers"][0](x[:4]).detach()
    assert row["activation_rms/layers.0"] == pytest.approx(float(hidden.square().mean() ** 0.5))


def test_saturated_attention_is_named(tmp_path: Path) -> None:
    even = torch.ones(1, 2, 16, 16).tril() / torch.arange(1, 17)[:, None]
    stuck = even.clone()
    stuck[:, 1] = 0.0
    stuck[:, 1, :, 0] = 1.0
    with obs.init(tmp_path) as run, obs.watch(network(), run) as watch:
        watch.begin(0)
        watch.attention({"blocks.0.attention.pattern": even, "blocks.1.attention.pattern": stuck})
        watch.end(1.0)
    row = obs.read_metrics(tmp_path)[0]
    expected = float(torch.log(torch.arange(9, 17).float()).mean())
    assert row["attention_entropy/blocks.0.attention"] == pytest.approx(expected)
    (alert,) = obs.read_alerts(tmp_path)
    assert (alert["alert"], alert["layer"]) == ("saturated attention", "blocks.1.attention")
    assert alert["message"].startswith("1 of 2 heads (1)")


@pytest.fixture
def heard() -> tuple[list[tuple[str, str, int]], Callable[[str, str, str, int], None]]:
    said: list[tuple[str, str, int]] = []
    return said, lambda kind, layer, message, step: said.append((kind, layer, step))


def test_a_spike_names_the_layer_whose_gradient_rose(heard: Any) -> None:
    said, report = heard
    watched = alerts.Alerts(report)
    for step in range(60):
        watched.loss(step, 3 + 0.05 * (step % 3))
        if step % 10 == 0:
            watched.gradients(step, {"blocks.0": 1.0, "blocks.1": 1.0 + (5.0 if step == 50 else 0.0)})
    assert said == []
    watched.loss(60, 9.0)
    watched.loss(61, 9.0)  # still the same spike
    assert said == [("spike", "blocks.1", 60)]
    watched.loss(62, 3.0)
    watched.gradients(62, {"blocks.0": 40.0})
    assert said[1:] == [("spike", "blocks.0", 62)]


def test_a_plateau_is_reported_once_and_names_the_layer_that_moves_least(heard: Any) -> None:
    said, report = heard
    watched = alerts.Alerts(report, alerts.Thresholds(plateau=100))
    watched.updates({"blocks.0": 1e-3, "blocks.1": 1e-6})
    for step in range(200):
        watched.loss(step, 5 - 0.02 * step)
    assert said == []
    for step in range(200, 400):
        watched.loss(step, 1.0)
    assert [one[:2] for one in said] == [("plateau", "blocks.1")]
    assert 250 <= said[0][2] <= 320


def test_a_loss_that_is_not_finite_is_an_alert(heard: Any) -> None:
    said, report = heard
    watched = alerts.Alerts(report)
    watched.loss(3, float("inf"))
    watched.activations(4, {"a": 1.0, "b": float("nan"), "c": float("nan")})
    watched.gradients(5, {"d": float("nan")})
    assert said == [("nan", "loss", 3), ("nan", "b", 4), ("nan", "d", 5)]


def test_flops_and_mfu() -> None:
    assert throughput.flops_per_token(100, 2, 4, 8) == 6 * 100 + 12 * 2 * 4 * 8
    model = torch.nn.Linear(16, 32, bias=False)
    assert throughput.count_flops(lambda: model(torch.randn(8, 16)).sum().backward()) == 2 * 2 * 8 * 16 * 32
    figures = obs.Throughput(flops_per_token=1000, peak=1e6)(tokens=50, seconds=0.1)
    assert figures == {"tokens_per_second": 500.0, "flops_per_second": 500_000.0, "mfu": 0.5}
    assert "mfu" not in obs.Throughput(1000)(50, 0.1)
    with pytest.raises(obs.ObservabilityError, match="above 0"):
        obs.Throughput(0)


def test_a_nan_that_went_and_comes_again_is_said_again() -> None:
    found: list[tuple[str, str, int]] = []
    watched = alerts.Alerts(lambda kind, layer, message, step: found.append((kind, layer, step)))
    for step in range(8):
        odd = float("nan") if step in (2, 3, 6) else 1.0
        watched.activations(step, {"a": 1.0, "b": odd})
        watched.gradients(step, {"b": odd, "c": odd})
        watched.loss(step, odd)
    assert found == [("nan", layer, step) for step in (2, 6) for layer in ("b", "c")]
    watched.loss(8, float("nan"))
    watched.gradients(8, {"b": 1.0, "c": 1.0})
    for step, loss in ((9, 1.0), (10, float("nan")), (11, float("nan"))):
        watched.loss(step, loss)
    assert [step for *_, step in found[4:]] == [8, 10]


def test_nan_in_every_gradient_is_one_alert_and_names_the_layer_that_the_backward_pass_came_to_first(
    tmp_path: Path,
) -> None:
    model = network()
    backwards = torch.optim.SGD(list(model.parameters())[::-1], lr=0.01)  # an order that is not the model's
    with obs.init(tmp_path) as run, obs.watch(model, run, [backwards], every=1) as watch:
        for step in range(2):
            watch.begin(step)
            backwards.zero_grad()
            loss = forward(model, torch.ones(2, 8))
            loss.backward()
            if step == 1:
                for layer in model["layers"]:
                    layer[0].bias.grad.fill_(float("nan"))
            backwards.step()
            watch.end(float(loss.detach()))
    named = [one for one in obs.read_alerts(tmp_path) if one["alert"] == "nan"]
    message = "its gradient norm is nan, as in 3 other layers"
    assert [(one["layer"], one["message"]) for one in named] == [("layers.3.0", message)]


def test_nan_in_the_gradient_of_a_parameter_that_is_not_the_models_is_an_alert(tmp_path: Path) -> None:
    model, other = network(), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*model.parameters(), other], lr=0.01)
    with obs.init(tmp_path) as run, obs.watch(model, run, [optimizer], every=1) as watch:
        watch.begin(0)
        loss = forward(model, torch.ones(2, 8)) + (other * float("nan")).nansum()
        loss.backward()
        optimizer.step()
        watch.end(float(loss.detach()))
    assert [one["layer"] for one in obs.read_alerts(tmp_path) if one["alert"] == "nan"] == ["(model)"]


def test_flops_of_attention_on_a_cpu_and_of_products_in_place_are_counted() -> None:
    a, b, vector = torch.ones(8, 16), torch.ones(16, 4), torch.ones(16)
    q, k = (torch.ones(2, 3, length, 16, requires_grad=True) for length in (32, 24))
    pairs = 2 * 3 * 32 * 24

    def attention() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, k)

    assert throughput.count_flops(attention) == pairs * 2 * 2 * 16
    assert throughput.count_flops(lambda: attention().sum().backward()) == pairs * 2 * 7 * 16
    assert throughput.count_flops(lambda: torch.zeros(8, 4).addmm_(a, b)) == 2 * 8 * 16 * 4
    assert throughput.count_flops(lambda: torch.zeros(2, 8, 4).baddbmm_(a.expand(2, 8, 16), b.expand(2, 16, 4))) == (
        2 * 2 * 8 * 16 * 4
    )
    assert throughput.count_flops(lambda: a @ vector) == 2 * 8 * 16
