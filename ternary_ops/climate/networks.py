# SPDX-License-Identifier: Apache-2.0
"""Networks that `fit` trains: one for a domain, one for tiles of any extent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need

_DEPTH = 3


class DomainNetwork(nn.Module):
    """Three convolutions and a linear layer to every cell, plus a linear layer past them.

    The linear skip sees all predictors, the step before included; it is a ridge regression, solved
    exactly (`set_skip_`) and not trained. The rest starts at 0 and learns what that leaves.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], cells: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(_DEPTH):
            layers += [nn.Conv2d(width if i else channels, width, 3, padding=1), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(width * size[0] * size[1], cells)
        self.skip = nn.Linear(channels * size[0] * size[1], cells)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, channels, rows, columns] -> [N, cells]."""
        y: Tensor = self.head(self.trunk(x)) + self.skip(x.flatten(1))
        return y

    @torch.no_grad()
    def set_skip_(self, x: NDArray[Any], y: NDArray[Any], strength: float) -> None:
        """Set the skip to the ridge regression of y on x, in float64."""
        rows = x.reshape(len(x), -1).astype(np.float64)
        mean = rows.mean(0)
        rows -= mean
        left = rows.T @ rows + strength * np.eye(rows.shape[1])
        weights = np.linalg.solve(left, rows.T @ (y - y.mean(0)))
        self.skip.weight.copy_(torch.from_numpy(weights.T))
        self.skip.bias.copy_(torch.from_numpy(y.mean(0) - mean @ weights))
        for parameter in self.skip.parameters():
            parameter.requires_grad_(False)


class Ensemble(nn.Module):
    """The mean of several DomainNetworks in one: their linear skips become a single layer."""

    def __init__(self, members: Sequence[DomainNetwork]) -> None:
        super().__init__()
        first = members[0].skip
        self.skip = nn.Linear(first.in_features, first.out_features)
        self.trunks = nn.ModuleList(one.trunk for one in members)
        self.heads = nn.ModuleList(one.head for one in members)
        share = 1 / len(members)
        with torch.no_grad():
            for name in ("weight", "bias"):
                parts = torch.stack([getattr(one.skip, name) for one in members])
                getattr(self.skip, name).copy_(parts.mean(0))
            for head in self.heads:
                for parameter in head.parameters():
                    parameter.mul_(share)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, channels, rows, columns] -> [N, cells]."""
        y: Tensor = self.skip(x.flatten(1))
        for trunk, head in zip(self.trunks, self.heads, strict=True):
            y = y + head(trunk(x))
        return y


class LocalNetwork(nn.Module):
    """Convolutions on the coarse grid, then pixel shuffle; bilinear interpolation past them.

    Borders are repeated, so that a border is as far away as the field says. Interpolation is a
    convolution with fixed filters: unlike a resize, it is the same in every tile, bit for bit.
    """

    def __init__(self, channels: int, own: int, factor: int, width: int, depth: int) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            got = f"depth {depth}, width {width}"
            raise BadConfig(need("a depth and a width of 1 or more", got, "Use 4 and 24."))
        layers: list[nn.Module] = []
        for i in range(depth - 1):
            layers += [_conv(width if i else channels, width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.tail = _conv(width if depth > 1 else channels, factor * factor)
        self.bilinear = _conv(channels, factor * factor)
        self.shuffle = nn.PixelShuffle(factor)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.bilinear.weight.zero_()
            self.bilinear.weight[:, own] = torch.from_numpy(_bilinear_filters(factor))
            self.bilinear.bias.zero_()  # type: ignore[union-attr]
        for parameter in self.bilinear.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, channels, rows, columns] -> [N, 1, factor * rows, factor * columns]."""
        y: Tensor = self.shuffle(self.tail(self.body(x)) + self.bilinear(x))
        return y


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, padding_mode="replicate")


def _bilinear_filters(factor: int) -> NDArray[np.float32]:
    """Filters [factor**2, 3, 3] whose outputs, shuffled, are the interpolation to finer cells."""
    taps = np.zeros((factor, 3))
    for i in range(factor):
        offset = (i + 0.5) / factor - 0.5
        taps[i] = [max(0.0, -offset), 1 - abs(offset), max(0.0, offset)]
    both = np.einsum("ia,jb->ijab", taps, taps)
    made: NDArray[np.float32] = both.reshape(factor * factor, 3, 3).astype(np.float32)
    return made
