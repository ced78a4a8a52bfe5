# SPDX-License-Identifier: Apache-2.0
"""Degraders: how a small image comes from a large one, learned from pairs or known."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.sr.models.base import conv

SLOPE = 0.2


def box_down(x: Tensor, scale: int) -> Tensor:
    """The mean of every scale x scale pixels: [N, C, H, W] -> [N, C, H/scale, W/scale]."""
    return F.avg_pool2d(x, scale)


def conserve(made: Tensor, small: Tensor, scale: int) -> Tensor:
    """The nearest image to `made` whose block means are `small`: the difference is added back.

    Conservation as a hard projection, for fields whose small form is the mean of the large one.
    """
    lacking = small - box_down(made, scale)
    return made + F.interpolate(lacking, scale_factor=float(scale), mode="nearest")


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(width, width, 3), conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.leaky_relu(self.conv1(x), SLOPE))
        return x + y


class Degrader(nn.Module):
    """F: large images to small ones, [N, C, scale*h, scale*w] -> [N, C, h, w].

    A convolutional correction of the block mean, zero before training, so that it begins as
    `box_down` and makes no checkerboard. A strided convolution for every factor 2 of the scale, one
    for any other prime.
    """

    def __init__(
        self, scale: int, image_channels: int = 3, width: int = 64, blocks: int = 4
    ) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [conv(image_channels, width, 3), nn.LeakyReLU(SLOPE)]
        layers += [_Residual(width) for _ in range(blocks)]
        for factor in _primes(scale):
            kernel = 2 * factor - factor % 2
            layers.append(nn.Conv2d(width, width, kernel, factor, (kernel - factor) // 2))
            layers.append(nn.LeakyReLU(SLOPE))
        last = conv(width, image_channels, 3)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, x: Tensor) -> Tensor:
        """The small images."""
        y: Tensor = box_down(x, self.scale) + self.layers(x)
        return y


def _primes(number: int) -> list[int]:
    """Prime factors, smallest first."""
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found
