# SPDX-License-Identifier: Apache-2.0
"""Which filters stay: from scores to the channels that `remove_` keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, UnsupportedShape, need
from ternary_ops.prune.filter_costs import Cost
from ternary_ops.prune.filters import FilterGroup

Widths = Mapping[str, int]


def choose_widths(
    groups: Sequence[FilterGroup], scores: Mapping[str, Tensor], widths: Mapping[str, float]
) -> dict[str, Tensor]:
    """The channels of the highest scores, so many of each group: indices, ascending.

    Each part of a grouped convolution keeps as many as the others.
    """
    kept = {}
    for group in groups:
        if group.name not in widths:
            continue
        score, labels = scores[group.name].detach().cpu(), torch.from_numpy(group.labels)
        order = score.argsort(descending=True, stable=True)
        each = int(widths[group.name]) // group.parts
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
    scope: Literal["global", "layer"] = "global",
    round_to: int = 4,
) -> dict[str, int]:
    """The largest widths whose cost is at most the target.

    scope: "global" ranks the channels of all groups together; "layer" keeps the same share of each.
    Raises BadConfig where the narrowest network costs more.
    """
    if scope == "global":
        ranked = torch.cat([scores[group.name].detach().cpu().float() for group in groups])
        steps = [*ranked.sort().values.unique().tolist(), math.inf]

        def widths(step: int) -> dict[str, int]:
            return widths_above(groups, scores, steps[step], round_to)
    else:
        most = max(group.width for group in groups)
        steps = [*(k / most for k in range(most + 1))]

        def widths(step: int) -> dict[str, int]:
            return {g.name: round_up(g, g.width * (1 - steps[step]), round_to) for g in groups}

    low, high = 0, len(steps) - 1
    if cost(widths(high)) > target:
        least = f"{cost(widths(high)):.4g} at the least"
        raise BadConfig(need(f"a target within reach, {target:.4g}", least, "Ask for more."))
    while low < high:
        middle = (low + high) // 2
        if cost(widths(middle)) <= target:
            high = middle
        else:
            low = middle + 1
    return widths(low)
