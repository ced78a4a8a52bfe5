# SPDX-License-Identifier: Apache-2.0
"""A small network with BatchNorms to fold, and what tests of folding compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def net() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 5, 1),
    )


def settled(model: Any) -> Any:
    """A few training steps' worth of statistics, then eval mode."""
    for _ in range(3):
        model.train()(2 * torch.randn(8, 3, 9, 9) + 1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.normal_()
            norm.bias.data.normal_()
    return model.eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    same = [torch.equal(after[k].nan_to_num(7.0), v.nan_to_num(7.0)) for k, v in before.items()]
    return after.keys() == before.keys() and all(same)


def close(found: Any, wanted: Tensor) -> None:
    want = wanted.detach().numpy()
    np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=1e-4 * abs(want).max())
