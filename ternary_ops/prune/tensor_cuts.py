# SPDX-License-Identifier: Apache-2.0
"""The tensors of a network without some channels: all made first, then put in place together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.prune.cutter import Cutter
from ternary_ops.prune.filter_network import FilterNetwork
from ternary_ops.prune.filters import FilterGroup, Place

# The sizes that a module says, by how it holds the channels.
_SIZES = {
    "producer": ("out_channels", "out_features"),
    "consumer": ("in_channels", "in_features"),
    "vector": ("num_features", "num_parameters", "out_channels", "in_channels", "groups"),
}


class Surgery:
    """New tensors for all that hold the channels of some groups that go.

    kept: of groups, by name, the channels to keep. cutters: by the id of each tensor that gets
    smaller. replaced: parameters, with those that take their place.
    """

    def __init__(self, network: FilterNetwork, kept: Mapping[str, Tensor]) -> None:
        """Nothing is changed. Raises UnsupportedModel for parameters that have hooks."""
        self._model = network.model
        self.cutters: dict[int, Cutter] = {}
        self._sizes: list[tuple[nn.Module, str, int]] = []
        groups = {group.name: group for group in network.groups}
        for name, index in kept.items():
            gone = torch.ones(groups[name].width, dtype=torch.bool)
            gone[index] = False
            if gone.any():
                self._drop(groups[name], gone)
        self._made: dict[int, Tensor] = {}
        self.replaced: dict[nn.Parameter, tuple[nn.Parameter, Cutter]] = {}
        for path, module in self._model.named_modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and id(tensor) in self.cutters:
                    self._make(f"{path}.{name}".lstrip("."), tensor)
        self._undo: list[Callable[[], None]] = []

    def apply(self) -> None:
        """Put them in place, and say the new sizes."""
        for module in self._model.modules():
            self._scale_cost(module)
            for held in (module._parameters, module._buffers):
                for name, tensor in list(held.items()):
                    if tensor is not None and id(tensor) in self._made:
                        self._put(held, name, tensor, self._made[id(tensor)])
        for module, name, fewer in self._sizes:
            self._put(vars(module), name, vars(module)[name], vars(module)[name] - fewer)

    def undo(self) -> None:
        """Put everything back."""
        for step in reversed(self._undo):
            step()
        self._undo.clear()

    def _scale_cost(self, module: nn.Module) -> None:
        """What a layer costs in the engine, if that was measured, shrinks in proportion."""
        cost, weight = vars(module).get("cost"), module._parameters.get("weight")
        if cost is not None and weight is not None and id(weight) in self._made:
            share = self._made[id(weight)].numel() / weight.numel()
            scaled = replace(cost, ms=cost.ms * share)
            self._put(vars(module), "cost", cost, scaled)

    def _put(self, held: Any, name: str, old: Any, new: Any) -> None:
        held[name] = new
        self._undo.append(lambda: held.__setitem__(name, old))

    def _drop(self, group: FilterGroup, gone: Tensor) -> None:
        for place in group.places:
            positions = torch.from_numpy(place.positions)[gone].flatten()
            module = self._model.get_submodule(place.layer)
            for name, axis in place.tensors:
                tensor: Any = getattr(module, name)
                cutter = self.cutters.setdefault(id(tensor), Cutter())
                cutter.drop(tensor.shape[axis], axis, place.parts_along(axis), positions)
            self._sizes += self._said(module, place, len(positions))

    def _said(
        self, module: nn.Module, place: Place, fewer: int
    ) -> Iterator[tuple[nn.Module, str, int]]:
        """The sizes that a module says, each with how much smaller it gets."""
        for name in _SIZES[place.role]:
            size = vars(module).get(name)
            if type(size) is not int:
                continue
            made: Any = vars(module).get("out_channels")
            if place.role == "vector" and name in ("in_channels", "groups"):
                yield module, name, fewer * size // made  # depthwise, with several filters each
            else:
                yield module, name, fewer

    def _make(self, path: str, tensor: Tensor) -> None:
        if id(tensor) in self._made:
            return
        cutter = self.cutters[id(tensor)]
        made = cutter(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
                do = "Remove them, and register them on the new parameter after."
                raise UnsupportedModel(need("parameters without hooks", f"some on {path}", do))
            made = nn.Parameter(made, tensor.requires_grad)
            vars(made).update(vars(tensor))
            made.grad = None if tensor.grad is None else cutter(tensor.grad)
            self.replaced[tensor] = made, cutter
        self._made[id(tensor)] = made
