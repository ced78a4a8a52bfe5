# SPDX-License-Identifier: Apache-2.0
"""Zeros over layers: Erdos-Renyi kernels, and allocations, criteria and schedules of one's own."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from random import Random

import pytest
import torch
from pruning import float_net
from torch import nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig
from ternary_ops.nn.config import SCOPES
from ternary_ops.nn.patterns import get_pattern, unit_scores
from ternary_ops.prune import (
    ALLOCATIONS,
    CRITERIA,
    SCHEDULES,
    Pruner,
    RigL,
    Schedule,
    register_allocation,
    register_criterion,
    register_schedule,
)
from ternary_ops.prune.apportion import apportion
from ternary_ops.prune.ranking import Group
from ternary_ops.prune.targets import Target


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers is forgotten."""
    before = [dict(registry) for registry in (ALLOCATIONS, CRITERIA, SCHEDULES)]
    scopes = list(SCOPES)
    yield
    for registry, entries in zip((ALLOCATIONS, CRITERIA, SCHEDULES), before, strict=True):
        for name in set(registry) - set(entries):
            del registry[name]
    SCOPES[:] = scopes


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 1)),
        *(nn.Flatten(), nn.Linear(300, 100), nn.Linear(100, 10)),
    )


@pytest.mark.parametrize("zeros", [0.0, 0.35, 0.8, 0.95, 0.99, 0.999])
def test_erk_is_exact_and_densities_are_as_the_rule_says(zeros: float) -> None:
    model = network()
    pruner = Pruner(model, "one_shot", 1, zeros, scope="erk")
    pruner.step()
    weights = [m.weight for m in model if hasattr(m, "weight")]
    units = [w.numel() for w in weights]
    kept = [int((w != 0).sum()) for w in weights]
    assert sum(kept) == sum(units) - round(zeros * sum(units))
    raw = [sum(w.shape) / math.prod(w.shape) for w in weights]
    free = [i for i in range(len(kept)) if 1 < kept[i] < units[i]]
    factor = sum(kept[i] for i in free) / max(sum(raw[i] * units[i] for i in free), 1e-9)
    assert all(abs(kept[i] - factor * raw[i] * units[i]) <= 1.01 for i in free)
    full = [i for i in range(len(kept)) if kept[i] == units[i]]
    assert all(raw[i] >= raw[j] for i in full for j in free)
    rows = pruner.summary()
    assert [r.measured for r in rows] == [r.target for r in rows]


@pytest.mark.parametrize("seed", range(50))
def test_erk_is_exact_on_random_networks(seed: int) -> None:
    random = Random(seed)
    channels = [random.randint(1, 40) for _ in range(random.randint(3, 9))]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(channels):
        size = random.choice([1, 1, 3, 5])
        layers.append(random.choice([nn.Conv2d(i, o, size), nn.Linear(i, o)]))
    pattern = random.choice(["element", "1x4", "4x4", "filter"])
    model, zeros = nn.Sequential(*layers), random.uniform(0.02, 0.98)
    units = [get_pattern(pattern).units(layer.weight.shape) for layer in layers]  # type: ignore[arg-type]
    zeros = min(zeros, 1 - len(units) / sum(units))  # one unit of each layer stays
    growth = RigL(every=1) if seed % 2 else None
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Pruner(
        *(model, "constant", 2, zeros, pattern, "erk", optimizer), growth=growth, min_nnz=0
    )
    pruner.step()
    empty = [
        int((unit_scores(layer.weight, get_pattern(pattern)) == 0).sum())  # type: ignore[arg-type]
        for layer in layers
    ]
    assert sum(empty) == round(zeros * sum(units))
    assert all(gone < n for gone, n in zip(empty, units, strict=True))


@pytest.mark.parametrize("rule", ["set", "rigl", "snfs", "dnw"])
@pytest.mark.parametrize("scope", ["layer", "erk", "global"])
def test_erk_and_growth_keep_to_patterns_with_room_for_few(rule: str, scope: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    pruner = Pruner(model, None, 12, 0.6, "2:4", scope, optimizer, growth=rule, every=2)
    counts, seen = set(), set()
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(4, 8, 4, 4)).square().mean().backward()
        optimizer.step()
        pruner.step()
        counts.add(sum(int((~target.mask).sum()) for target in pruner._targets))
        seen.add(b"".join(target.mask.numpy().tobytes() for target in pruner._targets))
        for target in pruner._targets:
            fours = target.mask.reshape(target.mask.shape[0], -1, 4, target.mask[0, 0].numel())
            assert int(fours.sum(2).max()) <= 2
    units = [target.units for target in pruner._targets]
    by_layer = sum(round(0.6 * n) for n in units)
    assert counts == {by_layer if scope == "layer" else round(0.6 * sum(units))}
    assert len(seen) > 1


