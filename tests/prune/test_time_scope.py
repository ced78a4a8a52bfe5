# SPDX-License-Identifier: Apache-2.0
"""Scope "time": exact counts, no layer beyond 97 %, costs as data, and where they come from."""

from __future__ import annotations

import copy
import json
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, FormatError, UnsupportedModel
from ternary_ops.nn.engine_cost import EngineCost
from ternary_ops.program.cpu import isa, processor
from ternary_ops.program.layer_costs import MOST_EMPTY, CostTable, LayerCost
from ternary_ops.prune import Pruner
from ternary_ops.quantize import Plan, engine_costs, recipes

CONFIG = tops.TernaryConfig(zeros=0.8, scope="time")
X = torch.rand(1, 3, 12, 12)


def network(stem: int = 16) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, stem, 3), nn.ReLU(), nn.Conv2d(stem, 32, 3), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )


def given(ms: dict[str, float], machine: str = "", model: nn.Module | None = None) -> Plan:
    """A plan with these costs."""
    plain = tops.plan(model or network(), tops.TernaryConfig(zeros=0.8)).to_dict()
    where = {"machine": machine or processor(), "isa": isa(), "threads": 1}
    for row in plain["rows"]:
        if row["action"] == "ternary":
            row["config"]["scope"] = "time"
            row["cost"] = {"ms": ms[row["name"]], **where}
    return Plan.from_dict(json.loads(json.dumps(plain)))


def pruned(plan: Plan, steps: int = 4, **options: Any) -> tuple[nn.Module, Pruner]:
    model = network()
    tops.quantize_(model, plan)
    pruner = Pruner(model, total_steps=steps, **options)
    for _ in range(steps):
        pruner.step()
    return model, pruner


UNITS = (1152, 2304, 256)
EVEN = {"2": 1.15, "4": 1.63, "6": 0.54}  # by units over the size of their scores


def test_zeros_go_where_time_is_and_the_count_is_exact() -> None:
    shares = {}
    for name, costs in (("even", EVEN), ("dear", {**EVEN, "4": 1e4})):
        _, pruner = pruned(given(costs))
        rows = pruner.summary()
        empty = [round(row.measured * n) for row, n in zip(rows, UNITS, strict=True)]
        assert sum(empty) == round(0.8 * sum(UNITS))
        assert all(n <= math.floor(MOST_EMPTY * of) for n, of in zip(empty, UNITS, strict=True))
        shares[name] = [row.measured for row in rows]
    assert shares["dear"][1] == pytest.approx(MOST_EMPTY, abs=1e-3)
    assert shares["even"][1] < MOST_EMPTY - 0.05
    assert shares["dear"][0] < shares["even"][0] and shares["dear"][2] < shares["even"][2]


def test_units_are_ranked_by_score_for_each_millisecond() -> None:
    costs = {"2": 1.5, "4": 2.0, "6": 0.4}
    model, _ = pruned(given(costs), steps=1)
    before = network()
    kept, gone = [], []
    for name, ms in costs.items():
        weight = before.get_submodule(name).weight.detach()
        score = weight.abs().reshape(weight.shape[0], -1, 4, *weight.shape[2:]).sum(2).flatten()
        cost = ms / len(score)
        mask = model.get_submodule(name).mask
        stays = mask.reshape(weight.shape[0], -1, 4, *weight.shape[2:]).any(2).flatten()
        key = score / cost
        if int((~stays).sum()) < math.floor(MOST_EMPTY * len(score)):  # else the rest is protected
            kept.append(key[stays].min())
        gone.append(key[~stays].max())
    assert len(kept) >= 2 and max(gone) <= min(kept)


def test_negative_scores_go_first_and_growth_keeps_the_count() -> None:
    model = network()
    tops.quantize_(model, given(EVEN))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    options = {"criterion": "movement", "growth": "rigl", "optimizer": optimizer}
    pruner = Pruner(model, "constant", 12, every=2, **options)  # type: ignore[arg-type]
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 12, 12)).square().mean().backward()
        optimizer.step()
        pruner.step()
        empty = [1 - float(model.get_submodule(name).mask.float().mean()) for name in EVEN]
        assert max(empty) <= MOST_EMPTY
        assert sum(e * n for e, n in zip(empty, UNITS, strict=True)) == pytest.approx(
            round(0.8 * sum(UNITS)), abs=1e-2
        )


