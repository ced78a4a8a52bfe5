# SPDX-License-Identifier: Apache-2.0
"""TrainConfig: how long and how fast to train a classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

# Most of the learning rate's cycle comes after its peak.
WARMUP = 0.2


@dataclass(frozen=True)
class TrainConfig:
    """Epochs, peak learning rate and the rest of a one-cycle training.

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
        """Optimizer steps of the whole training."""
        return self.epochs * self.batches(images)

    def batches(self, images: int) -> int:
        """Full batches of an epoch, at least one; BatchNorm cannot train on a rest of one image."""
        return max(1, images // self.batch)


def optimizer_for(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The config's optimizer over every parameter."""
    parameters = list(model.parameters())
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(parameters, lr=config.rate, weight_decay=config.weight_decay)
