# SPDX-License-Identifier: Apache-2.0
"""tops.search: widths, zeros and bits for a target, chosen, built, measured, and applied."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ternary_ops as tops
from ternary_ops.budget import solving
from ternary_ops.budget.found import Found
from ternary_ops.budget.units import Bytes, Checked
from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel
from ternary_ops.program import layer_costs

Given = tuple[torch.nn.Module, torch.Tensor]


@pytest.fixture(scope="module")
def given() -> Given:
    """A network of four convolutions, the first and the linear layer of which stay dense."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 24), (24, 32), (32, 32)):
        layers.append(torch.nn.Conv2d(inputs, outputs, 3, padding=1))
        layers += [torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 6)]
    return torch.nn.Sequential(*layers).eval(), torch.rand(12, 3, 7, 7)


@pytest.fixture(scope="module")
def measured(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a search that is done."""
    model, x = given
    file = tmp_path_factory.mktemp("search") / "state.json"
    tops.search(model, x[:1], [x], target_bytes=9_000, state=file)
    return file


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of single calls: what they are is not tested."""
    monkeypatch.setattr(layer_costs, "_SECONDS", 0.0)
    monkeypatch.setattr(layer_costs, "_ROUNDS", (1, 1))
    monkeypatch.setattr(layer_costs, "_CALLS", (1, 1))
    yield


def file_size(found: Found, model: torch.nn.Module, x: torch.Tensor, to: Path) -> int:
    """Of the network that was found, pruned at once."""
    trial = copy.deepcopy(model)
    found.apply_(trial)
    tops.prune.Pruner(trial, "one_shot", 1).step()
    tops.calibrate(trial, [x])
    tops.compile(trial, x[:1]).save(to)
    return to.stat().st_size


def test_the_file_is_as_large_as_was_asked_and_the_model_stays_as_it_was(
    given: Given, measured: Path, tmp_path: Path
) -> None:
    model, x = given
    before = copy.deepcopy(model.state_dict())
    for target in (6_000, 9_000):
        found = tops.search(model, x[:1], [x], target_bytes=target, state=measured)
        assert abs(found.cost / target - 1) <= solving.CLOSE
        assert file_size(found, model, x, tmp_path / "p.safetensors") == pytest.approx(
            found.cost, abs=16
        )
        assert f"{target:g} asked" in str(found) and "auto: " in str(found)
        errors = [point.error for point in found.front]
        assert errors == sorted(errors, reverse=True) and len(errors) > 5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_search_goes_on_from_its_state(
    given: Given, measured: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, x = given
    first = tops.search(model, x[:1], [x], target_bytes=9_000, state=measured)

    def again(*_: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(solving, "trial_at", again)
        patch.setattr(Bytes, "check", again)
        second = tops.search(model, x[:1], [x], target_bytes=9_000, state=measured)
    assert second.to_dict() == first.to_dict()
    assert Found.from_dict(json.loads(json.dumps(first.to_dict())), x[:1]).plan == first.plan
    # Cut off in the middle: what is there is kept.
    part = tmp_path / "part.json"
    state = json.loads(measured.read_text())
    names = list(state["values"])
    state["values"] = {name: state["values"][name] for name in names[: len(names) // 3]}
    part.write_text(json.dumps(state))
    third = tops.search(model, x[:1], [x], target_bytes=9_000, state=part)
    assert third.to_dict() == first.to_dict()


def test_a_state_of_another_search_is_refused(given: Given, measured: Path, tmp_path: Path) -> None:
    model, x = given
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    before = measured.read_text()
    for network, data, options in (
        (other, x, {"target_bytes": 9_000}),
        (model, x[:6], {"target_bytes": 9_000}),
        (model, x, {"target_ms": 1.0}),
        (model, x, {"target_bytes": 9_000, "rules": {"6": tops.TernaryConfig("int8")}}),
    ):
        with pytest.raises(FormatError, match="a search of the same"):
            tops.search(network, x[:1], [data], state=measured, **options)
    assert measured.read_text() == before
    damaged = tmp_path / "damaged.json"
    damaged.write_text(before[: len(before) // 2])
    with pytest.raises(FormatError, match="Delete it"):
        tops.search(model, x[:1], [x], target_bytes=9_000, state=damaged)


@pytest.mark.usefixtures("quick")
def test_what_is_not_varied_stays(given: Given) -> None:
    model, x = given
    int8 = tops.TernaryConfig("int8", zeros=0.0)
    wide = tops.search(model, x[:1], [x], target_ms=1e3, config=int8, vary="widths")
    assert {(r.action, r.config.zeros) for r in wide.plan if r.config} == {("int8", 0.0)}
    assert not wide.kept  # with time to spare nothing goes
    copied = copy.deepcopy(model)
    assert wide.apply_(copied) is None
    zeros = tops.search(model, x[:1], [x], target_ms=1e3, vary=("zeros",))
    free = [row for row in zeros.plan if row.reason.startswith("auto")]
    assert {row.action for row in free} == {"ternary"} and not zeros.kept
    assert "1 thread" in str(zeros)


def test_channels_stay_by_the_scores_that_are_given(given: Given, measured: Path) -> None:
    model, x = given
    groups = [g for g in tops.prune.groups(model, x[:1]) if g.fixed is None]
    scores = {g.name: torch.arange(g.width).flip(0).float() for g in groups}
    int8 = tops.TernaryConfig("int8", zeros=0.0)
    options = {"config": int8, "vary": "widths", "target_bytes": 9_000}
    found = tops.search(model, x[:1], [x], scores=scores, **options)
    assert found.kept
    for index in found.kept.values():
        assert torch.equal(index, torch.arange(len(index)))
    with pytest.raises(BadConfig, match="scores"):
        tops.search(model, x[:1], [x], scores={"0": scores["0"]}, **options)


def test_the_choice_is_repeated_until_what_was_built_costs_what_was_asked(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = given
    real, calls = Bytes.check, []

    def larger(self: Bytes, *arguments: object) -> Checked:
        """Layers really take a third more than the table of costs says."""
        found = real(self, *arguments)  # type: ignore[arg-type]
        calls.append(found.total)
        layers = {name: cost * 4 / 3 for name, cost in found.layers.items()}
        return Checked(layers, found.total + sum(layers.values()) / 4)

    monkeypatch.setattr(Bytes, "check", larger)
    found = tops.search(model, x[:1], [x], target_bytes=9_000)
    assert len(calls) > 1
    assert abs(found.cost / 9_000 - 1) <= solving.CLOSE < abs(calls[-1] / 9_000 - 1)


def test_a_network_that_does_not_come_near_is_returned_with_a_warning(
    given: Given, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = given
    real, totals = Bytes.check, []

    def restless(self: Bytes, *arguments: object) -> Checked:
        """Everything beside the layers takes more each time."""
        found = real(self, *arguments)  # type: ignore[arg-type]
        totals.append(found.total + 2_000 * (1 + len(totals)))
        return Checked(found.layers, totals[-1])

    monkeypatch.setattr(Bytes, "check", restless)
    found = tops.search(model, x[:1], [x], target_bytes=9_000)
    off = found.cost / 9_000 - 1
    assert abs(off) > solving.CLOSE
    assert found.cost == min(totals, key=lambda total: abs(total / 9_000 - 1))
    assert f"takes {found.cost:.4g} bytes, {100 * off:+.1f} % off" in caplog.text


def test_what_search_refuses(given: Given, measured: Path) -> None:
    model, x = given
    before = copy.deepcopy(model.state_dict())
    for targets in ({}, {"target_ms": 1.0, "target_bytes": 5}, {"target_bytes": -1}):
        with pytest.raises(BadConfig, match=r"one limit(.|\n)*Pass target_ms="):
            tops.search(model, x[:1], [x], **targets)
    with pytest.raises(BadConfig, match=r"fits into 100 bytes.* at its cheapest"):
        tops.search(model, x[:1], [x], target_bytes=100, state=measured)
    with pytest.raises(BadConfig, match="vary"):
        tops.search(model, x[:1], [x], target_bytes=9_000, vary="depth")
    with pytest.raises(UnsupportedModel, match=r"\[\d, 4, 7, 7\]"):
        tops.search(model, torch.rand(1, 4, 7, 7), [x], target_bytes=9_000)
    with pytest.raises(UnsupportedModel, match=r"an example that is a tensor"):
        tops.search(model, [1, 2], [x], target_bytes=9_000)
    with pytest.raises(UnsupportedModel, match="sample"):
        tops.search(model, x[:1], [], target_bytes=9_000)
    quantized = copy.deepcopy(model)
    tops.quantize_(quantized)
    with pytest.raises(UnsupportedModel, match="a float network"):
        tops.search(quantized, x[:1], [x], target_bytes=9_000)
    rules = {"*": tops.TernaryConfig("int8", zeros=0.0)}
    with pytest.raises(BadConfig, match="layers to choose for"):
        tops.search(model, x[:1], [x], target_bytes=9_000, rules=rules)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
