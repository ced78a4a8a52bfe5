# SPDX-License-Identifier: Apache-2.0
"""Scores of whole filters, for `prune.choose`: the lowest go.

    l1, l2     norm of the filter; Li et al. 2017 (arXiv 1608.08710)
    fpgm       sum of distances to the other filters of its layer: those near the geometric median
               are replaceable; He et al. 2019 (arXiv 1811.00250)
    slimming   |gamma| of the norms along the channel; Liu et al. 2017 (arXiv 1708.06519)
    taylor     (sum of gradient * weight over the filter)^2, mean over labelled batches, cross
               entropy; Molchanov et al. 2019 (arXiv 1906.10771)
    pfp        largest share that the channel has in a sum that reads it, over samples and places;
               after Liebenwein et al. 2020 (arXiv 1911.07412), a reconstruction without its bounds
    apoz       share of numbers that are not zero where layers read the channel; Hu et al. 2016
               (arXiv 1607.03250)
    variance   of the channel where layers read it: constant ones can go into biases
               (prune.fold_constants_)

The first four compare filters of one layer: they are divided by the mean of their group, so that
groups can be ranked together. Where several layers make a channel, their scores are added.
`register_filter_score` adds one. Free gates are trained: prune.SbF(head="gates").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.graph.signature import pick
from ternary_ops.graph.trace import evaluating
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.prune.filter_activity import Read, apoz, given, variance, watching
from ternary_ops.prune.filter_scaling import NORMS
from ternary_ops.prune.filters import FilterGroup, FilterGroups, filters_of
from ternary_ops.prune.registry import Registry

_PLACES = 16  # of an image, or tokens, at which shares are taken
_TINY = 1e-30
Scores: TypeAlias = dict[str, Tensor]
FilterScore: TypeAlias = Callable[..., Scores]

FILTER_SCORES: Registry[FilterScore] = Registry(
    "a filter score", "add yours with prune.register_filter_score(name, score)"
)


def register_filter_score(name: str, score: FilterScore) -> None:
    """Make `name` a filter score: score(groups, model, batches) -> {group's name: [width]} for each
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
            filters = filters_of(model.get_submodule(place.layer)).detach().float()
            at = torch.from_numpy(place.positions).to(filters.device)
            yield place.layer, filters[at].flatten(1)


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


def _slimming(groups: FilterGroups, model: nn.Module, batches: Any = None) -> Scores:
    model, found = unwrap(model), {}
    for group in groups.free:
        gammas = []
        for place in group.places:
            norm: Any = model.get_submodule(place.layer)
            if place.role == "vector" and isinstance(norm, NORMS) and norm.weight is not None:
                at = torch.from_numpy(place.positions).to(norm.weight.device)
                gammas.append(norm.weight.detach().float().abs()[at].mean(1))
        if not gammas:
            what = f"a norm with a scale along the channels of group {group.name}"
            do = 'Take another score, such as "l2".'
            raise UnsupportedModel(need(what, "none", do))
        found[group.name] = _relative(gammas)
    return found


def _taylor(groups: FilterGroups, model: nn.Module, batches: Any = None) -> Scores:
    model, free, count = unwrap(model), groups.free, 0
    names = list(dict.fromkeys(name for g in free for name in g.producers))
    layers: list[Any] = [model.get_submodule(name) for name in names]
    total = {g.name: torch.zeros(g.width, device=layers[0].weight.device) for g in free}
    with evaluating(model), torch.enable_grad():
        for x, y in given(model, batches, "taylor"):
            if not isinstance(y, Tensor):
                do = "Pass batches (x, y)."
                raise BadConfig(need('labels for "taylor"', type(y).__name__, do))
            loss = F.cross_entropy(pick(model(x)).float(), y.to(x.device))
            gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
            effects = {
                name: (gradient * layer.weight.detach()).float().flatten(1).sum(1)
                for name, layer, gradient in zip(names, layers, gradients, strict=True)
            }
            for g in free:
                made = [p for p in g.places if p.role == "producer"]
                effect = [effects[p.layer][torch.from_numpy(p.positions)].sum(1) for p in made]
                total[g.name] += torch.stack(effect).sum(0).square()
            count += 1
    return {name: value / count for name, value in total.items()}


def _pfp(groups: FilterGroups, model: nn.Module, batches: Any = None) -> Scores:
    model, free = unwrap(model), groups.free
    found = {g.name: torch.zeros(g.width) for g in free}

    def look(layer: Any, x: Tensor, reads: Sequence[Read]) -> None:
        shares = _shares(layer, x.float())
        for group, place in reads:
            share = shares[torch.from_numpy(place.positions)].sum(1).cpu()
            found[group.name] = torch.maximum(found[group.name], share)

    with watching(model, free, look):
        for x, _ in given(model, batches, "pfp"):
            for sample in torch.split(x, 1):
                model(sample)
    return found


def _shares(layer: Any, x: Tensor) -> Tensor:
    """The largest share of each input channel in the sums that the layer makes of one sample, each
    term by its size, over outputs and some places.
    """
    weight: Tensor = layer.weight.detach().float()
    if weight.ndim == 2:
        rows = x.reshape(-1, x.shape[-1])
        terms = (rows[_some(len(rows)), None] * weight).abs()
        return (terms / terms.sum(-1, keepdim=True).clamp_min(_TINY)).amax((0, 1))
    weight, size = weight.flatten(2), layer.kernel_size
    inside = all(a >= k for a, k in zip(x.shape[2:], size, strict=True))
    patches = F.unfold(x, size, padding=0 if inside else tuple(k // 2 for k in size))[0]
    patches = patches[:, _some(patches.shape[1])].view(layer.groups, -1, weight.shape[2], _PLACES)
    shares = []
    for part, filters in zip(patches, weight.chunk(layer.groups), strict=True):
        terms = torch.einsum("ock,ckl->ocl", filters, part).abs()
        shares.append((terms / terms.sum(1, keepdim=True).clamp_min(_TINY)).amax((0, 2)))
    return torch.cat(shares)


def _some(count: int) -> Tensor:
    """Places spread over all, again from the start where there are fewer."""
    return torch.arange(_PLACES) * max(1, count // _PLACES) % count


def _relative(parts: list[Tensor]) -> Tensor:
    """The sum, over its mean; all 1 where that is 0."""
    score = torch.stack(parts).sum(0)
    mean = score.mean()
    return score / mean if float(mean) > 0 else torch.ones_like(score)


register_filter_score("l1", _norm(1))
register_filter_score("l2", _norm(2))
register_filter_score("fpgm", _fpgm)
register_filter_score("slimming", _slimming)
register_filter_score("taylor", _taylor)
register_filter_score("pfp", _pfp)
register_filter_score("apoz", apoz)
register_filter_score("variance", variance)
