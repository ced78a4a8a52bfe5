# SPDX-License-Identifier: Apache-2.0
"""Small networks, optimizers and training steps for the tests of the Pruner."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.nn import TernaryConv2d
from ternary_ops.nn.patterns import get_pattern, unit_scores
from ternary_ops.prune import Pruner
from ternary_ops.quantize import TernaryConfig


def conv(i: int, o: int, config: TernaryConfig) -> TernaryConv2d:
    layer = TernaryConv2d(i, o, 3, padding=1, config=config)
    with torch.no_grad():
        layer.input_range.copy_(torch.tensor([-2.5, 3.0]))
    return layer


def quantized_net(**options: Any) -> nn.Sequential:
    config = TernaryConfig(**{"zeros": 0.8, **options})
    return nn.Sequential(
        conv(1, 6, TernaryConfig(weights="int8")),
        nn.ReLU(),
        conv(6, 10, config),
        nn.ReLU(),
        conv(10, 7, config),
        nn.Flatten(),
        nn.Linear(7 * 16, 5),
    )


def float_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 9, 3, padding=1, groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9 * 16, 11),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True)


OPTIMIZERS = [sgd, adam]


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 1, 4, 4, generator=generator)
    y = torch.randint(0, 5, (8,), generator=generator)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    backward(model, optimizer, seed)
    optimizer.step()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, pruner: Pruner, steps: range) -> None:
    for seed in steps:
        train_step(model, optimizer, seed)
        pruner.step()


def ternary_layers(model: nn.Module) -> list[Any]:
    layers = [m for m in model.modules() if isinstance(m, TernaryConv2d)]
    return [m for m in layers if m.config.weights == "ternary"]


def empty(weight: Tensor, pattern: str) -> tuple[int, int]:
    scores = unit_scores(weight, get_pattern(pattern))
    return int((scores == 0).sum()), scores.numel()
