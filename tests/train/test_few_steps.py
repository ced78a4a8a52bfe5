# SPDX-License-Identifier: Apache-2.0
"""Training of 1 to 50 optimizer steps: rates, pruning, skipped steps, accumulated gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig
from ternary_ops.prune import SCHEDULES, Pruner
from ternary_ops.study.fit import fit
from ternary_ops.train.augment import Augmentation
from ternary_ops.train.config import WARMUP, TrainConfig, optimizer_for
from ternary_ops.train.distillation import Distillation
from ternary_ops.train.rates import one_cycle

_TO_TARGET = sorted(name for name, schedule in SCHEDULES.items() if schedule.last == 1.0)


def _data(n: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, 4, 6, 6, generator=g), torch.randint(0, 3, (n,), generator=g)


def _network() -> nn.Sequential:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.5, scope="layer")))
    return model


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.05, 0.1, WARMUP, 0.25, 0.5, 1.0])
def test_rates(warmup: float) -> None:
    """Finite, above zero, and as high as asked for at one step, for any number of steps."""
    for steps in range(1, 51):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1, momentum=0.9)
        rate = one_cycle(optimizer, 0.1, steps, warmup)
        seen = []
        for _ in range(steps):
            seen.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            rate.step()
        assert all(math.isfinite(r) and 0 < r <= 0.1 for r in seen)
        if warmup * steps == 1.0 and steps > 2:
            assert seen[0] == pytest.approx(0.1, rel=1e-6)
            assert seen == sorted(seen, reverse=True)
    with pytest.raises(BadConfig, match="warmup=1.5"):
        one_cycle(optimizer, 0.1, 5, 1.5)


@pytest.mark.parametrize("steps", [1, 4, 5, 10])
def test_fit(steps: int) -> None:
    """Five steps at the usual warm-up divided by zero."""
    x, y = _data(steps * 2)
    model = _network()
    course = TrainConfig(1, 0.01, batch=2)
    optimizer = optimizer_for(model, course)
    pruner = Pruner(model, total_steps=course.steps(len(y)), optimizer=optimizer)
    fit(model, Augmentation(x), y, course, optimizer, Distillation(), pruner=pruner, calibration=x)
    assert pruner.progress == 1.0 and pruner.phase == "frozen"
    assert torch.isfinite(model(x)).all()


def _check_ends(model: nn.Module, pruner: Pruner) -> None:
    assert pruner.phase == "frozen"
    for row in pruner.summary():
        units = model.get_submodule(row.name).weight[:, ::4].numel()  # type: ignore[index, operator, union-attr]
        assert row.measured == round(0.5 * units) / units
    assert all(layer.phase == "frozen" for layer in model.modules() if hasattr(layer, "phase"))


@pytest.mark.parametrize("schedule", _TO_TARGET)
def test_pruning_ends_exactly(schedule: str) -> None:
    """For any number of steps, one of which is skipped."""
    for steps in range(1, 51):
        model = _network()
        pruner = Pruner(model, schedule, steps)
        for step in range(steps + 1):
            pruner.step(skipped=step == steps // 2)
        assert pruner.progress == 1.0
        _check_ends(model, pruner)


@pytest.mark.parametrize("steps", [1, 2, 5, 14])
def test_mixed_precision(steps: int) -> None:
    """A gradient scaler that skips a step, and gradients summed over two batches."""
    x, y = _data()
    for schedule in _TO_TARGET:
        model = _network()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        pruner = Pruner(model, schedule, steps, optimizer=optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        skip, done = steps // 2, 0
        while pruner.progress < 1.0:
            optimizer.zero_grad()
            for part in (slice(0, 4), slice(4, 8)):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(x[part]).float(), y[part]) / 2
                scaler.scale(loss * (math.inf if done == skip else 1.0)).backward()
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            pruner.step(skipped=scaler.get_scale() < before)
            done += 1
        assert done == steps + 1
        _check_ends(model, pruner)
