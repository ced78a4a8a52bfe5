# SPDX-License-Identifier: Apache-2.0
"""What no program computes is refused by the path of its module and the line of its code."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from small_networks import images
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel


class Net(nn.Module):
    """A function behind a convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 6, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def spectrum(x: Tensor) -> Tensor:
    return torch.fft.fft2(x).abs()


def pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(1, (3, 2)).movedim(2, -1).contiguous()).abs()


def rotated(x: Tensor) -> Tensor:
    return (x * torch.tensor(1j)).real


def loudest(x: Tensor) -> Tensor:
    """The four tokens that matter most, in each image others."""
    tokens = x.flatten(2).transpose(1, 2)
    best = tokens.mean(2).topk(4).indices
    return tokens.gather(1, best.unsqueeze(-1).expand(-1, -1, 6))


def positive(x: Tensor) -> Tensor:
    """As many tokens as are positive."""
    tokens = x.flatten(2)
    return tokens[:, :, tokens.mean((0, 1)) > 0]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (spectrum, r"fft_fft2\(\): "),
        (pairs, r"view_as_complex\(\): "),
        (rotated, r"mul\(\): programs compute in float32"),
        (loudest, r"topk\(\): .*\n.*gather\(\): "),
        (positive, "a mask as index makes a shape that depends"),
    ],
)
def test_named_with_module_and_line(function: Callable[[Tensor], Tensor], reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Net(function)).eval()
    place = r"(1 of Sequential, |in 1 \()test_refused.py:\d+"
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        tops.compile(model, images(2, 3, 6, 6))
    assert re.search(place, str(caught.value))
