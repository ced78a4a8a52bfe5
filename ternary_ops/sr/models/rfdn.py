# SPDX-License-Identifier: Apache-2.0
"""Relatives of EFDN: RFDN (Liu et al., AIM 2020) and RLFN (Kong et al., NTIRE 2022).

Both are reconstructed from their published weights and papers; Set5 confirms them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.sr.models.attention import ESA, ESA_SMALLEST
from ternary_ops.sr.models.base import SRNetwork, cat, conv, shuffle_tail

SLOPE = 0.05  # of every leaky ReLU


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class RFDB(nn.Module):
    """Residual feature distillation: a half of the channels kept at each of three steps."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        half = channels // 2
        self.c1_d, self.c2_d, self.c3_d = (conv(channels, half, 1) for _ in range(3))
        self.c1_r, self.c2_r, self.c3_r = (conv(channels, channels, 3) for _ in range(3))
        self.c4 = conv(channels, half, 3)
        self.c5 = conv(4 * half, channels, 1)
        self.esa = ESA(channels, inner, full=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        r1 = _act(self.c1_r(x) + x)
        r2 = _act(self.c2_r(r1) + r1)
        r3 = _act(self.c3_r(r2) + r2)
        kept = (_act(self.c1_d(x)), _act(self.c2_d(r1)), _act(self.c3_d(r2)), _act(self.c4(r3)))
        y: Tensor = self.esa(self.c5(cat(*kept)))
        return y


class RFDN(SRNetwork):
    """x [N, C, H, W] in 0..255, H, W >= 15 -> [N, C, scale*H, scale*W], not clamped.

    channels 50 and blocks 4 are E-RFDN, the winner of AIM 2020.
    """

    family = "RFDN"
    trunk = "B"
    ends = "fea_conv", "upsampler.0"
    input_range = 255.0
    smallest = ESA_SMALLEST

    def __init__(
        self,
        scale: int = 4,
        channels: int = 50,
        blocks: int = 4,
        inner: int | None = None,
        image_channels: int = 3,
    ) -> None:
        super().__init__(scale, image_channels)
        self.fea_conv = conv(image_channels, channels, 3)
        inner = channels // 4 if inner is None else inner
        self.B = nn.ModuleList(RFDB(channels, inner) for _ in range(blocks))
        self.c = nn.Sequential(conv(channels * blocks, channels, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = conv(channels, channels, 3)
        self.upsampler = shuffle_tail(channels, scale, image_channels)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        h = first = self.fea_conv(x)
        outputs = []
        for block in self.B:
            h = block(h)
            outputs.append(h)
        y: Tensor = self.upsampler(self.LR_conv(self.c(cat(*outputs))) + first)
        return y


class RLFB(nn.Module):
    """Residual local features: three convolutions, the input added, a 1x1 one and ESA."""

    def __init__(self, channels: int, middle: int, inner: int) -> None:
        super().__init__()
        self.c1_r = conv(channels, middle, 3)
        self.c2_r = conv(middle, middle, 3)
        self.c3_r = conv(middle, channels, 3)
        self.c5 = conv(channels, channels, 1)
        self.esa = ESA(channels, inner, full=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        y = _act(self.c3_r(_act(self.c2_r(_act(self.c1_r(x)))))) + x
        out: Tensor = self.esa(self.c5(y))
        return out


class RLFN(SRNetwork):
    """x [N, C, H, W] in 0..255, H, W >= 15 -> [N, C, scale*H, scale*W], not clamped.

    channels and middle: 52 and 52 in RLFN, 48 and 48 in RLFN-S, six blocks each; 46, 48 and four
    blocks in the network that won NTIRE 2022.
    """

    family = "RLFN"
    trunk = "block"
    ends = "conv_1", "upsampler.0"
    input_range = 255.0
    smallest = ESA_SMALLEST

    def __init__(
        self,
        scale: int = 4,
        channels: int = 52,
        middle: int | None = None,
        blocks: int = 6,
        inner: int = 16,
        image_channels: int = 3,
    ) -> None:
        super().__init__(scale, image_channels)
        middle = channels if middle is None else middle
        self.conv_1 = conv(image_channels, channels, 3)
        self.block = nn.ModuleList(RLFB(channels, middle, inner) for _ in range(blocks))
        self.conv_2 = conv(channels, channels, 3)
        self.upsampler = shuffle_tail(channels, scale, image_channels)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        h = first = self.conv_1(x)
        for block in self.block:
            h = block(h)
        y: Tensor = self.upsampler(self.conv_2(h) + first)
        return y
