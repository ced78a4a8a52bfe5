# SPDX-License-Identifier: Apache-2.0
"""Which filters stay: from scores to the channels that `remove_` keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, UnsupportedShape, check_type, need
from ternary_ops.prune.filter_costs import Cost, FilterCosts
from ternary_ops.prune.filters import FilterGroup, FilterGroups

Scope = Literal["global", "layer"]


def choose(
    groups: FilterGroups,
    scores: Mapping[str, Tensor],
    params: float | None = None,
    macs: float | None = None,
    widths: float | None = None,
    scope: Scope = "global",
    round_to: int = 4,
) -> dict[str, Tensor]:
    """The channels to keep, for `remove_`: of each group those of the highest scores.

    scores: [width] for each group that can be cut, as a filter score gives them.
    params, macs, widths: one of them, the share in 0..1 that is to be left of all parameters, of
        all multiply-adds, or of the channels of the groups. As much as that allows is kept.
    scope: "global" ranks the channels of all groups together; "layer" keeps a share of each.
    round_to: widths are multiples of it, at least one, unless a group is whole.

    Each part of a grouped convolution keeps as many channels. Raises BadConfig for arguments that
    do not fit, and for a share that the narrowest network exceeds; UnsupportedShape for scores that
    are not [width] or not finite.
    """
    free = groups.free
    given = {"params": params, "macs": macs, "widths": widths}
    shares = {name: share for name, share in given.items() if share is not None}
    if len(shares) != 1:
        got = ", ".join(shares) or "none"
        raise BadConfig(need("one of params, macs and widths", got, "Pass the share to be left."))
    ((name, share),) = shares.items()
    check_type(name, share, (int, float), "Pass the share to be left.")
    if not 0 < share <= 1:
        raise BadConfig(need(f"{name} in 0..1", share, "Pass the share to be left."))
    if scope not in ("global", "layer") or round_to < 1:
        got = f"{scope!r} and {round_to}"
        do = "Correct it."
        raise BadConfig(need('scope "global" or "layer" and round_to >= 1', got, do))
    _check_scores(free, scores)
    costs = FilterCosts(free)
    cost: Cost = {
        "params": costs.parameters,
        "macs": costs.multiply_adds,
        "widths": costs.channels,
    }[name]
    chosen = widths_for(free, scores, cost, share * cost({}), scope, round_to)
    return channels_of(free, scores, chosen)


def channels_of(
    groups: Sequence[FilterGroup], scores: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """The channels of the highest scores, so many of each group: indices, ascending."""
    kept = {}
    for group in groups:
        score, labels = scores[group.name].detach().cpu(), torch.from_numpy(group.labels)
        order = score.argsort(descending=True, stable=True)
        each = widths[group.name] // group.parts
        chosen = [order[labels[order] == part][:each] for part in range(group.parts)]
        kept[group.name] = torch.cat(chosen).sort().values
    return kept


def round_up(group: FilterGroup, width: float, round_to: int) -> int:
    """The next width that is a multiple of round_to and has as many channels in each part; at
    least one, at most the present width.
    """
    step = math.lcm(group.parts, round_to)
    return min(group.width, step * max(1, math.ceil(width / step - 1e-9)))


def widths_above(
    groups: Sequence[FilterGroup], scores: Mapping[str, Tensor], threshold: float, round_to: int
) -> dict[str, int]:
    """Widths that hold every channel of a score of at least the threshold, rounded up."""
    found = {}
    for group in groups:
        score, labels = scores[group.name].detach().cpu(), torch.from_numpy(group.labels)
        above = torch.bincount(labels[score >= threshold], minlength=group.parts)
        found[group.name] = round_up(group, float(above.max()) * group.parts, round_to)
    return found


def widths_for(
    groups: Sequence[FilterGroup],
    scores: Mapping[str, Tensor],
    cost: Cost,
    target: float,
    scope: Scope = "global",
    round_to: int = 4,
) -> dict[str, int]:
    """The largest widths whose cost is at most the target, by bisection: the lower the scores that
    stay, or the share of each group, the higher the cost. BadConfig where none is low enough.
    """
    if scope == "global":
        ranked = torch.cat([scores[group.name].detach().cpu().double() for group in groups])
        steps = [*sorted(set(ranked.tolist())), math.inf]
    else:
        steps = sorted({k / g.width for g in groups for k in range(g.width + 1)})

    def widths(step: float) -> dict[str, int]:
        if scope == "global":
            return widths_above(groups, scores, step, round_to)
        return {g.name: round_up(g, g.width * (1 - step), round_to) for g in groups}

    low, high = 0, len(steps) - 1
    if (least := cost(widths(steps[high]))) > target:
        got = f"{least:.4g} at the least"
        raise BadConfig(need(f"a cost that can be reached, {target:.4g}", got, "Ask for more."))
    while low < high:
        middle = (low + high) // 2
        if cost(widths(steps[middle])) <= target:
            high = middle
        else:
            low = middle + 1
    return widths(steps[low])


def _check_scores(groups: Sequence[FilterGroup], scores: Mapping[str, Tensor]) -> None:
    check_type("scores", scores, Mapping, "Pass {group's name: scores [width]}.")
    for group in groups:
        score = scores.get(group.name)
        good = isinstance(score, Tensor) and score.shape == (group.width,)
        if score is None or not good or not bool(score.isfinite().all()):
            got = f"{list(score.shape)}" if isinstance(score, Tensor) else repr(score)
            got = f"{got}, not all finite" if good else got
            what = f"finite scores [{group.width}] of group {group.name}"
            raise UnsupportedShape(need(what, got, "Score the network as it is."))
