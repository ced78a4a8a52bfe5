# SPDX-License-Identifier: Apache-2.0
"""A convolution or linear layer as one product of matrices, a unit's weights side by side."""

from __future__ import annotations

import math
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.nn.geometry import edges_at


class LayerMatrix:
    """Views of a layer's weight and input in which a unit's weights lie side by side.

    The weight [O, I, ...] of a layer with G groups is [G, O/G, K] with K = units * unit, units in
    the order of `units.Pattern` (input channels outside, taps inside); channels that a last unit
    lacks are zeros.
    """

    def __init__(self, layer: nn.Module, unit: int) -> None:
        weight = cast(Tensor, layer.weight)
        self.layer: Any = layer
        self.unit = unit
        self.shape = weight.shape
        self.groups = int(getattr(layer, "groups", 1))
        self.taps = math.prod(weight.shape[2:])

    def _units(self, values: Tensor) -> Tensor:
        """[..., I, T, X] -> [..., K, X]."""
        channels, taps, last = values.shape[-3:]
        values = F.pad(values, (0, 0, 0, 0, 0, -channels % self.unit))
        split = values.view(*values.shape[:-3], -1, self.unit, taps, last)
        return split.transpose(-3, -2).reshape(*values.shape[:-3], -1, last)

    def rows(self, weight: Tensor) -> Tensor:
        """The weight, or its mask, float64 [G, O/G, K]."""
        values = weight.double().view(self.groups, -1, self.shape[1], self.taps, 1)
        return self._units(values)[..., 0]

    def weight(self, rows: Tensor) -> Tensor:
        """The inverse of rows(), of the weight's shape."""
        split = rows.view(*rows.shape[:2], -1, self.taps, self.unit).transpose(-2, -1)
        return split.reshape(*rows.shape[:2], -1, self.taps)[:, :, : self.shape[1]].reshape(
            self.shape
        )

    def columns(self, x: Tensor) -> Tensor:
        """Input patches that the rows multiply: [G, K, columns], one column per output position."""
        if isinstance(self.layer, nn.Linear) or len(self.shape) == 2:
            flat = x.reshape(1, -1, self.shape[1], 1).permute(0, 2, 3, 1)
            return self._units(flat)
        x = x if x.ndim == 4 else x[None]
        layer = self.layer
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(x, edges_at(layer, *x.shape[-2:]), mode=mode)
        patches = F.unfold(padded, self.shape[2:], layer.dilation, 0, layer.stride)
        split = patches.view(len(x), self.groups, self.shape[1], self.taps, -1)
        flat = split.permute(1, 2, 3, 0, 4).flatten(3)
        return self._units(flat)

    def per_filter(self, values: Tensor) -> Tensor:
        """Values of the layer's output, summed for each filter, [G, O/G]."""
        channel = values.ndim - 1 if len(self.shape) == 2 else values.ndim - 3
        return values.movedim(channel, 0).flatten(1).sum(1).view(self.groups, -1)
