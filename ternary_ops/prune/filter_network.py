# SPDX-License-Identifier: Apache-2.0
"""A network with its filter groups, read off its trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ternary_ops.errors import check_type
from ternary_ops.graph.batches import batch_of
from ternary_ops.graph.changes import Changes
from ternary_ops.graph.channel_axes import ChannelAxes
from ternary_ops.graph.channel_ops import kind_of
from ternary_ops.graph.channels import read_channels
from ternary_ops.graph.functional_layers import READ
from ternary_ops.graph.narrowing import Kept, Miscounted, miscounted
from ternary_ops.graph.nodes import module_of
from ternary_ops.graph.signature import tensor_of
from ternary_ops.graph.trace import evaluating, trace_at
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.layout.channel_groups import ChannelGroup, Index, Use
from ternary_ops.prune.filters import FilterGroup, FilterGroups, Place, filters_of

# The tensors of a layer with an element, or a row, for each channel that it makes or normalizes;
# `marks` are the masks and codes of quantized layers.
_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var", "marks")
_PER_INPUT = ("weight", "marks")
_TRIALS = 2  # rounds of trying what operators follow, each with other channels


def groups(model: nn.Module, example: Any) -> FilterGroups:
    """Read which channels of a network go together, and which can go.

    example: an input, as for compile. Nothing is changed. Raises UnsupportedModel where the network
    cannot be traced or does not run on the example.
    """
    return FilterNetwork(model, example).groups


class FilterNetwork:
    """A traced network with its channels, and its filter groups.

    classes: for each group, by name, the number of each channel in `ChannelGroups.classes`.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.model = unwrap(model)
        x = tensor_of(self.model, example)
        check_type("example", x, Tensor, "Pass an input of the network.")
        self.example: Tensor = batch_of(x, 2)  # type: ignore[arg-type]
        with evaluating(self.model):
            self.traced = trace_at(self.model, self.example)
            self.axes: ChannelAxes = read_channels(self.traced, self.example)
        self.nodes = {str(n.target): n for n in self.traced.graph.nodes if n.op == "call_module"}
        self._changes = Changes(self.model, self.traced.graph)
        self.pixels = _pixels(self.traced, self.axes)
        self.classes: dict[str, Index] = {}
        found = [self._group(g) for g in self.axes.groups.groups() if g.producers]
        shapes = {
            (path, name): tuple(parameter.shape)
            for path, module in self.model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        self.groups = FilterGroups(self._pin(found), self.pixels, shapes)

    def beside(self) -> list[str]:
        """Modules whose parameters the trace does not reach, such as heads for training alone."""
        reached = set(self.traced.meta.get(READ, {}))
        for node in self.nodes.values():
            module: Any = module_of(node)
            reached |= {id(p) for p in module.parameters()}
        return [
            name
            for name, module in self.model.named_modules()
            if any(p is not None and id(p) not in reached for p in module._parameters.values())
        ]

    def kept(self, kept: Mapping[str, Tensor]) -> Kept:
        """For each class of channels whether it is left, from the indices kept of some groups."""
        count = 1 + max(int(self.axes.groups.classes(n).max()) for n in self.axes.dims)
        left = np.ones(count, bool)
        for name, index in kept.items():
            left[self.classes[name]] = False
            left[self.classes[name][index.numpy()]] = True
        return left

    def miscounted(self, kept: Mapping[str, Tensor]) -> list[Miscounted]:
        """Operators that would not follow if only these channels were left of some groups."""
        return miscounted(self.traced, self.axes, self.example, self.kept(kept))

    def _group(self, group: ChannelGroup) -> FilterGroup:
        first = str(group.producers[0].owner)
        number = sum(name.partition("[")[0] == first for name in self.classes)
        name = f"{first}[{number}]" if number else first
        value, at = next(iter(group.positions.items()))
        self.classes[name] = self.axes.groups.classes(value)[at[:, 0]]
        places = tuple(self._place(use, group.positions[use.value]) for use in group.uses)
        reasons = (self._reason(group, use) for use in group.uses)
        fixed = group.fixed.get("removal") or next((r for r in reasons if r), None)
        parts = int(group.labels.max()) + 1
        each = np.bincount(group.labels)
        if fixed is None and (len(set(each)) > 1 or not _even(group)):
            fixed = f"a share of the parts of {_grouped(group)}"
        if fixed is None and parts == len(group) > 1:
            fixed = f"one channel in each part of {_grouped(group)}"
        parameters, multiply_adds = self._cost(places)
        return FilterGroup(
            name=name,
            width=len(group),
            producers=_names(group.producers),
            consumers=_names(group.consumers),
            vectors=_names(group.vectors),
            fixed=fixed,
            parts=parts,
            labels=group.labels,
            places=places,
            parameters_per_channel=parameters / len(group),
            multiply_adds_per_channel=multiply_adds / len(group),
        )

    def _tensors(self, owner: str) -> dict[str, Tensor]:
        """Parameters and buffers of a layer of the trace; of a parameter, itself."""
        node = self.nodes.get(owner)
        if node is None:
            path, _, name = owner.rpartition(".")
            return {name: getattr(self.model.get_submodule(path), name)}
        module: Any = module_of(node)
        held = {**module._parameters, **module._buffers}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def _place(self, use: Use, positions: Index) -> Place:
        owner, tensors = str(use.owner), self._tensors(str(use.owner))
        if owner not in self.nodes:
            path, _, name = owner.rpartition(".")
            axis = next((d for d, size in enumerate(tensors[name].shape) if size > 1), 0)
            return Place(path, "vector", ((name, axis),), positions)
        reads = use.role == "consumer"
        turned = isinstance(module_of(self.nodes[owner]), nn.ConvTranspose2d)
        axis = int(reads != (turned and use.role != "vector"))  # of the weight
        names = _PER_INPUT if reads else _PER_CHANNEL
        held = tuple((n, axis if n in _PER_INPUT else 0) for n in names if n in tensors)
        return Place(owner, use.role, held, positions, use.groups if axis else 1)

    def _reason(self, group: ChannelGroup, use: Use) -> str:
        """Why the tensors of a layer cannot be cut; empty if they can."""
        owner = str(use.owner)
        if owner not in self.nodes:
            shape = self._tensors(owner)[owner.rpartition(".")[2]].shape
            several = sum(size > 1 for size in shape) > 1
            return f"{owner} has channels along several axes" if several else ""
        own = self._changes.own(self.nodes[owner])
        if own is None:
            return f"{owner}: the model's own code computes it by functions"
        why = self._changes.why_not(own, "cut")
        return f"{owner}: {why}" if why else ""

    def _cost(self, places: Iterable[Place]) -> tuple[float, float]:
        """Parameters, and multiply-adds of a sample, that all channels in these places take."""
        parameters = multiply_adds = 0.0
        for place in places:
            own = place.layer in self.nodes
            for name, axis in place.tensors:
                path = place.layer if own else f"{place.layer}.{name}".lstrip(".")
                tensor = self._tensors(path)[name]
                if isinstance(tensor, nn.Parameter):
                    each = tensor.numel() / (tensor.shape[axis] * place.parts_along(axis))
                    parameters += each * place.positions.size
                    pixels = self.pixels.get(place.layer, 0) * (name == "weight")
                    multiply_adds += each * place.positions.size * pixels
        return parameters, multiply_adds

    def totals(self) -> tuple[int, int]:
        """Parameters, and multiply-adds of a sample, of the network as it is now."""
        parameters = sum(p.numel() for p in self.model.parameters())
        multiply_adds = 0
        for name, pixels in self.pixels.items():
            own = self._changes.own(self.nodes[name])
            layer: Any = module_of(self.nodes[name]) if own is None else own
            multiply_adds += pixels * layer.weight.numel()
        return parameters, multiply_adds

    def norms(self, group: FilterGroup) -> Tensor:
        """The L2 norm of all filters that make each channel, float64 [width]."""
        squares = torch.zeros(group.width, dtype=torch.float64)
        for place in group.places:
            if place.role == "producer":
                filters = filters_of(self.model.get_submodule(place.layer)).detach()
                rows = torch.from_numpy(place.positions)
                each = filters.double().square().sum(1).cpu()
                squares += each[rows].sum(1)
        return squares.sqrt()

    def _pin(self, found: list[FilterGroup]) -> list[FilterGroup]:
        """Fix what operators would not follow, found by trying."""
        for seed in range(_TRIALS):
            while errors := self._failing(found, seed):
                why: dict[str, str] = {}
                for error in errors:
                    for name in self._blamed(found, error.node, seed):
                        why.setdefault(name, str(error))
                found = [replace(g, fixed=why[g.name]) if g.name in why else g for g in found]
        return found

    def _failing(self, found: list[FilterGroup], seed: int) -> list[Miscounted]:
        """What would not follow if some channels of each free group went."""
        generator = torch.Generator().manual_seed(seed)
        free = [g for g in found if g.fixed is None and g.width > g.parts]
        return self.miscounted({g.name: _some(g, generator) for g in free})

    def _blamed(self, found: list[FilterGroup], node: fx.Node, seed: int) -> list[str]:
        """The free groups that an operator does not follow: of those that it meets the ones that it
        does not follow alone, or else all; all that are free where it meets none.
        """
        free = [g for g in found if g.fixed is None]
        near = [g for g in free if self._meets(g, node)] or free
        if len(near) == 1:
            return [near[0].name]
        alone = [g.name for g in near if any(e.node is node for e in self._failing([g], seed))]
        return alone or [g.name for g in near]

    def _meets(self, group: FilterGroup, node: fx.Node) -> bool:
        near = [m for m in (node, *node.all_input_nodes) if m in self.axes.dims]
        mine = self.classes[group.name]
        return any(np.isin(self.axes.groups.classes(m), mine).any() for m in near)


def _some(group: FilterGroup, generator: torch.Generator) -> Tensor:
    """Some of its channels, at least one and not all of each part, and as many of each."""
    each = group.width // group.parts
    count = int(torch.randint(1, each, (), generator=generator))
    kept = []
    for part in range(group.parts):
        (mine,) = np.nonzero(group.labels == part)
        kept.append(torch.from_numpy(mine)[torch.randperm(each, generator=generator)[:count]])
    return torch.cat(kept).sort().values


def _even(group: ChannelGroup) -> bool:
    """True where the group has equal shares of all parts that grouped operators work on."""
    for value, splits in group.splits.items():
        for parts in splits:
            part = group.positions[value].flatten() // (group.widths[value] // parts)
            if len(set(np.bincount(part, minlength=parts))) > 1:
                return False
    return True


def _grouped(group: ChannelGroup) -> str:
    """The grouped layers that make or read the channels."""
    names = [str(use.owner) for use in group.uses if use.groups > 1]
    return ", ".join(dict.fromkeys(names)) or "a grouped operator"


def _names(uses: Iterable[Use]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(use.owner) for use in uses))


def _pixels(traced: fx.GraphModule, axes: ChannelAxes) -> dict[str, int]:
    """For each layer, by name, the number of places of a sample that its filters see."""
    found: dict[str, int] = {}
    for node in traced.graph.nodes:
        if kind_of(node) == "layer":
            module = module_of(node)
            # Each pixel of a transposed convolution's input is multiplied with all filters.
            turned = isinstance(module, nn.ConvTranspose2d)
            shape = axes.shapes[node.all_input_nodes[0] if turned else node]
            channels = shape[1] if hasattr(module, "kernel_size") else shape[-1]
            each = math.prod(shape) // (shape[0] * channels)
            found[str(node.target)] = found.get(str(node.target), 0) + each
    return found
