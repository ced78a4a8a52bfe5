# SPDX-License-Identifier: Apache-2.0
"""Training of a classifier: dense, or ternary with a pruner and a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.study.data import Split, shift

# The largest share of the learning rate's cycle comes after its peak; smoothing keeps the logits of
# a network that fits 1,300 images exactly from growing without bound.
WARMUP = 0.2
LABEL_SMOOTHING = 0.05
TEMPERATURE = 4.0
TEACHER_SHARE = 0.7
WEIGHT_DECAY = 1e-4


class Stepper(Protocol):
    """What follows each optimizer step: prune.Pruner."""

    def step(self) -> None:
        """Called after optimizer.step()."""


@dataclass(frozen=True)
class Course:
    """How long and how fast to train."""

    epochs: int
    rate: float
    batch: int = 64
    seed: int = 0

    def steps(self, split: Split) -> int:
        """Optimizer steps of the whole course."""
        return self.epochs * self.batches(split)

    def batches(self, split: Split) -> int:
        """Full batches of an epoch, at least one; BatchNorm cannot train on a rest of one image."""
        return max(1, len(split.x_train) // self.batch)


def fit(
    model: nn.Module,
    split: Split,
    course: Course,
    optimizer: torch.optim.Optimizer,
    teacher: nn.Module | None = None,
    pruner: Stepper | None = None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Train in place with a one-cycle learning rate; `tick` is called after each step.

    Images are shifted by up to a pixel. With a teacher, most of the loss is the distance to the
    teacher's softened logits.
    """
    generator = torch.Generator().manual_seed(course.seed)
    steps = course.steps(split)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, course.rate, total_steps=max(steps, 2), pct_start=WARMUP
    )
    if teacher is not None:
        teacher.eval()
    model.train()
    for _ in range(course.epochs):
        order = torch.randperm(len(split.x_train), generator=generator)
        for start in range(0, course.batches(split) * course.batch, course.batch):
            chosen = order[start : start + course.batch]
            x = split.x_train[chosen]
            x = shift(x, generator) if x.ndim == 4 else x
            loss = _loss(model(x), split.y_train[chosen], _logits(teacher, x))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if pruner is not None:
                pruner.step()
            rate.step()
            tick()
    model.eval()


def optimizer_for(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW over every parameter."""
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)


@torch.no_grad()
def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """Class numbers int64 [N] in eval mode."""
    model.eval()
    parts = [model(x[start : start + 256]).argmax(1) for start in range(0, len(x), 256)]
    return torch.cat(parts)


def accuracy(predicted: Tensor, y: Tensor) -> float:
    """Percent that agree."""
    return 100 * (predicted == y).double().mean().item()


def _logits(teacher: nn.Module | None, x: Tensor) -> Tensor | None:
    if teacher is None:
        return None
    with torch.no_grad():
        logits: Tensor = teacher(x)
    return logits


def _loss(logits: Tensor, y: Tensor, taught: Tensor | None) -> Tensor:
    labels = F.cross_entropy(logits, y, label_smoothing=LABEL_SMOOTHING)
    if taught is None:
        return labels
    soft = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, 1),
        F.softmax(taught / TEMPERATURE, 1),
        reduction="batchmean",
    )
    return (1 - TEACHER_SHARE) * labels + TEACHER_SHARE * TEMPERATURE * soft
