# SPDX-License-Identifier: Apache-2.0
"""Attention of efficient super-resolution networks: a map times the sigmoid of a branch of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops import ops
from ternary_ops.errors import BadConfig, need
from ternary_ops.reference import bilinear_positions
from ternary_ops.sr.models.base import conv

# Least size for the stride-2 convolution and the pool of 7: (15 - 3) // 2 + 1 = 7.
ESA_SMALLEST = 15
# Pixels from one pooled cell to the next: stride 2 times stride 3.
ESA_STEP = 6


def esa_cells(pixels: int) -> int:
    """Cells of the pooled map along an axis of so many pixels."""
    return ((pixels - 3) // 2 + 1 - 7) // 3 + 1


@dataclass(frozen=True)
class Place:
    """Position of a crop in its image, in pixels; top and left are multiples of ESA_STEP."""

    height: int
    width: int
    top: int
    left: int

    def cells(self, v: Tensor) -> Tensor:
        """The pooled map of the crop without cells that the whole image does not have."""
        rows, columns = esa_cells(self.height), esa_cells(self.width)
        return v[..., : rows - self.top // ESA_STEP, : columns - self.left // ESA_STEP]

    def stretched(self, v: Tensor, size: tuple[int, int]) -> Tensor:
        """v, stretched as in the whole image, over a crop of this size."""
        for axis, total, first, count in (
            (-2, self.height, self.top, size[0]),
            (-1, self.width, self.left, size[1]),
        ):
            v = _stretched(v, axis, total, first, count)
        return v


def _stretched(v: Tensor, axis: int, total: int, first: int, count: int) -> Tensor:
    """Bilinear interpolation along one axis, align_corners=False, by positions in the whole image;
    cells beyond the crop's are taken for its last.
    """
    cells = esa_cells(total)
    positions = bilinear_positions(cells, total, np.float64(cells) / total, False)
    near, far, _, share = (torch.from_numpy(t[first : first + count]) for t in positions)
    shape = [-1 if d == v.ndim + axis else 1 for d in range(v.ndim)]
    own = [
        v.index_select(axis, (i - first // ESA_STEP).clamp(0, v.shape[axis] - 1).to(v.device))
        for i in (near, far)
    ]
    return torch.lerp(own[0], own[1], share.to(v).view(shape))


class ESA(nn.Module):
    """Enhanced spatial attention: x times a mask that a much smaller map gives, [N, C, H, W].

    full   RFDN (Liu et al. 2020) and EFDN: three convolutions after the pool, ReLU after two
    else   RLFN (Kong et al. 2022): one convolution after the pool

    The pooled map is stretched over the whole image (bilinear, align_corners=False), by a factor
    that depends on its size: a part of an image has another mask than the same place in the whole.
    `place` says where x lies in the whole; None: it is the whole. fused: see fuse_attention_.
    """

    fused = False
    place: Place | None = None
    step = ESA_STEP

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
        if self.fused and self.place is None:
            inner = [m for m in (self.conv_max, self.conv3, self.conv3_) if m is not None]
            layers = [self.conv1, self.conv_f, self.conv2, *inner, self.conv4]
            if runs_fused(layers, x):
                return ops.esa(x, *parameters(layers))
        c1 = self.conv1(x)
        v = F.max_pool2d(self.conv2(c1), 7, 3)
        if self.place is not None:
            v = self.place.cells(v)
        if self.conv_max is not None:
            v = F.relu(self.conv_max(v))
        v = self.conv3(v)
        if self.conv3_ is not None:
            v = self.conv3_(F.relu(v))
        if self.place is None:
            up = F.interpolate(v, size=x.shape[-2:], mode="bilinear", align_corners=False)
        else:
            up = self.place.stretched(v, (x.shape[-2], x.shape[-1]))
        return x * torch.sigmoid(self.conv4(up + self.conv_f(c1)))


def runs_fused(layers: Sequence[nn.Module], x: object) -> TypeGuard[Sequence[nn.Conv2d]]:
    """True if a block calls its fused operator: on a tensor (torch.fx passes none), while its
    convolutions are plain and have no hooks.
    """
    return isinstance(x, Tensor) and all(
        type(m) is nn.Conv2d and not m._forward_hooks and not m._forward_pre_hooks for m in layers
    )


def parameters(layers: Sequence[nn.Conv2d]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of convolutions that have both."""
    return [m.weight for m in layers], [cast(Tensor, m.bias) for m in layers]


def fuse_attention_(network: nn.Module) -> int:
    """Let the attention blocks of a network run as one operator each, in place; returns how many.

    For inference in PyTorch, on a CPU or a GPU: ESA and folded HFAB call ops.esa and
    ops.hf_attention. State dict, quantization, compilation and training go on as before, block by
    block wherever a convolution was replaced or is watched by a hook. Raises BadConfig for FMEN's
    training branches.
    """
    blocks: list[Any] = [m for m in network.modules() if hasattr(m, "fused")]
    for block in blocks:
        if getattr(block, "bn1", None) is not None:
            got, do = "training branches", "Call sr.fold first."
            raise BadConfig(need("a folded network", got, do))
    for block in blocks:
        block.fused = True
    return len(blocks)