def test_one_plan_and_seed_give_the_same_bits() -> None:
    plan = tops.plan(network(), CONFIG, example=X)
    costs = [row.cost for row in plan if row.cost is not None]
    assert len(costs) == 3 and {c.where for c in costs} == {costs[0].where}
    assert (costs[0].machine, costs[0].isa) == (processor(), isa()) and "saves" in str(plan)
    first = pruned(plan)[0].state_dict()
    again = pruned(Plan.from_dict(json.loads(json.dumps(plan.to_dict()))))[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_layers_with_float_activations_are_measured_too(activations: str) -> None:
    """Alone, and beside layers with uint8 activations."""
    config = tops.TernaryConfig(zeros=0.8, scope="time", activations=activations)
    rules = {"4": tops.TernaryConfig(zeros=0.8, scope="time")}
    for plan in (
        tops.plan(network(), config, example=X),
        tops.plan(network(), config, rules, example=X),
    ):
        assert {row.name for row in plan if row.cost is not None} == {"2", "4", "6"}
        assert all(row.cost.ms > 0 for row in plan if row.cost is not None)


def never(*_: Any) -> Any:
    raise AssertionError("measured")


def test_what_has_costs_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_costs, "measure", never)
    model = network()
    tops.quantize_(model, given({"2": 1.0, "4": 2.0, "6": 3.0}))
    again = tops.plan(model, CONFIG, example=X)
    assert [row.cost.ms for row in again if row.cost is not None] == [1.0, 2.0, 3.0]
    assert all(row.cost is None for row in tops.plan(network(), example=X))  # another scope


def test_a_run_goes_on_with_the_costs_it_began_with() -> None:
    whole, _ = pruned(given({"2": 1.0, "4": 9.0, "6": 1.0}), steps=10)
    model = network()
    tops.quantize_(model, given({"2": 1.0, "4": 9.0, "6": 1.0}))
    pruner = Pruner(model, total_steps=10)
    for _ in range(4):
        pruner.step()
    state, weights = copy.deepcopy(pruner.state_dict()), copy.deepcopy(model.state_dict())
    other = network()
    tops.quantize_(other, given({"2": 9.0, "4": 1.0, "6": 2.0}))  # measured anew, with other noise
    resumed = Pruner(other, total_steps=10)
    other.load_state_dict(weights)
    for costs in ({}, {"2": {"ms": -1.0}}, None):
        with pytest.raises(FormatError, match="costs of 2, 4, 6"):
            resumed.load_state_dict({**state, "costs": costs})
    assert resumed._step == 0 and other.get_submodule("2").cost.ms == 9.0
    resumed.load_state_dict(state)
    for _ in range(6):
        resumed.step()
    assert other.get_submodule("4").cost.ms == 9.0
    for name in EVEN:
        assert torch.equal(whole.get_submodule(name).mask, other.get_submodule(name).mask)


def test_costs_travel_in_weights_files(tmp_path: Any) -> None:
    model, _ = pruned(given({"2": 1.0, "4": 2.0, "6": 3.0}))
    tops.calibrate(model, [X])
    for turn in range(2):  # a loaded network can be saved again
        tops.save(model, tmp_path / f"{turn}.safetensors")
        model = tops.load(tmp_path / f"{turn}.safetensors", network())
        assert model.get_submodule("4").cost == EngineCost(2.0, processor(), isa(), 1)
        assert model.get_submodule("0").cost is None


