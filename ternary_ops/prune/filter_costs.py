# SPDX-License-Identifier: Apache-2.0
"""What a network costs with fewer channels: parameters and multiply-adds as functions of widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from ternary_ops.graph.wrappers import unwrap
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

    def __init__(self, model: nn.Module, groups: FilterGroups) -> None:
        self.widths = {group.name: group.width for group in groups}
        self._counted: list[_Counted] = []
        found: dict[tuple[str, str], _Counted] = {}
        for path, module in unwrap(model).named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                times = groups.pixels.get(path, 0) if name == "weight" else 0
                counted = _Counted(parameter.numel(), times)
                self._counted.append(counted)
                found[path, name] = counted
        tensors = dict(unwrap(model).named_parameters(remove_duplicate=False))
        for group in groups:
            for place in group.places:
                for name, axis in place.tensors:
                    if (place.layer, name) not in found:
                        continue  # a buffer
                    tensor = tensors[".".join(filter(None, (place.layer, name)))]
                    share = place.positions.shape[1] / (tensor.shape[axis] * place.parts)
                    found[place.layer, name].axes.setdefault(axis, []).append((group.name, share))

    def parameters(self, widths: Mapping[str, float]) -> float:
        """All parameters of the network, with these channels left; groups not named are whole."""
        return sum(c.elements * self._left(c, widths) for c in self._counted)

    def multiply_adds(self, widths: Mapping[str, float]) -> float:
        """Of one sample, in convolutions and linear layers."""
        return sum(c.elements * c.times * self._left(c, widths) for c in self._counted if c.times)

    def _left(self, counted: _Counted, widths: Mapping[str, float]) -> float:
        left = 1.0
        for shares in counted.axes.values():
            left *= 1 - sum(
                share * (self.widths[name] - widths.get(name, self.widths[name]))
                for name, share in shares
            )
        return left
