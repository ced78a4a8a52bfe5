# SPDX-License-Identifier: Apache-2.0
"""A tiny network with batches, and what a criterion says of all its weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.prune.criteria import get_criterion

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).double()
Y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(2))
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def scores(
    name: str, model: nn.Module, batches: Any = BATCHES, loss: Any = F.cross_entropy
) -> dict[str, Tensor]:
    """What a criterion says of every weight."""
    criterion = get_criterion(name, None, batches, loss)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    for key, layer in layers.items():
        criterion.watch(key, [layer])
    criterion.prepare(model, batches, loss)
    return {
        key: criterion.scores(key, layer.weight, getattr(layer, "groups", 1))
        for key, layer in layers.items()
    }
