# SPDX-License-Identifier: Apache-2.0
"""A convolution or linear layer as one product of matrices, a unit's weights side by side."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.nodes import layer_class
from ternary_ops.graph.subclass_twins import twin_of
from ternary_ops.nn.geometry import edges_at, geometry_of
from ternary_ops.prune.window_products import weight_gradient, window_products


def plain_form(layer: nn.Module) -> nn.Module | None:
    """The layer, or what computes as a subclass with a forward of its own does (padding), with the
    same weight; None where nothing does.
    """
    if layer_class(layer) is not None:
        return layer
    twin = twin_of(layer)
    return None if twin is None or twin.weight is not layer.weight else twin


def _plain(layer: nn.Module) -> nn.Module:
    """`plain_form`; raises UnsupportedModel where there is none."""
    plain = plain_form(layer)
    if plain is None:
        got = f"the forward of {type(layer).__name__}"
        do = "Skip these layers, or prune with a Pruner."
        raise UnsupportedModel(need("layers that multiply their weight by their input", got, do))
    return plain


class LayerMatrix:
    """Views of a layer's weight and input in which a unit's weights lie side by side.

    The weight [O, I, ...] of a layer with G groups is [G, O/G, K] with K = units * unit, units in
    the order of `units.Pattern` (input channels outside, taps inside); channels that a last unit
    lacks are zeros.
    """

    def __init__(self, layer: nn.Module, unit: int, plain: bool = True) -> None:
        """plain: the input is asked for too, so that what the layer computes must be known."""
        weight = cast(Tensor, layer.weight)
        self.layer: Any = _plain(layer) if plain else layer
        self.unit = unit
        self.shape = weight.shape
        self.groups = int(getattr(layer, "groups", 1))
        self.taps = math.prod(weight.shape[2:])
        self.depth = -(-weight.shape[1] // unit) * unit * self.taps  # K

    @property
    def geometry(self) -> object:
        """Equal for layers that make equal columns of one input."""
        layer, sizes = self.layer, (self.unit, self.shape[1:])
        if len(self.shape) == 2:
            return sizes
        kept = {**geometry_of(layer), "out_channels": 0, "edges": getattr(layer, "edges", None)}
        return str((sizes, kept))

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

    def which(self) -> Tensor:
        """The group of each row, in the order of rows().flatten(0, 1): [O]."""
        return torch.arange(self.groups).repeat_interleave(self.shape[0] // self.groups)

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
        padded = self.padded(x)
        patches = F.unfold(padded, self.shape[2:], self.layer.dilation, 0, self.layer.stride)
        split = patches.view(len(padded), self.groups, self.shape[1], self.taps, -1)
        flat = split.permute(1, 2, 3, 0, 4).flatten(3)
        return self._units(flat)

    def padded(self, x: Tensor) -> Tensor:
        """The input of a convolution [N, C, H, W] with its border."""
        x = x if x.ndim == 4 else x[None]
        layer = self.layer
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, edges_at(layer, *x.shape[-2:]), mode=mode)

    def products(self, x: Tensor) -> Tensor:
        """columns(x) @ columns(x)^T, float64 [G, K, K].

        What differs from the mean of each channel is multiplied in the precision of x, since a
        large mean would leave no digits to it; what the means add follows in float64.
        """
        channel = x.ndim - (1 if len(self.shape) == 2 else 3)
        mean = x.movedim(channel, -1).flatten(0, -2).mean(0)
        apart = x - mean.view(-1, *[1] * (x.ndim - 1 - channel))
        if self._by_shifts(x):
            found = window_products(self.padded(apart), *self.shape[2:])
            made = self._both(found[None].double())
        else:
            columns = self.columns(apart)
            made = (columns @ columns.mT).double()
        return made + self._of_means(apart, mean.double().view(self.groups, -1))

    def _of_means(self, apart: Tensor, mean: Tensor) -> Tensor:
        """What is missing where `mean`, [G, I], is left out of every input channel."""
        if len(self.shape) == 2:
            ones, count = mean.new_ones(1, apart.numel() // apart.shape[-1]), 1
            rest = self.columns(apart.double())
        else:
            images = apart if apart.ndim == 4 else apart[None]
            ones, count = mean.new_ones(1, 1, *images.shape[2:]), len(images)
            ones = F.unfold(
                self.padded(ones), self.shape[2:], self.layer.dilation, 0, self.layer.stride
            )[0]  # [taps, positions]: 0 where a tap sees the border
            rest = self.columns(images.double().sum(0, keepdim=True))
        mixed = (rest @ ones.mT)[:, :, None] * mean[:, None, :, None]  # [G, K, I, taps]
        mixed = self._units(mixed[..., None])[..., 0]
        inside = torch.einsum("ga,gb,tu->gatbu", mean, mean, count * (ones @ ones.mT))
        return mixed + mixed.mT + self._both(inside)

    def _both(self, values: Tensor) -> Tensor:
        """[G, I, T, I, T] as [G, K, K]."""
        first = self._units(values.flatten(3))
        return self._units(first.view(*first.shape[:2], *values.shape[3:], 1))[..., 0]

    def output_products(self, y: Tensor, x: Tensor) -> Tensor:
        """Outputs y of the layer, one row per filter, times columns(x)^T, float64 [G, O/G, K]."""
        if len(self.shape) == 2:
            return self.rows(y.reshape(-1, self.shape[0]).mT @ x.reshape(-1, self.shape[1]))
        layer, y = self.layer, y if y.ndim == 4 else y[None]
        # The gradient of the weight is that sum.
        options = (layer.stride, 0, layer.dilation, layer.groups)
        return self.rows(weight_gradient(self.padded(x), self.shape, y, *options))

    def sums(self, x: Tensor) -> tuple[Tensor, int]:
        """Sum of columns(x) over its columns, float64 [G, K], and how many they are."""
        if len(self.shape) == 2:
            columns = self.columns(x)
            return columns.double().sum(-1), columns.shape[-1]
        x = x if x.ndim == 4 else x[None]
        columns = self.columns(x.double().sum(0, keepdim=True))
        return columns.sum(-1), columns.shape[-1] * len(x)

    def _by_shifts(self, x: Tensor) -> bool:
        """Whether a product depends on the distance of two taps alone, but at the border."""
        if self.taps == 1 or self.groups > 1:
            return False
        layer, taps = self.layer, self.shape[2:]
        plain = {*layer.stride, *layer.dilation} == {1}
        return plain and all(n >= 3 * t for n, t in zip(x.shape[-2:], taps, strict=True))

    def per_filter(self, values: Tensor) -> Tensor:
        """Values of the layer's output, summed for each filter, [G, O/G]."""
        channel = values.ndim - 1 if len(self.shape) == 2 else values.ndim - 3
        return values.movedim(channel, 0).flatten(1).sum(1).view(self.groups, -1)
