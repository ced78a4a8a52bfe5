# SPDX-License-Identifier: Apache-2.0
"""Schedules that go by what a run shows: masks that settle, losses that rise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pruning import float_net, train, train_step
from torch import nn

from ternary_ops.errors import BadConfig
from ternary_ops.prune import Pruner, early_bird, generalization_loss


def run(schedule: Any, rate: float = 0.0, **options: Any) -> tuple[nn.Module, Any, Pruner]:
    torch.manual_seed(0)
    model = float_net()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    given = {"every": 2, "freeze_at": 1.0, **options}
    return model, optimizer, Pruner(model, schedule, 40, 0.75, optimizer=optimizer, **given)


def test_an_early_bird_is_drawn_once_its_mask_settles_and_then_fixed() -> None:
    model, optimizer, pruner = run(early_bird(0.05, 3))
    wanted = ~pruner._groups[0].chosen(pruner.criterion, False)
    shares = []
    for step in range(40):
        if step == 20:  # what is trained from here on changes no mask
            optimizer.param_groups[0]["lr"] = 0.3
        train(model, optimizer, pruner, range(step, step + 1))
        shares.append(pruner._groups[0].count)
    # Updates at 2, 4, 6, 8: the fourth has seen three distances of 0.
    assert shares == [0] * 7 + [round(0.75 * 1800)] * 33
    assert torch.equal(~pruner._groups[0].pruned, wanted)


def test_without_a_mask_that_settles_zeros_come_at_the_end() -> None:
    model, optimizer, pruner = run(early_bird(1e-6, 3), 0.3, end=0.8)
    shares = []
    for step in range(40):
        train(model, optimizer, pruner, range(step, step + 1))
        shares.append(pruner._groups[0].count)
    assert shares == [0] * 31 + [round(0.75 * 1800)] * 9


def test_the_more_the_loss_rises_the_more_is_pruned() -> None:
    model, optimizer, pruner = run(generalization_loss(0.6, 2.0))
    losses = {4: 2.0, 8: 1.0, 12: 1.02, 16: 1.05, 20: 0.9}
    due, counts = 0.0, []
    for step in range(1, 41):
        train_step(model, optimizer, step)
        if step in losses:
            pruner.report_loss(losses[step])
        pruner.step()
        counts.append(pruner._groups[0].count)
    for rise, step in ((0.0, 8), (2.0, 12), (5.0, 16), (0.0, 20)):
        due += 0.6 * (1 - 1 / (1 + 2.0 * rise)) * (1 - due)
        assert counts[step - 1] == round(due * 0.75 * 1800)
    assert counts[-2] == counts[19] and counts[-1] == round(0.75 * 1800)


@pytest.mark.parametrize("schedule", [early_bird(0.2, 3), generalization_loss()])
@pytest.mark.parametrize("stop", [5, 9])
def test_a_resumed_run_knows_what_it_has_seen(schedule: Any, stop: int) -> None:
    def train_on(parts: tuple[nn.Module, Any, Pruner], steps: range) -> list[int]:
        counts = []
        for step in steps:
            train_step(*parts[:2], step)
            if schedule.name == "generalization_loss":
                parts[2].report_loss(1 + (step % 5) / 10)
            parts[2].step()
            counts.append(parts[2]._groups[0].count)
        return counts

    whole, first, second = run(schedule, 0.01), run(schedule, 0.01), run(schedule, 0.01)
    wanted = train_on(whole, range(20))
    train_on(first, range(stop))
    for part, saved in zip(second, copy.deepcopy([p.state_dict() for p in first]), strict=True):
        part.load_state_dict(saved)
    assert train_on(second, range(stop, 20)) == wanted[stop:] and wanted[-1] > 0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadConfig, match="generalization_loss"):
        run("agp")[2].report_loss(1.0)
    for loss in (0.0, -1.0, float("nan"), "1"):
        with pytest.raises(BadConfig, match="finite loss"):
            run("generalization_loss")[2].report_loss(loss)  # type: ignore[arg-type]
    for wrong in ({"distance": 0.0}, {"distance": 1.5}, {"window": 0}, {"window": 2.5}):
        with pytest.raises(BadConfig, match="early_bird"):
            early_bird(**wrong)  # type: ignore[arg-type]
    for wrong in ({"strongest": 0.0}, {"strongest": 1.5}, {"alpha": 0.0}):
        with pytest.raises(BadConfig, match="generalization_loss"):
            generalization_loss(**wrong)
    with pytest.raises(BadConfig, match="fixes what it prunes"):
        Pruner(float_net(), "early_bird", 10, 0.5, nested=False)
    names = {early_bird().name, early_bird(0.2).name, early_bird(window=3).name}
    assert len(names) == 3
