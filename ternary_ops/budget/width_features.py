# SPDX-License-Identifier: Apache-2.0
"""How wide each layer of a network is when its filter groups have other widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ternary_ops.prune.filter_costs import FilterCosts
from ternary_ops.prune.filters import FilterGroups

Widths: TypeAlias = Mapping[str, int]  # channels left, by group; groups not named are whole
MeanWidths: TypeAlias = Mapping[str, float]  # likewise; fractions are expected ones
Features: TypeAlias = NDArray[np.float64]


class LayerWidths:
    """Widths of layers, and of the activations between them, by the widths of groups."""

    def __init__(self, groups: FilterGroups) -> None:
        self._costs = FilterCosts(groups)
        self._whole = {group.name: group.width for group in groups}
        self._pixels = {
            group.name: float(groups.pixels.get(group.producers[0], 1)) for group in groups
        }

    def features(self, layer: str, widths: MeanWidths) -> Features:
        """Float64 [4]: 1, the shares of a layer's outputs and inputs that are left, and the product
        of both, which is that of its weights.
        """
        out, inputs = (self._costs.axis(layer, axis, widths) for axis in (0, 1))
        return np.array([1.0, out, inputs, out * inputs])

    def layers(self, group: str) -> list[str]:
        """Modules whose weight gets smaller with a group."""
        return self._costs.layers(group)

    def traffic(self, widths: MeanWidths) -> float:
        """The share of the activations of all groups that is left."""
        if not self._whole:
            return 1.0
        whole = sum(self._pixels[name] * width for name, width in self._whole.items())
        left = sum(self._pixels[n] * widths.get(n, width) for n, width in self._whole.items())
        return left / whole
