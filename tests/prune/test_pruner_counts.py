# SPDX-License-Identifier: Apache-2.0
"""The Pruner counts exactly: patterns, scopes, schedules, ties, survivors."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning import (
    conv,
    empty,
    float_net,
    quantized_net,
    sgd,
    ternary_layers,
    train,
)
from torch import nn

from ternary_ops.prune import SCHEDULES, Pruner
from ternary_ops.quantize import TernaryConfig

TO_TARGET = sorted(name for name, schedule in SCHEDULES.items() if schedule.last == 1.0)


@pytest.mark.parametrize("schedule", TO_TARGET)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 37])
def test_the_target_is_met_to_one_unit_for_any_number_of_steps(schedule: str, steps: int) -> None:
    model = quantized_net(zeros=0.77)
    optimizer = sgd(model)
    pruner = Pruner(model, schedule, steps, optimizer=optimizer)
    freeze = max(1, round(0.9 * steps))
    for step in range(1, steps + 1):
        train(model, optimizer, pruner, range(step, step + 1))
        counts = [empty(layer.weight, "1x4") for layer in ternary_layers(model)]
        assert pruner.zeros == sum(c for c, _ in counts) / sum(n for _, n in counts)
        if step >= freeze:
            assert sum(c for c, _ in counts) == round(0.77 * sum(n for _, n in counts))
    assert pruner.progress == 1.0


@pytest.mark.parametrize("schedule", TO_TARGET)
@pytest.mark.parametrize("pattern", ["element", "1x4"])
def test_the_target_is_met_without_training_up_to_a_thousand_steps(
    schedule: str, pattern: str
) -> None:
    for steps in (*range(4, 24), 59, 100, 199, 200, 201, 397, 1000):
        torch.manual_seed(steps)
        model = nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 3))
        pruner = Pruner(model, schedule, steps, zeros=0.83, pattern=pattern, scope="layer")
        for _ in range(steps):
            pruner.step()
        for layer in model:
            count, units = empty(layer.weight, pattern)
            assert count == round(0.83 * units), steps


@pytest.mark.parametrize("pattern", ["element", "1x4", "2x2", "filter"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("zeros", [0.0, 0.3, 2 / 3, 0.85])
def test_patterns_and_scopes_count_exactly(pattern: str, scope: str, zeros: float) -> None:
    model = float_net()
    Pruner(model, total_steps=1, zeros=zeros, pattern=pattern, scope=scope).step()
    # The grouped layer has 2 channels a group: too narrow for a quad.
    used = {"3": "element" if pattern == "1x4" else pattern}
    counts = {
        name: (used.get(name, pattern), *empty(module.weight, used.get(name, pattern)))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    totals: dict[str, list[int]] = {}
    for name, (kind, count, units) in counts.items():
        total = totals.setdefault(kind if scope == "global" else name, [0, 0, 0])
        total[:] = [total[0] + count, total[1] + units, total[2] + 1]
    for count, units, layers in totals.values():
        assert count == min(round(zeros * units), units - layers)


def test_ties_are_split_to_reach_the_count() -> None:
    model = nn.Sequential(nn.Linear(30, 10, bias=False), nn.Linear(10, 7, bias=False))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    pruner = Pruner(model, total_steps=1, zeros=0.5)
    pruner.step()
    assert int((model[0].weight == 0).sum() + (model[1].weight == 0).sum()) == 185
    first = model[0].weight.detach().flatten() == 0
    # The first of equal scores go, except unit 0: the best one of its layer stays.
    assert first.nonzero().flatten().tolist() == list(range(1, 186))


def test_frozen_codes_have_exactly_the_zeros_asked_for() -> None:
    model = quantized_net(zeros=0.77)
    optimizer = sgd(model)
    pruner = Pruner(model, total_steps=30, optimizer=optimizer)
    train(model, optimizer, pruner, range(30))
    counts = [empty(layer.ternary()[0], "1x4") for layer in ternary_layers(model)]
    assert sum(c for c, _ in counts) == round(0.77 * sum(n for _, n in counts))


@pytest.mark.parametrize("freeze_at", [0.04, 0.3, 1.0])
def test_one_step_is_enough_wherever_the_freeze_is(freeze_at: float) -> None:
    model = quantized_net()
    pruner = Pruner(model, total_steps=1, ternary_at=0.0, freeze_at=freeze_at)
    pruner.step()
    assert pruner.phase == "frozen"
    assert pruner.zeros == pytest.approx(0.8, abs=0.003)


def test_int8_layers_are_never_pruned() -> None:
    model = quantized_net()
    before = model[0].weight.detach().clone()
    pruner = Pruner(model, total_steps=1)
    pruner.step()
    assert torch.equal(model[0].weight, before)
    assert [row.name for row in pruner.summary()] == ["2", "4"]


def test_dict_of_targets_and_skip() -> None:
    model = float_net()
    zeros = {"[03]": 0.5, "0": 0.25, "6": 0.9}  # the last glob that matches counts
    pruner = Pruner(model, total_steps=1, zeros=zeros, skip=["3"])
    before = model[3].weight.detach().clone()
    pruner.step()
    assert torch.equal(model[3].weight, before)
    rows = {row.name: row for row in pruner.summary()}
    assert {name: row.target for name, row in rows.items()} == {"0": 0.25, "6": 0.9}
    assert rows["0"].measured == round(0.25 * 54) / 54
    assert rows["6"].measured == round(0.9 * 1584) / 1584
    name, target, measured = pruner.summary()[0]
    assert (name, target, measured) == ("0", 0.25, rows["0"].measured)


def test_arguments_override_the_plan() -> None:
    model = quantized_net()
    pruner = Pruner(model, total_steps=1, zeros={"4": 0.5}, pattern="element", scope="layer")
    pruner.step()
    assert empty(model[4].weight, "element") == (315, 630)
    assert empty(model[2].weight, "element") == (432, 540)  # keeps 0.8 of its plan


def test_global_ranks_all_layers_together() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Conv2d(5, 6, 3))
    with torch.no_grad():
        model[1].weight.mul_(100)
    rows = {}
    for normalize in (False, True):
        copied = copy.deepcopy(model)
        pruner = Pruner(copied, total_steps=1, zeros=0.5, normalize=normalize)
        pruner.step()
        rows[normalize] = [row.measured for row in pruner.summary()]
        assert sum(int((layer.weight == 0).sum()) for layer in copied) == 335
    assert rows[False][0] > 0.8
    assert max(rows[True]) < 0.7


@pytest.mark.parametrize("weak", [0, 1, 2])
def test_no_layer_becomes_empty(weak: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[weak].weight.mul_(1e-6)
    Pruner(model, total_steps=1, zeros=0.9).step()
    best = model[weak].weight.abs().argmax()
    assert (model[weak].weight.flatten() != 0).nonzero().item() == best
    assert sum(int((layer.weight != 0).sum()) for layer in model) == 192 - round(0.9 * 192)


@pytest.mark.parametrize("min_nnz", [None, 1, 3])
def test_depthwise_filters_keep_survivors(min_nnz: int | None) -> None:
    layer = nn.Conv2d(32, 32, 3, groups=32)
    with torch.no_grad():
        layer.weight[:24].mul_(1e-3)
    pruner = Pruner(layer, total_steps=7, zeros=0.6, pattern="1x4", min_nnz=min_nnz)
    for _ in range(7):
        pruner.step()
    alive = (layer.weight != 0).sum((1, 2, 3))
    assert int(alive.min()) == (min_nnz or 1)
    assert int((layer.weight == 0).sum()) == round(0.6 * 288)


def test_tied_layers_share_one_target() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    model[2].weight = model[0].weight
    pruner = Pruner(model, total_steps=1, zeros=0.5)
    pruner.step()
    assert int((model[2].weight == 0).sum()) == 50
    assert len(pruner.summary()) == 1

    net = nn.Sequential(conv(8, 8, TernaryConfig()), conv(8, 8, TernaryConfig()))
    net[1].weight = net[0].weight
    Pruner(net, total_steps=1).step()
    assert torch.equal(net[0].mask, net[1].mask)
    assert not net[1].mask.all()


def test_masks_are_updated_about_200_times_at_most_and_end_exactly() -> None:
    model = nn.Linear(50, 50)
    pruner = Pruner(model, total_steps=5000, zeros=0.9)
    counts = set()
    for _ in range(5000):
        pruner.step()
        counts.add(int((model.weight == 0).sum()))
    assert 50 < len(counts) <= 201
    assert int((model.weight == 0).sum()) == 2250


@pytest.mark.parametrize("every", [1, 3, 100])
def test_an_early_end_leaves_the_rest_for_fine_tuning(every: int) -> None:
    model = nn.Linear(30, 30)
    pruner = Pruner(model, total_steps=10, zeros=0.9, end=0.5, every=every)
    measured = []
    for _ in range(10):
        pruner.step()
        measured.append(pruner.zeros)
    assert measured[3] < 0.9
    assert measured[4:] == [0.9] * 6
