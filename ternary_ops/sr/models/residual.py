# SPDX-License-Identifier: Apache-2.0
"""Generators of GANs: MSRResNet of SRGAN (Ledig et al. 2017), RRDBNet of ESRGAN (Wang et al. 2018).

Both as BasicSR has them, without BatchNorm; most tensors have its names. Defaults are its sizes
for x4: 1.5 and 16.7 million weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.sr.models.base import SRNetwork, cat, conv

SLOPE_SRGAN, SLOPE_ESRGAN = 0.1, 0.2
_SHARE = 0.2  # of a dense block in what it is added to


def _doublings(scale: int) -> int:
    count = scale.bit_length() - 1
    if scale < 2 or 2**count != scale:
        raise BadConfig(need("a scale of 2, 4 or 8", scale, "Take another network."))
    return count


class ResidualBlock(nn.Module):
    """x plus two convolutions of it, a ReLU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, channels, 3), conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        y: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + y


class MSRResNet(SRNetwork):
    """x [N, C, H, W] in 0..1 -> [N, C, scale*H, scale*W], not clamped; any size; scale 2, 4 or 8.

    A correction of bilinear interpolation, so it learns what interpolation lacks.
    """

    family = "MSRResNet"
    trunk = "body"
    input_range = 1.0

    def __init__(
        self, scale: int = 4, channels: int = 64, blocks: int = 16, image_channels: int = 3
    ) -> None:
        super().__init__(scale, image_channels)
        self.conv_first = conv(image_channels, channels, 3)
        self.body = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))
        self.up = nn.ModuleList(conv(channels, 4 * channels, 3) for _ in range(_doublings(scale)))
        self.conv_hr = conv(channels, channels, 3)
        self.conv_last = conv(channels, image_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        h = F.leaky_relu(self.conv_first(x), SLOPE_SRGAN)
        for block in self.body:
            h = block(h)
        for layer in self.up:
            h = F.leaky_relu(F.pixel_shuffle(layer(h), 2), SLOPE_SRGAN)
        y: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(h), SLOPE_SRGAN))
        zoom = float(self.scale)
        return y + F.interpolate(x, scale_factor=zoom, mode="bilinear", align_corners=False)


class DenseBlock(nn.Module):
    """x plus a fifth of five convolutions, each of x and of the outputs of all before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            conv(channels + i * growth, growth, 3) for i in range(4)
        )
        self.conv5 = conv(channels + 4 * growth, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        seen = [x]
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen.append(F.leaky_relu(layer(cat(*seen)), SLOPE_ESRGAN))
        y: Tensor = self.conv5(cat(*seen))
        return x + y * _SHARE


class RRDB(nn.Module):
    """Residual in residual: x plus a fifth of three dense blocks."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        y: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + y * _SHARE


class RRDBNet(SRNetwork):
    """x [N, C, H, W] in 0..1 -> [N, C, scale*H, scale*W], not clamped; any size, scale 2, 4, 8."""

    family = "RRDBNet"
    trunk = "body"
    ends = "conv_first", "conv_last"
    input_range = 1.0

    def __init__(
        self,
        scale: int = 4,
        channels: int = 64,
        blocks: int = 23,
        growth: int = 32,
        image_channels: int = 3,
    ) -> None:
        super().__init__(scale, image_channels)
        self.conv_first = conv(image_channels, channels, 3)
        self.body = nn.ModuleList(RRDB(channels, growth) for _ in range(blocks))
        self.conv_body = conv(channels, channels, 3)
        self.up = nn.ModuleList(conv(channels, channels, 3) for _ in range(_doublings(scale)))
        self.conv_hr = conv(channels, channels, 3)
        self.conv_last = conv(channels, image_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        h = first = self.conv_first(x)
        for block in self.body:
            h = block(h)
        h = first + self.conv_body(h)
        for layer in self.up:
            larger = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = F.leaky_relu(layer(larger), SLOPE_ESRGAN)
        y: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(h), SLOPE_ESRGAN))
        return y
