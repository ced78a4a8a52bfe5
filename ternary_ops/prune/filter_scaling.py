# SPDX-License-Identifier: Apache-2.0
"""Scores of filters in a running network: where maps are multiplied, and what takes the factors up.

A group's maps are multiplied behind every norm that runs along its channels, and behind each layer
that makes them or filters them one by one where no such norm follows at once. Each factor lies
where a vector of parameters can take it up later: gamma and beta, or filters with their bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from ternary_ops.graph.nodes import layer_class, module_of, readers
from ternary_ops.prune.filter_attention import HEADS, Within
from ternary_ops.prune.filters import FilterGroup, filters_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm2d)


@dataclass(frozen=True)
class Scaled:
    """A module whose output is multiplied; index [C]: the number of each channel's score, in all
    groups one after the other, and the number after the last for a factor 1.
    """

    name: str
    index: Tensor

    def factor(self, scores: Tensor) -> Tensor:
        """[C], of all scores [n]."""
        return torch.cat([scores, scores.new_ones(1)])[self.index.to(scores.device)]


def scaled_modules(traced: fx.GraphModule, groups: Sequence[FilterGroup]) -> list[Scaled]:
    """Where the maps of these groups are multiplied, in order of the network."""
    starts, total = offsets(groups)
    found = []
    for node in traced.graph.nodes:
        module: Any = module_of(node)
        if module is None or not _takes_factors(node):
            continue
        index = None
        for group in groups:
            for place in group.places:
                if place.layer != node.target or place.role == "consumer":
                    continue
                if index is None:
                    index = torch.full((module.weight.shape[0],), total)
                at = torch.from_numpy(place.positions)
                index[at] = starts[group.name] + torch.arange(group.width)[:, None]
        if index is not None:
            found.append(Scaled(str(node.target), index))
    return found


def offsets(groups: Sequence[FilterGroup]) -> tuple[dict[str, int], int]:
    """The number of each group's first score, and of all scores."""
    starts, total = {}, 0
    for group in groups:
        starts[group.name] = total
        total += group.width
    return starts, total


def _takes_factors(node: fx.Node) -> bool:
    """True for a norm with parameters, and for a layer that no such norm follows at once."""
    if _is_norm(node):
        return True
    module = module_of(node)
    if module is None or layer_class(module) not in (nn.Conv2d, nn.Linear):
        return False
    users = readers(node)
    return not (len(users) == 1 and _is_norm(users[0]))


def _is_norm(node: fx.Node) -> bool:
    module = module_of(node)
    known = module is not None and layer_class(module) in NORMS
    return known and getattr(module, "weight", None) is not None


class LiveScores:
    """Scores of all filters of the groups, computed from the weights as they are: between those of
    the heads, clipped, and a mask [n] of zeros and ones, by `hardness` 0..1.

    A value is kept until the network is called anew, weights or heads change, or its graph has been
    used. In a distributed run gradients of the scores are averaged over the ranks, so that heads,
    which no wrapper sees, stay equal on all.
    """

    def __init__(self, model: nn.Module, groups: Sequence[FilterGroup], head: str) -> None:
        self.groups, self.hardness = list(groups), 0.0
        self.mask: Tensor = torch.ones(sum(group.width for group in groups))
        self.sources: list[list[tuple[nn.Module, Tensor, nn.Module]]] = []
        self.heads = nn.ModuleList()
        for group in groups:
            self.sources.append([])
            for place in group.places:
                if place.role != "producer":
                    continue
                layer = model.get_submodule(place.layer)
                rows = torch.from_numpy(place.positions)
                filters = filters_of(layer)
                made = HEADS.find(head)(place.layer, rows.numel(), filters.shape[1])
                made.to(filters.device)
                self.heads.append(made)
                self.sources[-1].append((layer, rows, made))
        self._known: tuple[Any, Tensor, Tensor] | None = None

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Raw scores and scores in 0..1, [n] of all groups one after the other, float32."""
        key = (torch.is_grad_enabled(), *(t._version for t in self._tensors()))
        if self._known is None or self._known[0] != key:
            raw = self._raw()
            soft = Within.apply(raw)  # type: ignore[no-untyped-call]
            if soft.requires_grad:
                # Before Within, which looks at the sign: that of the whole batch.
                soft = _MeanGradient.apply(soft)  # type: ignore[no-untyped-call]
            self._known = (key, raw, torch.lerp(soft, self.mask.to(soft.device), self.hardness))
        return self._known[1:]

    def renew(self, *call: Any) -> None:
        """Compute anew when next asked; a forward pre-hook of the network."""
        self._known = None

    def parts(self, scores: Tensor) -> list[Tensor]:
        """Scores [n] group by group."""
        return list(torch.split(scores, [group.width for group in self.groups]))

    def _raw(self) -> Tensor:
        kind = next(self._tensors()).device.type
        with torch.autocast(kind, enabled=False):
            raw = torch.cat([self._raw_of(sources) for sources in self.sources])
        if raw.requires_grad:
            raw.register_hook(self.renew)  # type: ignore[no-untyped-call]
        return raw

    def _raw_of(self, sources: list[tuple[nn.Module, Tensor, nn.Module]]) -> Tensor:
        """The mean of what the heads of all layers that make the channels say."""
        found = []
        for layer, rows, head in sources:
            filters = filters_of(layer)
            at = rows.to(filters.device)
            given = filters.float()[at.flatten()]
            found.append(head(given).view(at.shape).mean(1))
        return torch.stack(found).mean(0)

    def _tensors(self) -> Iterator[Tensor]:
        for sources in self.sources:
            for layer, _, head in sources:
                weight: Any = layer.weight
                yield weight
                yield from head.parameters()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": None}  # results of a computation cannot be copied


class Multiply:
    """The forward hook of a scaled module."""

    def __init__(self, live: LiveScores, place: Scaled) -> None:
        self.live, self.place = live, place

    def __call__(self, module: nn.Module, given: Any, output: Tensor) -> Tensor:
        """The output times its factors."""
        factor = self.place.factor(self.live()[1]).to(output.dtype)
        axis = output.ndim - 1 if isinstance(module, nn.Linear) else 1
        return output * factor.view(-1, *[1] * (output.ndim - 1 - axis))


class _MeanGradient(torch.autograd.Function):
    """The identity, whose gradient is the mean over the ranks of a distributed run."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()
        return gradient


@torch.no_grad()
def fold_(model: nn.Module, places: Sequence[Scaled], scores: Tensor, alive: Tensor) -> None:
    """Let parameters take up the factors, in a network that has lost the channels whose scores are
    not `alive` [n].
    """
    alive = torch.cat([alive, alive.new_ones(1)])
    for place in places:
        factor = place.factor(scores)[alive[place.index].to(scores.device)]
        module: Any = model.get_submodule(place.name)
        module.weight.mul_(factor.view(-1, *[1] * (module.weight.ndim - 1)).to(module.weight))
        if module.bias is not None:
            module.bias.mul_(factor.to(module.bias))
