# SPDX-License-Identifier: Apache-2.0
"""The units whose removal costs least over several layers, rows by optimal brain surgeon.

To order all units of a row costs as much as to remove them all; but what comes after the cost at
which the group's total is reached is of no interest. That cost is estimated from a few rows of each
layer, somewhat too high, and no row is followed above it; when it was too low all the same, the
search is repeated. The result is that of ordering everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ternary_ops.prune.obs import removal
from ternary_ops.prune.ranking import Group

_SAMPLE = 4  # rows of each layer that the estimate is made from
_LEAST = 1e-30  # of the estimate: where removals are free
_LIMITS = (1.3, 3.0, torch.inf)  # times the estimate: the next where one was too low


@dataclass
class Rows:
    """One weight as rows [N, K] of units: matrices [B, K, K], which is whose [N], and by what a
    row's costs count [N]; name: of the layer.
    """

    name: str
    rows: Tensor
    inverse: Tensor
    which: Tensor
    factor: Tensor
    unit: int

    def every(self, step: int) -> Rows:
        """Every step-th row."""
        parts = (self.rows[::step], self.inverse, self.which[::step], self.factor[::step])
        return Rows(self.name, *parts, self.unit)


def costs_of(parts: Sequence[Rows], limit: float) -> list[Tensor]:
    """Of the units of each weight up to `limit`, float32 [N, units]. Rows of equal length go
    together: a step of one row takes as long as one of many.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for number, part in enumerate(parts):
        alike.setdefault((part.rows.shape[1], part.unit), []).append(number)
    costs: dict[int, Tensor] = {}
    for (_, unit), members in alike.items():
        some = [parts[number] for number in members]
        starts = itertools.accumulate((len(part.inverse) for part in some), initial=0)
        which = torch.cat([p.which + start for p, start in zip(some, starts, strict=False)])
        factor = torch.cat([part.factor for part in some]).float()
        limits = limit / factor.clamp_min(_LEAST)
        rows, inverse = (torch.cat([getattr(p, k) for p in some]) for k in ("rows", "inverse"))
        found = removal(rows, inverse, which, unit, limits)
        # Infinity is "not reached", also in rows that count for nothing.
        found = torch.where(found.isinf(), found, found * factor[:, None])
        sizes = [len(part.rows) for part in some]
        costs |= dict(zip(members, torch.split(found, sizes), strict=True))
    return [costs[number] for number in range(len(parts))]


def prune_cheapest(group: Group, parts: Sequence[Rows]) -> None:
    """Prune the units of a group that cost least; parts: one for each target, in order."""
    wanted = group.wanted()
    steps = [max(1, len(part.rows) // _SAMPLE) for part in parts]
    sample = costs_of(
        [part.every(step) for part, step in zip(parts, steps, strict=True)], torch.inf
    )
    estimate = max(_reached(sample, steps, wanted), _LEAST)
    for limit in (times * estimate for times in _LIMITS):
        found = sample if set(steps) == {1} else costs_of(parts, limit)
        group.prune([costs.flatten() for costs in found], wanted)
        flat = torch.cat([costs.flatten() for costs in found])
        if not bool((flat[group.pruned] == torch.inf).any()):
            return


def _reached(costs: Sequence[Tensor], steps: Sequence[int], wanted: int) -> float:
    """The cost up to which `wanted` units go, from samples of which each stands for so many."""
    flat = torch.cat([part.flatten() for part in costs])
    weight = torch.cat([torch.full((p.numel(),), s) for p, s in zip(costs, steps, strict=True)])
    order = flat.argsort()
    total = weight[order.cpu()].cumsum(0)
    at = int((total < wanted).sum())
    return float(flat[order[min(at, len(order) - 1)]])
