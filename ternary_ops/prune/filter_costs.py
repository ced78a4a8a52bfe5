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
                        size = groups.shapes[place.layer, name][axis] * place.parts
                        axes = found[place.layer, name].axes
                        share = place.positions.shape[1] / size
                        axes.setdefault(axis, []).append((group.name, share))
        self._counted = list(found.values())

    def parameters(self, widths: Mapping[str, float]) -> float:
        """All parameters of the network, with these channels left; groups not named are whole."""
        return sum(c.elements * self._left(c, widths) for c in self._counted)

    def multiply_adds(self, widths: Mapping[str, float]) -> float:
        """Of one sample, in convolutions and linear layers."""
        return sum(c.elements * c.times * self._left(c, widths) for c in self._counted if c.times)

    def channels(self, widths: Mapping[str, float]) -> float:
        """Of all groups."""
        return sum(widths.get(name, width) for name, width in self.widths.items())

    def _left(self, counted: _Counted, widths: Mapping[str, float]) -> float:
        left = 1.0
        for shares in counted.axes.values():
            left *= 1 - sum(
                share * (self.widths[name] - widths.get(name, self.widths[name]))
                for name, share in shares
            )
        return left