def test_counts_in_proportion_are_exact_between_their_bounds() -> None:
    assert apportion(10, [1.0, 1.0, 2.0], [0, 0, 0], [9, 9, 9]) == [3, 2, 5]
    assert apportion(10, [1.0, 1.0, 2.0], [0, 4, 0], [9, 9, 3]) == [3, 4, 3]
    assert apportion(5, [0.0, 1.0], [0, 0], [9, 3]) == [2, 3]
    assert apportion(0, [1.0], [0], [4]) == [0]


def test_growth_goes_with_zeros_by_engine_time() -> None:
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 3))
    config = tops.TernaryConfig(zeros=0.7, scope="time")
    tops.quantize_(model, tops.plan(model, config, example=torch.randn(1, 4, 12, 12)))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    pruner = Pruner(model, None, 12, optimizer=optimizer, growth=RigL(every=2))
    counts = set()
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 12, 12)).square().mean().backward()
        optimizer.step()
        pruner.step()
        counts.add(tuple(group.count for group in pruner._groups))
    assert len(counts) == 1


def test_a_config_may_ask_for_erk() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3))
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.6, scope="erk")))
    pruner = Pruner(model, total_steps=1)
    pruner.step()
    rows = pruner.summary()
    assert rows[0].measured < rows[1].measured and pruner.zeros == pytest.approx(0.6, abs=0.01)
    with pytest.raises(BadConfig, match="scope as one of 'global', 'layer', 'erk'"):
        tops.TernaryConfig(scope="local")


def test_a_config_knows_every_scope_from_the_start() -> None:
    script = "import ternary_ops as tops; print(tops.TernaryConfig(scope='erk').scope)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "erk", done.stderr[-1000:]


def test_an_allocation_of_ones_own() -> None:
    def all_but_the_first(targets: Sequence[Target], zeros: float) -> list[Group]:
        return [Group(targets[:1], 0.0), Group(targets[1:], zeros)]

    register_allocation("all_but_the_first", all_but_the_first)
    model = float_net()
    pruner = Pruner(model, "linear", 3, 0.5, scope="all_but_the_first")
    for _ in range(3):
        pruner.step()
    assert bool((model[0].weight != 0).all())
    assert int((model[3].weight == 0).sum() + (model[6].weight == 0).sum()) == round(0.5 * 1746)
    with pytest.raises(BadConfig, match="free name"):
        register_allocation("erk", all_but_the_first)
    with pytest.raises(BadConfig, match="identifier"):
        register_allocation("my rule", all_but_the_first)
    with pytest.raises(BadConfig, match="called"):
        register_allocation("number", 3)  # type: ignore[arg-type]


def test_a_criterion_and_a_schedule_of_ones_own() -> None:
    register_criterion("largest", lambda weight: -weight.abs())
    register_schedule(Schedule("square", lambda t: t * t))
    model = nn.Linear(10, 10)
    before = model.weight.detach().abs().flatten()
    pruner = Pruner(model, "square", 10, 0.5, criterion="largest", freeze_at=1.0, every=1)
    for _ in range(5):
        pruner.step()
    assert int((model.weight == 0).sum()) == round(0.25 * 50)
    for _ in range(5):
        pruner.step()
    gone = (model.weight == 0).flatten()
    assert int(gone.sum()) == 50 and float(before[gone].min()) >= float(before[~gone].max())
    for register in (register_criterion, lambda n, f: register_schedule(Schedule(n, f))):
        with pytest.raises(BadConfig, match="free name"):
            register("magnitude" if register is register_criterion else "square", torch.abs)
    with pytest.raises(BadConfig, match="called"):
        register_criterion("number", 3)  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="prune.Schedule"):
        register_schedule("square")  # type: ignore[arg-type]
