# SPDX-License-Identifier: Apache-2.0
"""Training of a classifier: dense, or ternary with a pruner and a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops import _moved
from ternary_ops.data.image_folder import Source
from ternary_ops.graph.signature import pick
from ternary_ops.prune import Pruner
from ternary_ops.quantize.calibration_hook import CalibrateAtFreeze
from ternary_ops.train.augment import Augmentation, Teacher
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.config import TrainConfig
from ternary_ops.train.distillation import Distillation
from ternary_ops.train.distributed import ALONE, Ranks
from ternary_ops.train.loop import TrainLoop
from ternary_ops.train.rates import one_cycle

_Batch = tuple[Tensor, Tensor, Tensor | None]


def fit(
    model: nn.Module,
    images: Augmentation,
    y: Tensor,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    loss: Distillation,
    *,
    teacher: Teacher | None = None,
    pruner: Pruner | None = None,
    calibration: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks = ALONE,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Train in place with a one-cycle learning rate; `on_step` is called after each step.

    y: labels int64 [N] of `images`. teacher: logits in place of those of the network in `loss`.
    When the pruner freezes the codes, activation ranges are set from `calibration` (images like
    those of `images`) and learned from then on. With a checkpoint a run that was cut off goes on
    with the same bits. Every process of `ranks` takes its share of each batch. The model ends in
    eval mode. Raises BadWeights when the loss is not finite, before a weight has changed.
    """
    steps = config.steps(len(y))
    loop = TrainLoop(
        model,
        optimizer,
        one_cycle(optimizer, config.rate, steps, config.warmup),
        steps,
        pruner=pruner,
        clip=config.clip,
        bfloat16=config.bfloat16,
        checkpoint=checkpoint,
        ranks=ranks,
        hooks=[] if calibration is None else [CalibrateAtFreeze(calibration)],
        on_step=on_step,
    )
    loop.run(
        Batches(images, y, config, teacher, ranks),
        lambda network, batch: loss(network, *batch),
    )


class Batches:
    """Batches of augmented images, labels and the teacher's logits, in a new order each epoch."""

    def __init__(
        self,
        images: Augmentation,
        y: Tensor,
        config: TrainConfig,
        teacher: Teacher | None,
        ranks: Ranks,
    ) -> None:
        self.images, self.y, self.config = images, y, config
        self.teacher, self.ranks = teacher, ranks
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> _Batch:
        """The batch of a step, from 0."""
        epoch, batch = divmod(step, self.config.batches(len(self.y)))
        if epoch != self._epoch:
            # One generator an epoch: resuming needs no state of it.
            generator = torch.Generator().manual_seed(self.config.seed * 1000 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.y), generator=generator)
        size = self.config.batch
        chosen = self.ranks.share(self._order[batch * size : (batch + 1) * size])
        view = self.images.number(epoch)
        known = None if self.teacher is None else self.teacher(view, chosen)
        return self.images.take(view, chosen), self.y[chosen], known


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


def __getattr__(name: str) -> Any:
    return _moved.attribute(__name__, name)