def test_costs_of_another_place_are_named(caplog: pytest.LogCaptureFixture) -> None:
    for machine, count in (("", 0), ("Toaster 9", 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            pruned(given(EVEN, machine))
        found = [r.getMessage() for r in caplog.records if "goes by costs" in r.getMessage()]
        assert len(found) == count
        assert all("Toaster 9" in text and processor() in text for text in found)


class Odd(nn.Module):
    """Its code decides on values: PyTorch runs it and the layer in it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if float(x.sum()) > -1e9 else x


def test_bad_input_is_refused_by_name() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        BadConfig, match=r"(?s)an example for scope .*plan\(model, config, example=x\)"
    ):
        tops.plan(model, CONFIG)
    with pytest.raises(BadConfig, match="an example"):
        tops.quantize_(model, CONFIG)
    assert type(model[2]) is nn.Conv2d
    with pytest.raises(BadConfig, match="measured costs of all layers .* none of 0, 2, 4, 6, 10"):
        Pruner(model, total_steps=3, zeros=0.5, scope="time")
    bare = given(EVEN).to_dict()
    for row in bare["rows"]:
        row.pop("cost")
    plan = Plan.from_dict(bare)
    other = network()
    tops.quantize_(other, plan)
    with pytest.raises(BadConfig, match="none of 2, 4, 6"):
        Pruner(other, total_steps=3)
    tops.quantize_(model, given(EVEN))
    with pytest.raises(BadConfig, match="3% of every layer"):
        Pruner(model, total_steps=3, zeros=0.98)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    for ms in (-1.0, math.inf, math.nan, 0.0, "1"):
        with pytest.raises(BadConfig, match="ms > 0"):
            EngineCost(ms, "m", "avx2", 1)  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="a cost of isa, machine, ms, threads"):
        EngineCost.from_dict({"ms": 1.0})


def test_layers_that_pytorch_runs_save_nothing() -> None:
    model = nn.Sequential(*network()[:6], Odd(), *network()[8:])
    with pytest.raises(UnsupportedModel, match=r"6\.inner outside of it"):
        tops.plan(model, CONFIG, example=X)
    rules = {"6.inner": tops.TernaryConfig(zeros=0.8)}
    made = tops.plan(model, CONFIG, rules=rules, example=X)
    assert [row.name for row in made if row.cost is not None] == ["2", "4"]


def test_the_recipe_for_speed_prunes_the_stem_where_that_saves_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, model = tops.get_recipe("fastest"), network(32)
    asked = []

    def saved(found: float) -> None:
        def share(*arguments: object) -> float:
            asked.append(arguments[2:4])
            return found

        monkeypatch.setattr(recipes, "share_saved", share)

    saved(0.01)
    dense = recipe.plan(model, example=X)
    assert dense["0"].config == tops.TernaryConfig("int8", zeros=0.0, scope="time")
    assert dense["0"].reason == "first convolution: 60% empty quads save 1.0% of a call"
    saved(0.2)
    made = recipe.plan(model, example=X)
    assert made["0"].config == tops.TernaryConfig("int8", zeros=0.6, scope="layer")
    assert made["0"].pattern == "1x4"
    assert made["2"].config == tops.TernaryConfig(zeros=0.9, scope="time")
    assert made["10"].config == tops.TernaryConfig("int8", zeros=0.0, scope="time")
    fewer = recipe.with_zeros(0.5, None).plan(model, example=X)
    assert {row.config.zeros for row in fewer if row.pattern and row.config} == {0.5}
    assert asked == [("0", 0.6), ("0", 0.6), ("0", 0.5)]
    mine = recipe.plan(model, example=X, rules={"0": tops.TernaryConfig("int8")})
    assert mine["0"].pattern == ""
    assert recipe.plan(network(16), example=X)["0"].pattern == ""  # none to spare
    assert len(asked) == 3
    assert tops.TernaryConfig().scope == "global"


def test_the_share_that_a_layer_saves_is_of_the_network_as_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(*arguments: object) -> CostTable:
        curves = {
            "0": LayerCost({"int8": ((0.0, 3.0), (0.6, 2.0)), "ternary": ((0.9, 9.0),)}),
            "2": LayerCost({"int8": ((0.0, 9.0),), "ternary": ((0.9, 1.0),)}),
        }
        assert set(arguments[1]) == {"0", "2", "4", "6"}
        return CostTable("m", "avx2", 1, (1,), curves, 6.0)

    monkeypatch.setattr(engine_costs, "measure", measured)
    model = network(32)
    made = tops.plan(model, tops.TernaryConfig(zeros=0.9))
    share = engine_costs.share_saved(model, made, "0", 0.6, X)
    assert share == pytest.approx(1.0 / 10.0)


def test_quads_of_three_channels_are_taps() -> None:
    masks = []
    for pattern in ("1x4", "1x3"):
        model = network()
        stem = tops.TernaryConfig("int8", zeros=0.6, pattern=pattern)
        tops.quantize_(model, tops.plan(model, rules={"0": stem}))
        Pruner(model, "one_shot", 1).step()
        masks.append(model[0].mask)
    assert torch.equal(*masks) and int((~masks[0]).sum()) == 3 * round(0.6 * 16 * 9)
