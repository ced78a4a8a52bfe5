# SPDX-License-Identifier: Apache-2.0
"""Training of a classifier: dense, or ternary with a pruner and a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ternary_ops.data.image_folder import Source
from ternary_ops.errors import BadWeights, need
from ternary_ops.graph.signature import pick
from ternary_ops.prune import Pruner
from ternary_ops.quantize import calibrate
from ternary_ops.train.augment import Taught, Views
from ternary_ops.train.checkpoint import Checkpoint, Stateful
from ternary_ops.train.distillation import Distillation
from ternary_ops.train.distributed import ALONE, Ranks
from ternary_ops.train.rates import one_cycle

# The largest share of the learning rate's cycle comes after its peak.
WARMUP = 0.2


@dataclass(frozen=True)
class Course:
    """How long and how fast to train.

    optimizer: "adamw", or "sgd" with Nesterov momentum. clip: largest norm of the gradient.
    bfloat16: convolutions and matrix products of the forward and backward pass read bfloat16;
    weights, gradients of weights and the optimizer stay float32.
    """

    epochs: int
    rate: float
    batch: int = 64
    seed: int = 0
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    warmup: float = WARMUP
    clip: float = float("inf")
    bfloat16: bool = False

    def steps(self, images: int) -> int:
        """Optimizer steps of the whole course."""
        return self.epochs * self.batches(images)

    def batches(self, images: int) -> int:
        """Full batches of an epoch, at least one; BatchNorm cannot train on a rest of one image."""
        return max(1, images // self.batch)


def fit(
    model: nn.Module,
    views: Views,
    y: Tensor,
    course: Course,
    optimizer: torch.optim.Optimizer,
    loss: Distillation,
    *,
    taught: Taught | None = None,
    pruner: Pruner | None = None,
    calibration: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks = ALONE,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Train in place with a one-cycle learning rate; `tick` is called after each step.

    Images come from `views`, labels int64 [N] are y; `taught` gives the teacher's logits in place
    of the teacher of `loss`. When the pruner freezes the codes, activation ranges are set from
    `calibration` (images like those of `views`) and learned from then on. With a checkpoint a run
    that was cut off goes on where it was, with the same bits. Every process of `ranks` takes its
    share of each batch, and the first one writes checkpoints. The model ends in eval mode. Raises
    BadWeights when the loss is not finite, before a weight has changed.
    """
    steps, batches = course.steps(len(y)), course.batches(len(y))
    rate = one_cycle(optimizer, course.rate, steps, course.warmup)
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "rate": rate}
    if pruner is not None:
        parts["pruner"] = pruner
    done = checkpoint.load(parts) if checkpoint is not None else 0
    for _ in range(done):
        tick()
    model.train()
    run = ranks.wrapped(model)
    for epoch in range(done // batches, course.epochs):
        # One generator an epoch: resuming needs no state of it.
        generator = torch.Generator().manual_seed(course.seed * 1000 + epoch)
        order = torch.randperm(len(y), generator=generator)
        view = views.number(epoch)
        for batch in range(done - epoch * batches, batches):
            chosen = ranks.share(order[batch * course.batch : (batch + 1) * course.batch])
            x = views.take(view, chosen)
            known = taught(view, chosen) if taught is not None else None
            with torch.autocast("cpu", torch.bfloat16, enabled=course.bfloat16):
                value = loss(run, x, y[chosen], known)
            _check_loss(value, done)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            if course.clip < float("inf"):
                nn.utils.clip_grad_norm_(model.parameters(), course.clip)
            optimizer.step()
            if pruner is not None:
                before = pruner.phase
                pruner.step()
                if calibration is not None and before != pruner.phase == "frozen":
                    calibrate(model, [calibration])
            rate.step()
            done += 1
            if checkpoint is not None and ranks.first:
                checkpoint.save(done, parts, now=done == steps)
            tick()
    model.eval()


def _check_loss(value: Tensor, done: int) -> None:
    if not bool(value.isfinite()):
        raise BadWeights(
            need(
                "training needs a finite loss",
                f"{value.item()} at step {done + 1}",
                "Lower the learning rate, clip gradients, or look for NaN in the images.",
            )
        )


def optimizer_for(model: nn.Module, course: Course) -> torch.optim.Optimizer:
    """The course's optimizer over every parameter."""
    parameters = list(model.parameters())
    if course.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=course.rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=course.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=course.rate, weight_decay=course.weight_decay)


@torch.no_grad()
def predictions(model: nn.Module, x: Source) -> Tensor:
    """Class numbers int64 [N] in eval mode."""
    model.eval()
    starts = range(0, len(x), 256)
    parts = [pick(model(x[start : start + 256])).argmax(1) for start in starts]
    return torch.cat(parts)


def accuracy(predicted: Tensor, y: Tensor) -> float:
    """Percent that agree."""
    return 100 * (predicted == y).double().mean().item()
