# SPDX-License-Identifier: Apache-2.0
"""Attention of efficient super-resolution networks: a map times the sigmoid of a branch of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.sr.network import conv

# The stride-2 convolution and the pool of 7 need so many pixels: (15 - 3) // 2 + 1 = 7.
ESA_SMALLEST = 15


class ESA(nn.Module):
    """Enhanced spatial attention: x times a mask that a much smaller map gives, [N, C, H, W].

    full   RFDN (Liu et al. 2020) and EFDN: three convolutions after the pool, ReLU after two
    else   RLFN (Kong et al. 2022): one convolution after the pool

    The pooled map is stretched over the whole image (bilinear, align_corners=False), by a factor
    that depends on its size: a part of an image has another mask than the same place in the whole.
    """

    def __init__(self, channels: int, inner: int, full: bool) -> None:
        super().__init__()
        self.conv1 = conv(channels, inner, 1)
        self.conv_f = conv(inner, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=2)
        self.conv_max = conv(inner, inner, 3) if full else None
        self.conv3 = conv(inner, inner, 3)
        self.conv3_ = conv(inner, inner, 3) if full else None
        self.conv4 = conv(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x times its mask."""
        c1 = self.conv1(x)
        v = F.max_pool2d(self.conv2(c1), 7, 3)
        if self.conv_max is not None:
            v = F.relu(self.conv_max(v))
        v = self.conv3(v)
        if self.conv3_ is not None:
            v = self.conv3_(F.relu(v))
        up = F.interpolate(v, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(up + self.conv_f(c1)))
