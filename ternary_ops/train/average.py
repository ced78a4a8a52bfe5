# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average (EMA) of the weights, with which training ends."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ternary_ops.train.checkpoint import Stateful
from ternary_ops.train.loop import Hook, TrainLoop


class WeightAverage(Hook):
    """Averages weights and buffers after every step; at the end the model takes the average."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """decay: the weight of the former average, such as 0.999."""
        averaged = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(model, multi_avg_fn=averaged, use_buffers=True)

    def parts(self) -> Mapping[str, Stateful]:
        """The average."""
        return {"average": self.average}

    def after_step(self, loop: TrainLoop) -> None:
        """Take up the weights of this step."""
        self.average.update_parameters(loop.model)

    def on_end(self, loop: TrainLoop) -> None:
        """Load the average, with exact zeros where weights are pruned."""
        loop.model.load_state_dict(self.average.module.state_dict())
        if loop.pruner is not None:
            loop.pruner.step(skipped=True)  # averaged weights only come near to zero
