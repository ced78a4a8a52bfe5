# SPDX-License-Identifier: Apache-2.0
"""IMDN as the baseline of NTIRE 2022 has it (Hui et al., AIM 2019, without contrast attention).

Reconstructed from its published weights and the paper; Set5 confirms it.
"""

from __future__ import annotations

from torch import Tensor, nn

from ternary_ops.sr.models.base import SRNetwork, cat, conv

SLOPE = 0.05


def _step(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, channels, 3), nn.LeakyReLU(SLOPE))


class IMDB(nn.Module):
    """Information multi-distillation: a quarter of the channels kept at each of four steps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kept = channels // 4
        rest = channels - self.kept
        self.conv1 = _step(channels, channels)
        self.conv2, self.conv3 = _step(rest, channels), _step(rest, channels)
        self.conv4 = conv(rest, self.kept, 3)
        self.conv1x1 = conv(4 * self.kept, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        kept, rest = [], x
        for step in (self.conv1, self.conv2, self.conv3):
            y = step(rest)
            kept.append(y[:, : self.kept])
            rest = y[:, self.kept :]
        fused: Tensor = self.conv1x1(cat(*kept, self.conv4(rest)))
        return x + fused


class IMDN(SRNetwork):
    """x [N, C, H, W] in 0..1 -> [N, C, scale*H, scale*W], not clamped; any size."""

    family = "IMDN"
    trunk = "blocks"
    ends = "head", "tail"
    input_range = 1.0

    def __init__(
        self, scale: int = 4, channels: int = 64, blocks: int = 8, image_channels: int = 3
    ) -> None:
        super().__init__(scale, image_channels)
        self.head = conv(image_channels, channels, 3)
        self.blocks = nn.ModuleList(IMDB(channels) for _ in range(blocks))
        self.body = conv(channels, channels, 3)
        self.tail = conv(channels, image_channels * scale * scale, 3)
        self.shuffle = nn.PixelShuffle(scale)

    @property
    def radius(self) -> int:
        """One pixel for each 3x3 convolution on the longest path."""
        return 3 + 4 * len(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        h = first = self.head(x)
        for block in self.blocks:
            h = block(h)
        y: Tensor = self.shuffle(self.tail(self.body(h) + first))
        return y
