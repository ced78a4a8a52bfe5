# SPDX-License-Identifier: Apache-2.0
"""Filter groups: which channels of a network can only go together, and which cannot go at all.

A channel that a layer makes is held by more than that layer's filter: by the vectors that run along
it (BatchNorm, slopes, depthwise filters), by the layers that read it, and, where a sum or a product
joins it to another's channel, by all of those of the other. `groups` reads that off the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ternary_ops.layout.channel_groups import Index
from ternary_ops.table import Table

Role = Literal["producer", "consumer", "vector"]
_SHOWN = 3  # layers named in a cell


@dataclass(frozen=True, eq=False)
class Place:
    """A layer that holds a group's channels.

    layer: path of the module. tensors: names of its tensors that do, each with the axis. positions:
    [channels, copies], where each of them stands along these axes: a flattened image has a copy a
    pixel. parts: of a grouped convolution's inputs, [O, I / parts]: position p is input
    p % (I / parts) of the filters of part p // (I / parts).
    """

    layer: str
    role: Role
    tensors: tuple[tuple[str, int], ...]
    positions: Index
    parts: int = 1

    def parts_along(self, axis: int) -> int:
        """Parts of a tensor's axis: those of grouped convolutions lie along the second."""
        return self.parts if axis == 1 else 1


@dataclass(frozen=True, eq=False)
class FilterGroup:
    """Channels that can only go together, [width]: channel i of one is channel i of all.

    name: of the first layer that makes them, with a number in brackets where that layer makes
    several groups. producers, consumers, vectors: layers whose filters make them, whose filters
    read them, and that have an element for each. fixed: why none of them can go, or None. parts:
    grouped convolutions read or make them in so many parts, `labels` [width] says which: as many
    must go of each. places: where they stand in layers. parameters_per_channel,
    multiply_adds_per_channel (of one sample): what goes with one, at the present widths of others.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    vectors: tuple[str, ...]
    fixed: str | None
    parts: int
    labels: Index
    places: tuple[Place, ...]
    parameters_per_channel: float
    multiply_adds_per_channel: float

    def rows(self, layer: str) -> Index:
        """Of a producer, the filters that make each channel: [width]."""
        found = [p.positions for p in self.places if (p.layer, p.role) == (layer, "producer")]
        rows: Index = found[0][:, 0]
        return rows


class FilterGroups(list[FilterGroup]):
    """The groups of a network in its order; str() is a table that says why others are fixed.

    pixels: for each convolution and linear layer, at how many places of a sample its filters are
    applied. shapes: of all parameters of the network, by layer and name.
    """

    def __init__(
        self,
        found: Iterable[FilterGroup],
        pixels: Mapping[str, int],
        shapes: Mapping[tuple[str, str], tuple[int, ...]],
    ) -> None:
        super().__init__(found)
        self.pixels, self.shapes = dict(pixels), dict(shapes)

    @property
    def free(self) -> FilterGroups:
        """Those of which channels can go."""
        found = (g for g in self if g.fixed is None and g.width > g.parts)
        return FilterGroups(found, self.pixels, self.shapes)

    def __str__(self) -> str:
        """One row a group."""
        rows = [
            (g.name, str(g.width), str(g.parts), _listed(g.producers), _listed(g.consumers))
            + (f"{g.parameters_per_channel:.0f}", g.fixed or "")
            for g in self
        ]
        names = ("group", "channels", "parts", "made by", "read by", "parameters each", "fixed")
        return str(Table(names, rows, words=("made by", "read by", "fixed")))


def filters_of(layer: nn.Module) -> Tensor:
    """The filters of a convolution or linear layer, one a row: [O, d]. A transposed convolution has
    them along the second axis of its weight.
    """
    weight: Any = layer.weight
    if not isinstance(layer, nn.ConvTranspose2d):
        filters: Tensor = weight.flatten(1)
        return filters
    parts: Tensor = weight.view(layer.groups, -1, *weight.shape[1:]).transpose(1, 2)
    return parts.reshape(layer.out_channels, -1)


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
