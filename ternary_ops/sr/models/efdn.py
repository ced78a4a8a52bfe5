# SPDX-License-Identifier: Apache-2.0
"""EFDN: edge-enhanced feature distillation network (Wang, NTIRE 2022, arXiv 2204.08759).

Topology, sizes and names are those of the published deploy network; training blocks are in
`reparam.EDBB`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.sr.models.attention import ESA, ESA_SMALLEST
from ternary_ops.sr.models.base import SRNetwork, cat, conv, shuffle_tail
from ternary_ops.sr.models.reparam import EDBB, Conv3x3


class Pointwise(nn.Module):
    """1x1 convolution and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1x1 = conv(channels, channels, 1)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        y: Tensor = self.act(self.conv1x1(x))
        return y


class Cell(nn.Module):
    """Three convolutions in a row, half the channels of each kept, fused, ESA, plus the input."""

    def __init__(self, channels: int, inner: int, train: bool, **switches: bool) -> None:
        super().__init__()
        self.conv1 = Pointwise(channels)
        self.conv2, self.conv3 = (_block(channels, train, **switches) for _ in range(2))
        self.branch = nn.ModuleList(conv(channels, channels // 2, 1) for _ in range(4))
        self.fuse = conv(2 * channels, channels, 1)
        self.att = ESA(channels, inner, full=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        t1 = self.conv1(x)
        t2 = self.conv2(t1)
        t3 = self.conv3(t2)
        kept = [branch(t) for branch, t in zip(self.branch, (x, t1, t2, t3), strict=True)]
        y: Tensor = self.att(self.fuse(cat(*kept)))
        return y + x


def _block(channels: int, train: bool, expand: bool = False, identity: bool = False) -> nn.Module:
    if train:
        return EDBB(channels, channels, channels if expand else None, identity)
    return Conv3x3(channels, channels, nn.PReLU(channels))


class EFDN(SRNetwork):
    """x [N, C, H, W] in 0..1, H, W >= 15 -> [N, C, scale*H, scale*W], within 0..1 in eval mode.

    The published code clamps while it trains too, where pixels out of range would get no gradient.

    channels, inner: 48 and 12 in the paper. train: with branches, for training; `sr.fold` makes the
    deploy network of it. expand, identity: the switches of `reparam.EDBB`.
    """

    family = "EFDN"
    trunk = "cells"
    ends = "head", "tail.0"
    input_range = 1.0
    smallest = ESA_SMALLEST

    def __init__(
        self,
        scale: int = 4,
        channels: int = 48,
        inner: int | None = None,
        train: bool = False,
        expand: bool = False,
        identity: bool = False,
        image_channels: int = 3,
    ) -> None:
        super().__init__(scale, image_channels)
        inner = channels // 4 if inner is None else inner
        switches = {"expand": expand, "identity": identity}
        self.head = conv(image_channels, channels, 3)
        self.cells = nn.ModuleList(Cell(channels, inner, train, **switches) for _ in range(4))
        self.local_fuse = nn.ModuleList(conv(2 * channels, channels, 1) for _ in range(3))
        self.tail = shuffle_tail(channels, scale, image_channels)

    def to_gradient_stage_(self) -> None:
        """Merge the convolutions of every block, in place, for the second stage of training.

        Raises BadConfig for blocks without identity or without branches.
        """
        blocks = [block for cell in self.cells for block in (cell.conv2, cell.conv3)]
        for block in blocks:
            if not isinstance(block, EDBB):
                do = "Build the network with train=True, identity=True."
                raise BadConfig(need("edge branches in the gradient stage", "a folded block", do))
            block.to_gradient_stage_()

    def forward(self, x: Tensor) -> Tensor:
        """The larger image."""
        o0 = self.head(x)
        o1 = self.cells[0](o0)
        o2 = self.cells[1](o1)
        o3 = self.cells[2](self.local_fuse[0](cat(o1, o2)))
        o4 = self.cells[3](self.local_fuse[1](cat(o2, o3)))
        y: Tensor = self.tail(self.local_fuse[2](cat(o2, o4)) + o0)
        return y if self.training else torch.clamp(y, 0.0, 1.0)
