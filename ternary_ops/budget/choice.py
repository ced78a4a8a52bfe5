# SPDX-License-Identifier: Apache-2.0
"""The allocation of a limit to layers: greedy steps along each layer's lower convex hull of error
over cost, a Lagrangian relaxation of the knapsack problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ternary_ops.nn.config import TernaryConfig


@dataclass(frozen=True)
class Choice:
    """One candidate of a layer: its config, its cost, and its error (`output_errors`)."""

    config: TernaryConfig
    cost: float
    error: float


def choose(table: Mapping[str, list[Choice]], limit: float) -> dict[str, Choice] | None:
    """One choice a layer with costs that sum to at most `limit`; None where there is none.

    Steps along every layer's lower convex hull of error over cost, steepest first, as long as they
    fit; a layer whose next step does not fit is done.
    """
    hulls = {name: hull(choices) for name, choices in table.items()}
    at = dict.fromkeys(hulls, 0)
    spent = sum(points[0].cost for points in hulls.values())
    if spent > limit:
        return None
    open_layers = {name for name, points in hulls.items() if len(points) > 1}
    while open_layers:
        name = max(open_layers, key=lambda n: _slope(hulls[n], at[n]))
        points, k = hulls[name], at[name]
        more = points[k + 1].cost - points[k].cost
        fits = spent + more <= limit
        if fits:
            spent += more
            at[name] = k + 1
        if not fits or at[name] + 1 == len(points):
            open_layers.discard(name)
    return {name: points[at[name]] for name, points in hulls.items()}


def hull(choices: list[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, cost rising, error falling ever more slowly."""
    points: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.error)):
        if points and choice.error >= points[-1].error:
            continue
        points.append(choice)
        while len(points) > 2 and _slope(points, -3) <= _slope(points, -2):
            del points[-2]
    return points


def _slope(points: list[Choice], k: int) -> float:
    """Harm that goes away for one unit of cost between points k and k + 1."""
    a, b = points[k], points[k + 1]
    return (a.error - b.error) / max(b.cost - a.cost, 1e-12)
