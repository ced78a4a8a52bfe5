# SPDX-License-Identifier: Apache-2.0
"""Scores of whole filters, for `prune.choose`: the lowest go.

    l1, l2     norm of the filter; Li et al. 2017 (arXiv 1608.08710)
    fpgm       sum of distances to the other filters of its layer: those near the geometric median
               are replaceable; He et al. 2019 (arXiv 1811.00250)
    slimming   |gamma| of the norms along the channel; Liu et al. 2017 (arXiv 1708.06519)
    taylor     (sum of gradient * weight over the filter)^2, mean over batches; Molchanov et al. 2019
               (arXiv 1906.10771)
    pfp        largest share that the channel has, over samples and places, in a sum that reads it;
               after Liebenwein et al. 2020 (arXiv 1911.07412), a reconstruction without its bounds

The first four compare filters of one layer: they are divided by the mean of their group, so that
groups can be ranked together. Where several layers make a channel, their scores are added.
`register_filter_score` adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.prune.filters import FilterGroup, FilterGroups
from ternary_ops.prune.registry import Registry

Scores: TypeAlias = dict[str, Tensor]
FilterScore: TypeAlias = Callable[..., Scores]

FILTER_SCORES: Registry[FilterScore] = Registry(
    "a filter score", "add yours with prune.register_filter_score(name, score)"
)


def register_filter_score(name: str, score: FilterScore) -> None:
    """Make `name` a filter score: score(groups, model, batches) -> {group's name: [width]} for every
    group of groups.free. Raises BadConfig for a taken name and for what cannot be called.
    """
    if not callable(score):
        do = "Pass a function of groups, model and batches."
        raise BadConfig(need("a filter score that can be called", repr(score), do))
    FILTER_SCORES.add(name, score)


def filter_score(name: str) -> FilterScore:
    """The filter score of that name, a function (groups, model, batches=None) -> {group's name:
    float32 [width]} for the groups of which channels can go. BadConfig lists the names there are.
    """
    return FILTER_SCORES.find(name)


def rows_of(model: nn.Module, group: FilterGroup) -> Iterator[tuple[str, Tensor]]:
    """For each layer that makes the channels its name and their filters [width, d]."""
    for place in group.places:
        if place.role == "producer":
            weight: Any = model.get_submodule(place.layer).weight
            at = torch.from_numpy(place.positions).to(weight.device)
            yield place.layer, weight.detach().float().flatten(1)[at].flatten(1)


def _norm(order: int) -> FilterScore:
    def score(groups: FilterGroups, model: nn.Module, batches: Any = None) -> Scores:
        model = unwrap(model)
        return {
            g.name: _relative([rows.norm(order, 1) for _, rows in rows_of(model, g)])
            for g in groups.free
        }

    return score


def _fpgm(groups: FilterGroups, model: nn.Module, batches: Any = None) -> Scores:
    model = unwrap(model)
    return {
        g.name: _relative([torch.cdist(rows, rows).sum(1) for _, rows in rows_of(model, g)])
        for g in groups.free
    }


def _relative(parts: list[Tensor]) -> Tensor:
    """The sum, over its mean; all 1 where that is 0."""
    score = torch.stack(parts).sum(0)
    mean = score.mean()
    return score / mean if float(mean) > 0 else torch.ones_like(score)


register_filter_score("l1", _norm(1))
register_filter_score("l2", _norm(2))
register_filter_score("fpgm", _fpgm)
