# SPDX-License-Identifier: Apache-2.0
"""Costs over widths, measured: the network is narrowed to a few sets of widths, and each measured.

Layers alone at a grid of widths were measured too, without narrowing: two to four times as fast,
and two to six times as far off (docs/methods/search.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ternary_ops.budget.cost_model import CostModel, Measured, fit
from ternary_ops.budget.problem import Problem, levels_of
from ternary_ops.budget.units import SHARES, at
from ternary_ops.budget.width_features import LayerWidths, Widths
from ternary_ops.prune.filters import FilterGroup


def settings(problem: Problem) -> list[dict[str, int]]:
    """Widths at which costs are measured: whole, all groups narrower, and every other one."""
    found: list[dict[str, int]] = [{}]
    for share in problem.unit.widths:
        found.append({g.name: _nearest(g, share * g.width) for g in problem.groups})
    for share in problem.unit.alternating:
        for first in (0, 1):
            found.append({g.name: _nearest(g, share * g.width) for g in problem.groups[first::2]})
    return [widths for k, widths in enumerate(found) if widths not in found[:k]]


def _nearest(group: FilterGroup, width: float) -> int:
    return min(levels_of(group), key=lambda level: abs(level - width))


def measured(
    problem: Problem, at_widths: Sequence[dict[str, int]], advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """Costs of the network's layers at all of these widths, as plain values."""
    kinds = sorted({kind for kinds in problem.free.values() for kind in kinds})
    shares = _shares(problem)
    found = []
    for widths in at_widths:

        def table(widths: Widths = widths) -> dict[str, Any]:
            network = problem.narrowed(widths)
            planned = problem.replan(network)
            made = problem.unit.table(network, problem.inputs, planned, problem.free, shares)
            return made.to_dict()

        name = f"cost {kinds} {shares} {widths} {problem.ranking}"
        found.append({**problem.state.known(name, table), "widths": widths})
        advance()
    return found


def fitted(problem: Problem, tables: Sequence[Mapping[str, Any]]) -> CostModel:
    """Costs at any width, from those that were measured."""
    known = [(table["widths"], Measured(table["layers"], table["rest"])) for table in tables]
    return fit(known, LayerWidths(problem.groups))


def _shares(problem: Problem) -> list[float]:
    """Of empty units: those between which costs are interpolated, or all that layers may have."""
    if len(problem.zeros) > 1:
        return list(SHARES)
    pairs = [(name, kind) for name, kinds in problem.free.items() for kind in kinds]
    (zeros,) = problem.zeros
    configs = (at(problem.planned, name, kind, zeros) for name, kind in pairs)
    return sorted({problem.unit.share(config) for config in configs})
