# SPDX-License-Identifier: Apache-2.0
"""A sum of an image and what an 8-bit layer makes of its mean, spread over the image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ternary_ops as tops


class GlobalContext(nn.Module):
    """Adds one number a channel to an image, as the global context of a GCNet does."""

    def __init__(self, activation: nn.Module, image_first: bool) -> None:
        super().__init__()
        self.stem, self.end = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.activation, self.image_first = activation, image_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        context = self.up(self.down(x.mean((2, 3), keepdim=True)).relu())
        total = x + context if self.image_first else context + x
        return self.end(self.activation(total))


def decibels(got: Tensor, wanted: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().sum() / (got - wanted).square().sum()))


@pytest.mark.parametrize("image_first", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity(), nn.SiLU()])
def test_program_is_as_exact_as_the_network(activation: nn.Module, image_first: bool) -> None:
    torch.manual_seed(0)
    model, x = GlobalContext(activation, image_first).eval(), torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        wanted = model(x)
        tops.quantize_(model, tops.plan(model, tops.TernaryConfig(weights="int8")))
        tops.calibrate(model, [x])
        fake = model(x)
    got = torch.from_numpy(tops.compile(model, x[:1])(x.numpy()))
    assert decibels(fake, wanted) > 35
    assert decibels(got, wanted) > decibels(fake, wanted) - 1
