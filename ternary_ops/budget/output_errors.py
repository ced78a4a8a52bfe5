# SPDX-License-Identifier: Apache-2.0
"""How far a network's output moves, before any training, when a layer or a group is changed alone.

The error is the squared tangent of the angle between the outputs before and after, over all samples
at once: noise over signal, whatever scale the output has afterwards. Noise of several layers adds
up, and unlike a squared difference it goes on growing when little of the output is left. BatchNorm
normalizes by the samples themselves: training would adapt its statistics.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadWeights, need
from ternary_ops.graph.signature import result
from ternary_ops.nn import TernaryLayer
from ternary_ops.prune.filters import FilterGroup, Place

_MOST = 1e4  # of an output that has nothing in common with what it was


class OutputProbe:
    """A copy of a float network whose weights are changed for a moment."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, inputs: list[Tensor]) -> None:
        self._model, self._inputs = copy.deepcopy(model).eval(), inputs
        for norm in self._model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.train()
                norm.momentum = 0.0
        self._wanted = [self._output(x) for x in inputs]
        if not all(bool(y.isfinite().all()) for y in self._wanted):
            do = "Pass samples like those that it was trained on."
            raise BadWeights(need("finite outputs of the network", "others", do))
        self._signal = sum(float(y.square().sum()) for y in self._wanted)

    def _output(self, x: Tensor) -> Tensor:
        return result(self._model, x).double()

    def _error(self) -> float:
        made = [self._output(x) for x in self._inputs]
        power = sum(float(y.square().sum()) for y in made)
        common = sum(float((a * b).sum()) for a, b in zip(made, self._wanted, strict=True))
        if common <= 0 or power == 0:
            return _MOST
        return min(max(power * self._signal / common**2 - 1, 0.0), _MOST)

    @torch.no_grad()
    def layer(self, name: str, quantized: TernaryLayer) -> float:
        """With the weights of a quantized layer in place of its own."""
        return self._with({name: quantized.dequantized_weight()})

    @torch.no_grad()
    def without(self, group: FilterGroup, kept: Tensor) -> float:
        """Without channels of a group: whatever reads them gets zeros."""
        gone = torch.ones(group.width, dtype=torch.bool)
        gone[kept] = False
        changed: dict[str, Tensor] = {}
        for place in group.places:
            if place.role == "consumer":
                weight = self._weight(place.layer)
                changed[place.layer] = _emptied(changed.get(place.layer, weight), place, gone)
        return self._with(changed)

    def _weight(self, name: str) -> Tensor:
        return self._model.get_submodule(name).get_parameter("weight")

    def _with(self, changed: dict[str, Tensor]) -> float:
        before = {name: self._weight(name).clone() for name in changed}
        for name, weight in changed.items():
            self._weight(name).copy_(weight)
        try:
            return self._error()
        finally:
            for name, weight in before.items():
                self._weight(name).copy_(weight)


def _emptied(weight: Tensor, place: Place, gone: Tensor) -> Tensor:
    """The weight of a layer that reads a group, without the channels that go."""
    weight = weight.clone()
    positions = torch.from_numpy(place.positions)[gone].flatten()
    inputs, rows = weight.shape[1], weight.shape[0] // place.parts
    for part in range(place.parts):
        mine = positions[positions // inputs == part] % inputs
        weight[part * rows : (part + 1) * rows, mine] = 0
    return weight
