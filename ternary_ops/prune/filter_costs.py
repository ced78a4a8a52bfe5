# SPDX-License-Identifier: Apache-2.0
"""What a network costs with fewer channels: parameters and multiply-adds as functions of widths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ternary_ops.prune.filters import FilterGroups

# From channels left of each group, by name, to a cost: parameters, multiply-adds, milliseconds.
Cost: TypeAlias = Callable[[Mapping[str, float]], float]


@dataclass
class _Counted:
    """A parameter: its elements, and of each of its axes the share that one channel of a group has.

    times: how often a sample is multiplied with it.
    """

    elements: int
    times: int
    axes: dict[int, list[tuple[str, float]]] = field(default_factory=dict)


class FilterCosts:
    """Parameters and multiply-adds of a network by the widths of its groups, without building it.

    Exact for whole channels. Widths may be fractions, which count as expected.
    """

    def __init__(self, groups: FilterGroups) -> None:
        self.widths = {group.name: group.width for group in groups}
        found = {
            (layer, name): _Counted(
                math.prod(shape), groups.pixels.get(layer, 0) if name == "weight" else 0
            )
            for (layer, name), shape in groups.shapes.items()
        }
        for group in groups:
            for place in group.places:
                for name, axis in place.tensors:
                    if (place.layer, name) in found:  # a parameter, no buffer
                        size = groups.shapes[place.layer, name][axis] * place.parts_along(axis)
                        axes = found[place.layer, name].axes
                        share = place.positions.shape[1] / size
                        axes.setdefault(axis, []).append((group.name, share))
        self._counted = found

    def parameters(self, widths: Mapping[str, float]) -> float:
        """All parameters of the network, with these channels left; groups not named are whole."""
        return sum(c.elements * self._left(c, widths) for c in self._counted.values())

    def multiply_adds(self, widths: Mapping[str, float]) -> float:
        """Of one sample, in convolutions and linear layers."""
        counted = (c for c in self._counted.values() if c.times)
        return sum(c.elements * c.times * self._left(c, widths) for c in counted)

    def channels(self, widths: Mapping[str, float]) -> float:
        """Of all groups."""
        return sum(widths.get(name, width) for name, width in self.widths.items())

    def axis(self, layer: str, axis: int, widths: Mapping[str, float]) -> float:
        """The share of an axis of a layer's weight that is left."""
        counted = self._counted.get((layer, "weight"))
        return 1.0 if counted is None else self._axis(counted.axes.get(axis, []), widths)

    def layers(self, group: str) -> list[str]:
        """Modules whose weight gets smaller with a group."""
        return [
            layer
            for (layer, name), counted in self._counted.items()
            if name == "weight"
            and any(group == other for shares in counted.axes.values() for other, _ in shares)
        ]

    def _left(self, counted: _Counted, widths: Mapping[str, float]) -> float:
        return math.prod(self._axis(shares, widths) for shares in counted.axes.values())

    def _axis(self, shares: list[tuple[str, float]], widths: Mapping[str, float]) -> float:
        return 1.0 - sum(
            share * (self.widths[name] - widths.get(name, self.widths[name]))
            for name, share in shares
        )
