# SPDX-License-Identifier: Apache-2.0
"""What the channels of filter groups do on batches, seen where layers read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.trace import evaluating
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.prune.filters import FilterGroup, FilterGroups, Place

Read: TypeAlias = tuple[FilterGroup, Place]
Look: TypeAlias = Callable[[Any, Tensor, Sequence[Read]], None]


def given(model: nn.Module, batches: Any, name: str) -> Iterable[tuple[Tensor, Any]]:
    """Inputs and labels; BadConfig without batches, for the score of that name."""
    if batches is None:
        do = "Pass batches= of training data."
        raise BadConfig(need(f"batches for {name!r}", "None", do))
    return samples(model, batches)


@contextmanager
def watching(model: nn.Module, groups: Sequence[FilterGroup], look: Look) -> Iterator[None]:
    """While the body runs the network, in eval mode: look(layer, input, reads) for each layer that
    reads channels of the groups; reads: these groups, with where the layer has them.
    """
    readers: dict[str, list[Read]] = {}
    for group in groups:
        for place in group.places:
            if place.role == "consumer":
                readers.setdefault(place.layer, []).append((group, place))

    def hook(reads: list[Read], layer: Any, inputs: tuple[Any, ...]) -> None:
        look(layer, inputs[0].detach(), reads)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(hook, reads))
        for name, reads in readers.items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def by_channel(layer: Any, x: Tensor) -> Tensor:
    """An input of a convolution or linear layer as [channels, numbers], float32 (float64 stays)."""
    axis = x.ndim - 3 if hasattr(layer, "kernel_size") else x.ndim - 1
    found = x.movedim(axis, 0).flatten(1)
    return found if found.dtype == torch.float64 else found.float()


def apoz(groups: FilterGroups, model: nn.Module, batches: Any = None) -> dict[str, Tensor]:
    """1 minus the average percentage of zeros of each channel, the largest over its readers."""
    return _mean(groups, model, batches, "apoz", lambda x: (x != 0).float().mean(1))


def variance(groups: FilterGroups, model: nn.Module, batches: Any = None) -> dict[str, Tensor]:
    """The variance of each channel within a batch, the largest over its readers."""
    return _mean(groups, model, batches, "variance", lambda x: x.var(1, correction=0))


def _mean(
    groups: FilterGroups,
    model: nn.Module,
    batches: Any,
    name: str,
    statistic: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The mean over batches and copies of a statistic [channels] of each channel's numbers."""
    model, free = unwrap(model), groups.free
    found: dict[tuple[str, str], Tensor] = {}
    count = 0

    def look(layer: Any, x: Tensor, reads: Sequence[Read]) -> None:
        values = statistic(by_channel(layer, x)).float().cpu()
        for group, place in reads:
            each = values[torch.from_numpy(place.positions)].mean(1)
            key = (group.name, place.layer)
            found[key] = found.get(key, torch.zeros_like(each)) + each

    with watching(model, free, look):
        for x, _ in given(model, batches, name):
            model(x)
            count += 1
    made: dict[str, Tensor] = {}
    for group in free:
        parts = [value / count for (name_, _), value in found.items() if name_ == group.name]
        made[group.name] = torch.stack(parts).amax(0) if parts else torch.zeros(group.width)
    return made
