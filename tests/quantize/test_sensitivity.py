# SPDX-License-Identifier: Apache-2.0
"""sensitivity and fallback_: figures by hand, the culprit found, the model put back."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Any

import fake_quant
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.nn import TernaryLayer
from ternary_ops.program.interpret import simulate
from ternary_ops.quantize import TernaryConfig
from ternary_ops.quantize.layer_sensitivity import _effect

INT8 = TernaryConfig(weights="int8")


class Net(nn.Module):
    """Convolutions, a residual add, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        return self.fc(x.mean((2, 3)))


def data(n: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(n)]


def make(rules: dict[str, Any] | None = None) -> tuple[Net, nn.Module]:
    """A float network and its quantized, calibrated twin."""
    torch.manual_seed(3)
    model = Net().eval()
    with torch.no_grad():  # every class wins somewhere
        model.fc.bias -= model(torch.cat(data())).mean(0)
    float_twin = copy.deepcopy(model)
    config = TernaryConfig(zeros=0.0, pattern="element")
    tops.quantize_(model, tops.plan(model, config, rules=rules))
    tops.calibrate(model, data())
    return float_twin, model


def state(model: nn.Module) -> list[Any]:
    """Everything fallback_ and sensitivity touch."""
    found: list[Any] = [m.training for m in model.modules()]
    for layer in model.modules():
        if isinstance(layer, TernaryLayer):
            found += [layer.config, layer.phase, layer.input_range.requires_grad]
            found += layer.input_range.tolist()
    return found


def rows(report: tops.quantize.SensitivityReport) -> dict[tuple[str, str], Any]:
    return {(row.name, row.part): row for row in report.rows}


def test_every_row_is_what_quantizing_that_part_alone_does() -> None:
    float_twin, model = make({"b": INT8})
    model.train()
    before = state(model)
    report = tops.sensitivity(model, data())
    assert state(model) == before
    assert report.samples == 32
    x = torch.cat(data())
    with torch.no_grad():
        want = float_twin(x).double()
        for name in ("stem", "a", "b", "fc"):
            quantized = dict(model.named_modules())[name]
            assert isinstance(quantized, (tops.nn.TernaryConv2d, tops.nn.TernaryLinear))
            twin = copy.deepcopy(float_twin)
            setattr(twin, name, quantized.to_float())  # weights alone
            noise = ((twin(x) - want).square().sum() / want.square().sum()).item()
            row = rows(report)[name, "weights"]
            assert row.effect.sqnr == pytest.approx(-10 * math.log10(noise), abs=0.2)
            assert row.form == ("ternary" if name == "a" else "int8")
            twin = copy.deepcopy(float_twin)
            only = copy.deepcopy(quantized)
            only.phase = "float"
            setattr(twin, name, only)  # activations alone
            noise = ((twin(x) - want).square().sum() / want.square().sum()).item()
            row = rows(report)[name, "activations"]
            assert row.effect.sqnr == pytest.approx(-10 * math.log10(noise), abs=0.2)
        y = model.eval()(x)
    total = ((y - want).square().sum() / want.square().sum()).item()
    assert report.total.noise == pytest.approx(total, rel=1e-3)
    assert report.total.agreement == (y.argmax(1) == want.argmax(1)).double().mean().item()
    figures = [row.effect.sqnr for row in report.rows]
    assert figures == sorted(figures)
    assert rows(report)["a", "weights"] is report.rows[0]  # ternary hurts most


def test_effect_by_hand() -> None:
    a, b = torch.randn(7, 4).double(), torch.randn(7, 4).double()
    effect = _effect([a[:3], a[3:]], [b[:3], b[3:]])
    p, q = a.softmax(1), b.softmax(1)
    assert effect.kl == pytest.approx((p * (p / q).log()).sum(1).mean().item())
    assert effect.noise == pytest.approx(((a - b) ** 2).sum().item() / (a**2).sum().item())
    assert effect.agreement == (a.argmax(1) == b.argmax(1)).double().mean().item()
    same = _effect([a], [a])
    assert same.sqnr == math.inf and same.kl == 0 and same.agreement == 1
    image = _effect([a[None]], [b[None]])
    assert image.kl is None and image.agreement is None
    assert image.noise == pytest.approx(effect.noise)


