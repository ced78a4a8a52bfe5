# SPDX-License-Identifier: Apache-2.0
"""calibrate: which ranges are set, to what, and what is left as it was."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.nn import TernaryLayer, fake_quant
from ternary_ops.quantize import TernaryConfig, calibrate, plan, quantize_
from ternary_ops.quantize.histogram import METHODS, Histogram

UNSET = (None, None)


class Residual(nn.Module):
    """Stem and pool, a block with a shortcut, an average, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.short = nn.Conv2d(8, 8, 1)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 4)
        self.unused = nn.Linear(4, 4)

    def body(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.pool(F.relu(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = self.short(x)
        return x, short, F.relu(y + short)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)[2].mean((2, 3))
        return self.fc(self.drop(y))


def layers(model: nn.Module) -> dict[str, TernaryLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, TernaryLayer)}


def ranges(model: nn.Module) -> dict[str, tuple[Any, Any]]:
    def values(t: Tensor) -> Any:
        return None if t.isnan().any() else tuple(t.tolist())

    return {n: (values(m.input_range), values(m.output_range)) for n, m in layers(model).items()}


def bounds(x: Tensor) -> tuple[float, float]:
    return min(x.min().item(), 0.0), max(x.max().item(), 0.0)


@pytest.fixture
def model() -> Residual:
    model = Residual()
    quantize_(model, TernaryConfig())
    return model


def data(n: int = 3) -> list[Tensor]:
    return [torch.randn(4, 3, 8, 8) for _ in range(n)]


def test_minmax_sets_every_input_and_the_outputs_nobody_reads(model: Residual) -> None:
    batches = data()
    model.train()
    calibrate(model, batches, method="minmax")
    assert all(m.training for m in model.modules())
    found = ranges(model)
    assert found.pop("unused") == UNSET
    model.eval()
    for layer in layers(model).values():  # look at the float network
        layer.input_range.data.fill_(float("nan"))
    with torch.no_grad():
        x, short, y = model.body(torch.cat(batches))
        hidden = F.relu(model.bn1(model.conv1(x)))
    want = {
        "stem": (bounds(torch.cat(batches)), None),
        "conv1": (bounds(x), None),
        "conv2": (bounds(hidden), bounds(y)),
        "short": (bounds(x), bounds(short)),
        "fc": (bounds(y.mean((2, 3))), None),
    }
    for name, (read, made) in want.items():
        assert found[name][0] == pytest.approx(read, rel=1e-5), name
        assert (found[name][1] is None) == (made is None), name
        if made is not None:
            assert found[name][1] == pytest.approx(made, rel=1e-5), name


@pytest.mark.parametrize("method", METHODS)
def test_calibrating_again_gives_the_same(model: Residual, method: str) -> None:
    batches = data()
    calibrate(model, batches, method)
    first = ranges(model)
    assert model.training
    calibrate(model, ((x, torch.zeros(4)) for x in batches), method)  # pairs, from a generator
    assert ranges(model) == first
    calibrate(model, reversed(batches), method)
    assert ranges(model) == first


def test_ranges_make_the_quantized_network_close_to_the_float_one(model: Residual) -> None:
    batches = data()
    model.eval()
    with torch.no_grad():
        want = model(batches[0])
        calibrate(model, batches)
        error = (model(batches[0]) - want).norm() / want.norm()
    assert 0 < error < 0.05


def test_layers_with_float_activations_are_left_alone() -> None:
    model = Residual()
    rules = {"conv*": TernaryConfig(activations="float32")}
    quantize_(model, plan(model, rules=rules))
    calibrate(model, data())
    found = ranges(model)
    assert found["conv1"] == found["conv2"] == UNSET
    assert found["stem"][0] is not None
    assert found["stem"][1] is None  # `short` reads it too, through the pool


def test_a_dead_network_gets_an_empty_range(model: Residual) -> None:
    model.stem.bias.data.fill_(-1e3)
    calibrate(model, data())
    assert ranges(model)["conv1"][0] == (0.0, 0.0)
    assert model(data(1)[0]).isfinite().all()


class TwoHeads(nn.Module):
    """The value of `conv` leaves the network, flattened, and is averaged as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(self.first(x))
        return y.flatten(1), y.mean((2, 3))


def test_an_output_that_is_also_averaged_gets_its_range() -> None:
    model = TwoHeads()
    quantize_(model, TernaryConfig())
    calibrate(model, data())
    found = ranges(model)
    assert found["first"][1] is None and found["conv"][1] is not None


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 1e9 else self.two(x)


def test_a_model_that_cannot_be_traced_gets_its_input_ranges(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(Branching(), nn.ReLU(), nn.Linear(4, 2))
    quantize_(model, TernaryConfig())
    with caplog.at_level(logging.WARNING):
        calibrate(model, [torch.randn(8, 4)])
    found = ranges(model)
    assert found["0.two"][0] is not None and found["2"][0] is not None
    assert found["0.one"] == UNSET
    text = caplog.text
    assert "control flow" in text and "0.one was never computed" in text


@pytest.mark.parametrize(
    ("batches", "error", "match"),
    [
        ([], UnsupportedModel, "at least one sample"),
        ([torch.zeros(0, 3, 8, 8)], UnsupportedModel, "at least one sample"),
        ([{"y": torch.zeros(1)}], UnsupportedModel, "'x', and labels, got y"),
        ([torch.full((1, 3, 8, 8), float("nan"))], UnsupportedModel, "the input of stem"),
        ([torch.zeros(1, 5, 8, 8)], ValueError, "TernaryConv2d"),
    ],
)
def test_bad_batches_leave_the_ranges_as_they_were(
    model: Residual, batches: list[Any], error: type[Exception], match: str
) -> None:
    calibrate(model, data())
    before = ranges(model)
    with pytest.raises(error, match=match):
        calibrate(model, [*data(1), *batches] if batches and "sample" not in match else batches)
    assert ranges(model) == before and model.training


def test_bad_arguments(model: Residual) -> None:
    with pytest.raises(BadConfig, match="'minmax', 'percentile', 'mse'"):
        calibrate(model, data(), method="entropy")
    with pytest.raises(BadConfig, match="percentile"):
        calibrate(model, data(), method="percentile", percentile=40)
    with pytest.raises(UnsupportedModel, match="quantize_"):
        calibrate(Residual(), data())


def test_rules_choose_the_method_of_some_layers(model: Residual) -> None:
    batches = data()
    found = {}
    for method in METHODS:
        calibrate(model, batches, method, percentile=99.0)
        found[method] = ranges(model)
    rules: dict[str, str | float] = {"conv*": "minmax", "conv2": "percentile", "fc": 99.0}
    calibrate(model, batches, "mse", percentile=99.0, rules=rules)
    mixed = ranges(model)
    want = {"conv1": "minmax", "conv2": "percentile", "fc": "percentile"}
    for name, value in mixed.items():
        assert value == found[want.get(name, "mse")][name], name
    for name in ("conv1", "conv2"):  # the methods can be told apart
        assert found["percentile"][name] != found["minmax"][name], name


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"conv9": "mse"}, "stem, conv1"),
        ({"conv1": "entropy"}, "'entropy'"),
        ({"conv1": 30.0}, "50 to 100"),
        ({"conv1": None}, "None"),
    ],
)
def test_bad_rules(model: Residual, rules: dict[str, Any], match: str) -> None:
    calibrate(model, data())
    before = ranges(model)
    with pytest.raises(BadConfig, match=match):
        calibrate(model, data(), rules=rules)
    assert ranges(model) == before


def test_learned_ranges_start_from_calibration_and_stay_exact() -> None:
    """Training narrows a range that an outlier widened; state_dict carries it; the program of the
    trained network computes what the network does.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    float_twin = copy.deepcopy(model)
    quantize_(model, TernaryConfig(weights="int8"))
    x = torch.randn(64, 3, 8, 8)
    calibrate(model, [torch.cat([x, torch.full((1, 3, 8, 8), 60.0)])], method="minmax")
    learned = [m.input_shift for m in layers(model).values()]
    before = [m.input_range.detach() for m in layers(model).values()]
    with torch.no_grad():
        want, first = float_twin(x), F.mse_loss(model(x), float_twin(x)).item()
    optimizer = torch.optim.Adam(learned, lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(model(x), want).backward()
        optimizer.step()
    with torch.no_grad():
        assert F.mse_loss(model(x), want).item() < 0.5 * first
    after = [m.input_range for m in layers(model).values()]
    assert all(r[1] < b[1] for r, b in zip(after, before, strict=True))
    state = model.state_dict()
    assert all(
        torch.equal(state[f"{n}.input_shift"], m.input_shift) for n, m in layers(model).items()
    )
    program = tops.compile(model, x)
    np.testing.assert_array_equal(program(x.numpy()), model(x).detach().numpy())


def seen(*parts: Tensor) -> Histogram:
    histogram = Histogram("x")
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.mark.parametrize("waited_for", [False, True])
def test_ranges_set_in_the_middle_of_training_stay_finite(
    monkeypatch: pytest.MonkeyPatch, waited_for: bool
) -> None:
    # With momentum and weight decay, what an unset range holds must not reach a set one.
    torch.manual_seed(2)
    model, x = Residual(), torch.randn(8, 3, 8, 8)
    quantize_(model, plan(model, TernaryConfig(zeros=0.5)))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-2)
    pruner = tops.prune.Pruner(model, total_steps=8, optimizer=optimizer) if waited_for else None
    # Only DistributedDataParallel asks for gradients of unset ranges.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: waited_for)
    for step in range(8):
        if step == 4:
            calibrate(model, [x])
            before = ranges(model)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
    after = ranges(model)
    for name, (lo_hi, _) in before.items():
        if lo_hi is not None:
            assert after[name][0] is not None, name
            assert layers(model)[name].input_shift.any(), name
            assert np.allclose(after[name][0], lo_hi, rtol=0.2, atol=0.2), name
    assert sum(lo_hi is not None for lo_hi, _ in before.values()) >= 5


def test_percentiles_of_a_normal_distribution() -> None:
    x = torch.randn(200_000) * 3 + 0.5
    lo, hi = seen(*x.split(7000)).range("percentile", 99.0)
    assert lo == pytest.approx(x.quantile(0.01).item(), abs=0.02)
    assert hi == pytest.approx(x.quantile(0.99).item(), abs=0.02)
    assert seen(x).range("percentile", 100.0) == pytest.approx(bounds(x), rel=1e-3)
    assert seen(x.abs() + 1).range("percentile", 99.0)[0] == 0.0


def error(x: Tensor, lo: float, hi: float) -> float:
    q, scale = fake_quant.quantize(x, torch.tensor([lo, hi]))
    return (q * scale - x).double().square().sum().item()


@pytest.mark.parametrize("kind", ["normal", "outlier", "relu", "uniform"])
def test_mse_beats_the_other_methods_at_what_it_minimizes(kind: str) -> None:
    x = torch.randn(100_000)
    if kind == "outlier":
        x[:20] *= 40
    elif kind == "relu":
        x = F.relu(x) ** 3
    elif kind == "uniform":
        x = torch.rand(100_000) * 5 - 1
    histogram = seen(x)
    found = error(x, *histogram.range("mse", 0.0))
    for method in ("minmax", "percentile"):
        assert found <= 1.001 * error(x, *histogram.range(method, 99.99))
    lo, hi = bounds(x)
    grid = [error(x, lo * a / 20, hi * b / 20) for a in range(1, 21) for b in range(1, 21)]
    assert found <= 1.02 * min(grid)
    if kind == "outlier":
        assert found < 0.9 * error(x, lo, hi)


def test_counts_do_not_depend_on_the_order() -> None:
    parts = [torch.randn(500) * 10.0**e for e in (-6, -2, 0, 3)]
    one, two = seen(*parts), seen(*reversed(parts))
    assert torch.equal(one._counts, two._counts) and one.count == 2000
    assert one._counts.sum() == 2000
    counts, _ = np.histogram(torch.cat(parts), 8192, (-one._limit, one._limit))
    assert torch.equal(one._counts, torch.from_numpy(counts).double())


def test_values_that_are_not_finite_or_absent() -> None:
    with pytest.raises(UnsupportedModel, match="from -1.0 to inf"):
        seen(torch.tensor([-1.0, float("inf")]))
    assert seen(torch.empty(0)).count == 0
    assert seen(torch.zeros(5)).range("mse", 0.0) == (0.0, 0.0)


def test_weights_are_rounded_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded: list[int] = []
    real = tops.nn.TernaryLayer._training_weight

    def counted(self: tops.nn.TernaryLayer) -> tuple[Tensor, Tensor | None]:
        rounded.append(id(self))
        return real(self)

    monkeypatch.setattr(tops.nn.TernaryLayer, "_training_weight", counted)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    x = torch.randn(9, 8)
    tops.quantize_(model, tops.TernaryConfig("int8"))
    tops.calibrate(model, torch.split(x, 3))
    assert len(rounded) == len(set(rounded)) == 2
    with torch.no_grad():
        before = model(x)
        model[0].weight.mul_(2.0)
        assert not torch.equal(model(x), before)  # nothing is held any more
