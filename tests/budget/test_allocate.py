# SPDX-License-Identifier: Apache-2.0
"""plan(auto=True): weights and zeros of every layer under a budget of time or bytes."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import ternary_ops as tops
from ternary_ops.budget.allocate import Budget
from ternary_ops.budget.choice import Choice, choose, hull
from ternary_ops.errors import BadConfig
from ternary_ops.models import digits_resnet

ANY = tops.TernaryConfig()


def points(*pairs: tuple[float, float]) -> list[Choice]:
    return [Choice(ANY, cost, error) for cost, error in pairs]


def test_the_hull_drops_what_is_never_the_best_for_its_cost() -> None:
    found = hull(points((3, 1), (1, 9), (2, 8), (2, 4), (4, 2), (5, 0.5), (3, 3), (1, 10)))
    assert [(c.cost, c.error) for c in found] == [(1, 9), (2, 4), (3, 1), (5, 0.5)]
    slopes = [(a.error - b.error) / (b.cost - a.cost) for a, b in itertools.pairwise(found)]
    assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize("seed", range(6))
def test_choices_are_near_the_best_of_all_combinations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = {}
    for name in "abcd":
        costs = np.sort(rng.uniform(1, 10, 5))
        errors = np.sort(rng.uniform(0, 1, 5))[::-1]
        table[name] = points(*zip(costs.tolist(), errors.tolist(), strict=True))
    cheapest = sum(c[0].cost for c in table.values())
    for limit in (cheapest, cheapest + 3, cheapest + 9, 100.0):
        chosen = choose(table, limit)
        assert chosen is not None and sum(c.cost for c in chosen.values()) <= limit + 1e-9
        combinations = list(itertools.product(*table.values()))
        allowed = [c for c in combinations if sum(p.cost for p in c) <= limit + 1e-9]
        best = min(sum(p.error for p in c) for c in allowed)
        got = sum(c.error for c in chosen.values())
        # Greedy along convex hulls misses the optimum by less than one step of one layer.
        assert best - 1e-9 <= got <= best + 1.0
        if limit == 100.0:
            assert got == pytest.approx(best)
    assert choose(table, cheapest - 0.01) is None


def test_a_larger_budget_is_never_worse() -> None:
    rng = np.random.default_rng(1)
    table = {n: points(*rng.uniform(0, 1, (7, 2)).tolist()) for n in map(str, range(9))}
    errors = []
    for limit in np.linspace(1, 9, 30):
        chosen = choose(table, float(limit))
        if chosen is not None:
            errors.append(sum(c.error for c in chosen.values()))
    assert len(errors) > 15 and errors[-1] < errors[0]


@pytest.fixture(scope="module")
def digits() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return digits_resnet(16).eval(), torch.rand(24, 1, 8, 8)


def file_size(model: torch.nn.Module, plan: tops.quantize.Plan, x: torch.Tensor, to: Path) -> int:
    trial = copy.deepcopy(model)
    tops.quantize_(trial, plan)
    tops.prune.Pruner(trial, "one_shot", 1).step()
    tops.calibrate(trial, [x])
    tops.compile(trial, x[:1]).save(to)
    return to.stat().st_size


def test_bytes_are_kept_and_used(
    digits: tuple[torch.nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    model, x = digits
    before = copy.deepcopy(model.state_dict())
    sizes = {}
    for limit in (16_000, 24_000, 40_000):
        plan = tops.plan(model, auto=True, budget=Budget(bytes=limit), batches=[x])
        sizes[limit] = file_size(model, plan, x, tmp_path / "p.safetensors")
        # Bounds without context stand for the coder, which is a little better or worse.
        assert sizes[limit] <= 1.05 * limit
        assert "auto" in plan["layer1.0.conv1"].reason and "bytes" in str(plan)
        assert plan["conv1"].action == "int8" and plan["conv1"].reason == "first convolution"
    assert sizes[40_000] > sizes[24_000] > sizes[16_000]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_layers_get_different_zeros_and_rules_stay(
    digits: tuple[torch.nn.Module, torch.Tensor],
) -> None:
    model, x = digits
    rule = {"layer3.0.conv2": tops.TernaryConfig(zeros=0.25)}
    budget = Budget(bytes=30_000)
    plan = tops.plan(model, rules=rule, auto=True, budget=budget, batches=[x[:12], x[12:]])
    assert plan["layer3.0.conv2"].config == rule["layer3.0.conv2"]
    free = [row for row in plan if row.reason.startswith("auto")]
    assert len({(row.action, row.config.zeros) for row in free}) > 1
    assert all(row.config.scope == "layer" for row in free)


def test_time_is_kept_in_the_cost_table(digits: tuple[torch.nn.Module, torch.Tensor]) -> None:
    model, x = digits
    plan = tops.plan(model, auto=True, budget=Budget(ms=1000.0), batches=[x])
    free = [row for row in plan if row.reason.startswith("auto")]
    assert free and all(" ms" in row.reason for row in free)
    # With time to spare every layer takes the candidate of the least error: dense 8 bits.
    assert {(row.action, row.config.zeros) for row in free} == {("int8", 0.0)}


def test_what_auto_refuses(digits: tuple[torch.nn.Module, torch.Tensor]) -> None:
    model, x = digits
    with pytest.raises(BadConfig, match="and batches together"):
        tops.plan(model, auto=True)
    with pytest.raises(BadConfig, match="and batches together"):
        tops.plan(model, budget=Budget(ms=1.0))
    with pytest.raises(BadConfig, match="one limit"):
        Budget()
    with pytest.raises(BadConfig, match="one limit"):
        Budget(ms=1.0, bytes=5)
    with pytest.raises(BadConfig, match="one limit"):
        Budget(ms=float("nan"))
    with pytest.raises(BadConfig, match="at its cheapest"):
        tops.plan(model, auto=True, budget=Budget(bytes=100), batches=[x])
    int8 = tops.TernaryConfig("int8")
    with pytest.raises(BadConfig, match="a layer that is ternary by"):
        tops.plan(model, int8, auto=True, budget=Budget(bytes=10_000), batches=[x])


def test_a_rule_that_skip_or_only_cancels_is_refused(
    digits: tuple[torch.nn.Module, torch.Tensor],
) -> None:
    model, _ = digits
    rules = {"layer3.*": ANY}
    with pytest.raises(BadConfig, match="a layer that rule .layer3.*. applies to"):
        tops.plan(model, rules=rules, skip="layer3*")
    with pytest.raises(BadConfig, match="a layer that rule .layer3.*. applies to"):
        tops.plan(model, rules=rules, only="layer1*")
    tops.plan(model, rules=rules, skip="layer3.0.conv1")  # others are left: no conflict