def test_a_layer_with_outliers_is_named_first_and_falls_back(tmp_path: Path) -> None:
    _, model = make({"*": INT8})
    with torch.no_grad():  # one outlier in the range of `b` leaves all else a few codes
        model.b.input_range[1] *= 200
    report = tops.sensitivity(model, data())
    worst = report.rows[0]
    assert (worst.name, worst.part, worst.form) == ("b", "activations", "uint8")
    text = str(report)
    assert text.splitlines()[2].startswith("b ") and "all at once" in text
    report.to_csv(tmp_path / "s.csv")
    with (tmp_path / "s.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(report.rows) + 1 and table[0]["layer"] == "b"
    goal = report.total.sqnr + 10
    done = tops.fallback_(model, data(), min_sqnr=goal)
    assert [c.name for c in done.changes] == ["b"]
    assert done.changes[0].after.sqnr >= goal > done.before.sqnr
    assert model.b.config.activations == "float32" and model.b.input_range.isnan().all()
    assert done.rules == {"b": model.b.config}
    assert "rank 1" in str(done) and "uint8 -> float32" in str(done)
    _, again = make({"*": INT8, **done.rules})  # the report as plan rules: the same network
    x = data()[0]
    torch.testing.assert_close(again(x), model(x))
    program = tops.compile(model, x)  # float and integer layers in one program
    np.testing.assert_allclose(
        program(x.numpy()), simulate(program.graph, x.numpy())[-1], 1e-5, 1e-5
    )


def test_ternary_weights_fall_back_to_8_bits_and_stay_pruned() -> None:
    _, model = make()
    mask = torch.rand(model.a.weight.shape) < 0.5
    model.a.mask.copy_(mask)
    report = tops.sensitivity(model, data())
    done = tops.fallback_(model, data(), min_sqnr=report.total.sqnr + 3, parts="weights")
    assert done.changes[0].change == "weights ternary -> int8"
    assert {c.name for c in done.changes} <= {"a", "b"}
    codes, _ = model.a.integer_weight()
    if "a" in done.rules:
        assert codes.abs().max() > 1 and not codes[~mask].any()


def test_targets_in_classes(caplog: pytest.LogCaptureFixture) -> None:
    float_twin, model = make()
    labelled = [(x, float_twin(x).argmax(1)) for x in data()]
    first = tops.sensitivity(model, data()).total.agreement
    assert first is not None and first < 0.9
    other = copy.deepcopy(model)
    with caplog.at_level("INFO"):
        one = tops.fallback_(model, labelled, min_agreement=0.9)
    assert one.changes and one.changes[-1].reached >= 0.9
    assert one.changes[0].name in caplog.text
    two = tops.fallback_(other, labelled, max_drop=0.1)  # these labels: drop = disagreement
    assert [c.name for c in two.changes] == [c.name for c in one.changes]
    assert two.reached_before == pytest.approx(1 - first) and two.changes[-1].reached <= 0.1
    assert not tops.fallback_(model, labelled, min_agreement=0.9).changes  # met: nothing to do


def test_what_cannot_be_reached_leaves_the_model_as_it_was() -> None:
    _, model = make()
    before, y = state(model), model(data()[0])
    for options in ({"min_sqnr": 500.0}, {"min_agreement": 1.0, "budget": 0}):
        with pytest.raises(UnsupportedModel, match="larger budget"):
            tops.fallback_(model, data(), **options)  # type: ignore[arg-type]
        assert state(model) == before
    assert torch.equal(model(data()[0]), y)


def test_frozen_layers_keep_their_weights() -> None:
    _, model = make()
    model.a.phase = "frozen"
    report = tops.sensitivity(model, data())
    assert ("a", "weights") not in rows(report) and ("a", "activations") in rows(report)
    assert model.a.phase == "frozen"
    only = tops.sensitivity(model, data(), "activations")
    assert {row.part for row in only.rows} == {"activations"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "one target"),
        ({"min_sqnr": 3.0, "max_drop": 0.1}, "min_sqnr, max_drop"),
        ({"max_drop": 2.0}, "share"),
        ({"min_sqnr": float("nan")}, "decibels"),
        ({"min_sqnr": "20"}, "decibels"),
        ({"min_sqnr": 90.0, "budget": -1}, "budget"),
        ({"min_sqnr": 90.0, "parts": ("bias",)}, "parts"),
        ({"max_drop": 0.1}, "labels"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    _, model = make()
    with pytest.raises(BadConfig, match=match):
        tops.fallback_(model, data(), **options)


def test_bad_models() -> None:
    with pytest.raises(UnsupportedModel, match="quantize_"):
        tops.sensitivity(Net(), data())
    model = Net()
    tops.quantize_(model)
    with pytest.raises(UnsupportedModel, match="stem, a, b, fc"):
        tops.sensitivity(model, data())
    _, model = make()
    with pytest.raises(UnsupportedModel, match="at least one sample"):
        tops.sensitivity(model, [])
    pair = nn.Module()
    pair.inner, pair.forward = model, lambda x: (model(x), x)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModel, match="returns one tensor, got 0, 1"):
        tops.sensitivity(pair, data())


def test_ternary_int8_dense_int8_quads_and_float_in_one_program() -> None:
    """Every kind of layer side by side: the program is the fake-quantized network, node by node."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),  # int8, dense
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),  # int8, quads pruned
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),  # ternary, quads pruned
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),  # float
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),  # ternary, float input
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 6),  # int8
    )
    rules = {
        "2": INT8,
        "6": TernaryConfig(weights="float"),
        "8": TernaryConfig(activations="float32"),
    }
    tops.quantize_(model, tops.plan(model, TernaryConfig(zeros=0.0), rules=rules))
    for name in ("2", "4"):
        layer = dict(model.named_modules())[name]
        assert isinstance(layer, TernaryLayer)
        keep = torch.rand(16, 4, 3, 3) < 0.2
        layer.mask.copy_(keep.repeat_interleave(4, dim=1))
    batches = [torch.randn(4, 3, 9, 11) for _ in range(2)]
    tops.calibrate(model, batches)
    program = tops.compile(model, batches[0])
    kinds = {w.name: (w.kind, w.density) for w in program.graph.weights}
    assert [kinds[n][0] for n in ("0", "2", "4", "6", "8", "12")] == [
        "int8", "int8", "ternary", "float", "ternary", "int8",
    ]  # fmt: skip
    assert kinds["2"][1] < 0.35 and kinds["4"][1] < 0.35 and kinds["0"][1] > 0.9
    x = batches[1].numpy()
    want = fake_quant.run(program.graph, x)
    oracle = simulate(program.graph, x)
    for got, twin, exact, value in zip(
        program.trace(x), want, oracle, program.graph.values, strict=True
    ):
        close = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(got, exact, **close)
        np.testing.assert_allclose(got, twin.numpy(), **close)
        if value.y is not None:
            assert got.dtype == np.uint8
    with torch.no_grad():
        np.testing.assert_allclose(
            program(x), model.eval()(batches[1]).numpy(), rtol=1e-4, atol=1e-4
        )
