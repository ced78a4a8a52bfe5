# SPDX-License-Identifier: Apache-2.0
"""The search itself: errors and costs are measured, networks chosen, built, and measured again.

The model of costs stands on a few networks at other widths. So the network that it chooses is
built, pruned at once, and measured; the model learns by how much it was off, layer by layer, and
chooses again, until the cost lies within 1 % of the limit, five times at most; the nearest is
taken. (Networks of real codes take longer than the model says at first, so that the first one
within 3 % was nearly always above the limit.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ternary_ops.budget.cost_model import CostModel
from ternary_ops.budget.output_errors import OutputProbe
from ternary_ops.budget.problem import Problem, levels_of
from ternary_ops.budget.search_state import digest
from ternary_ops.budget.space import Design, GroupOptions, LayerOptions, Space
from ternary_ops.budget.trial import with_configs
from ternary_ops.budget.units import at, trial_at
from ternary_ops.budget.width_costs import fitted, measured, settings
from ternary_ops.errors import BadConfig, need
from ternary_ops.nn import TernaryLayer
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.progress import progress_bars
from ternary_ops.prune.filters import FilterGroup
from ternary_ops.quantize.plan_rows import Plan

CLOSE = 0.03  # of the limit: further away a warning says so
_NEAR = 0.01  # nearer is not asked for, since times vary as much
_ROUNDS = 5
_log = logging.getLogger(__name__)
_STEP = 0.025  # of the shares of empty units that are chosen from
_LEAST_ERROR = 1e-9


@dataclass(frozen=True)
class Solution:
    """The network that was chosen, what it costs, measured, and the path of networks beside it.

    measured: layer by layer. planned: of the narrower network.
    """

    design: Design
    cost: float
    layers: Mapping[str, float]
    planned: Plan
    path: Sequence[Design]


def solve(problem: Problem) -> Solution:
    """The network of the least error within the limit. Raises BadConfig where none is in reach."""
    watching = progress_bars() if problem.progress is None else nullcontext(problem.progress)
    with watching as bars:
        widths, more = settings(problem), len(_trials(problem))
        with bars.stage("errors", more + len(problem.groups)) as advance:
            layers, groups = _errors(problem, advance)
        with bars.stage("costs", len(widths)) as advance:
            costs = fitted(problem, measured(problem, widths, advance))
        with bars.stage("choice", _ROUNDS) as advance:
            return _verified(problem, layers, groups, costs, advance)


def _errors(
    problem: Problem, advance: Callable[[], None]
) -> tuple[list[LayerOptions], list[GroupOptions]]:
    probe = OutputProbe(problem.model, problem.inputs)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in problem.free}
    for kind, zeros in _trials(problem):

        def moved(kind: str = kind, zeros: float = zeros) -> dict[str, float]:
            trial = trial_at(problem.model, problem.planned, problem.free, kind, zeros)
            return {name: probe.layer(name, _quantized(trial, name)) for name in problem.free}

        for name, error in problem.state.known(f"error {kind} {zeros}", moved).items():
            if kind in problem.free[name]:
                found[name].setdefault(kind, []).append((zeros, error))
        advance()
    groups = []
    for group in problem.groups:
        levels = levels_of(group)

        def without(group: FilterGroup = group, levels: Sequence[int] = levels) -> list[float]:
            return [
                probe.without(group, problem.kept({group.name: width})[group.name])
                for width in levels[1:]
            ]

        name = f"error {group.name} {levels} {digest([problem.scores[group.name]])}"
        known = problem.state.known(name, without)
        # Of fewer channels never less: it would only be so by chance.
        groups.append(
            GroupOptions(group.name, levels, np.maximum.accumulate([0.0, *known]).tolist())
        )
        advance()
    return [_options(problem, name, curves) for name, curves in found.items()], groups


def _trials(problem: Problem) -> list[tuple[str, float]]:
    kinds = sorted({kind for kinds in problem.free.values() for kind in kinds})
    return [(kind, zeros) for kind in kinds for zeros in problem.zeros]


def _quantized(trial: nn.Module, name: str) -> TernaryLayer:
    layer = trial.get_submodule(name)
    if not isinstance(layer, TernaryLayer):
        raise TypeError(f"{name} is not quantized")  # unreachable
    return layer


def _options(
    problem: Problem, name: str, curves: Mapping[str, Sequence[tuple[float, float]]]
) -> LayerOptions:
    """What a layer may be, between the shares that were measured too: there errors are taken to
    grow by equal factors.
    """
    configs: list[TernaryConfig] = []
    errors: list[float] = []
    for kind, curve in curves.items():
        shares = np.array([share for share, _ in curve])
        logs = np.log(np.maximum([error for _, error in curve], _LEAST_ERROR))
        grid = np.arange(shares[0], shares[-1], _STEP) if len(shares) > 1 else shares[:0]
        for zeros in sorted({*np.round(grid, 3).tolist(), *shares.tolist()}):
            configs.append(at(problem.planned, name, kind, zeros))
            errors.append(math.exp(float(np.interp(zeros, shares, logs))))
    shares_of = [problem.unit.share(config) for config in configs]
    return LayerOptions(name, configs, shares_of, np.array(errors))


def _verified(
    problem: Problem,
    layers: Sequence[LayerOptions],
    groups: Sequence[GroupOptions],
    costs: CostModel,
    advance: Callable[[], None],
) -> Solution:
    fixed = _fixed(problem, costs)
    problem.unit.begin(problem.model, problem.inputs, problem.planned)
    found: Solution | None = None
    for number in range(_ROUNDS):
        space = Space([*layers, *fixed], groups, costs)
        design = space.best(problem.limit)
        if design is None:
            break
        solution = _built(problem, design, space, number)
        if found is None or _off(solution, problem) < _off(found, problem):
            found = solution
        advance()
        roomy = design.cost < (1 - CLOSE) * problem.limit  # nothing better costs more
        if _off(found, problem) <= _NEAR or (roomy and solution.cost <= problem.limit):
            return found
        choices = {
            name: (choice.config.weights, problem.unit.share(choice.config))
            for name, choice in design.choices.items()
        }
        rest = solution.cost - sum(solution.layers.values())
        costs = costs.corrected(solution.layers, rest, choices, design.widths)
    if found is None:
        least, name = space.least(), problem.unit.name
        raise BadConfig(
            need(
                f"a network that fits into {problem.limit:g} {name}",
                f"{least:.4g} {name} with every layer at its cheapest",
                "Ask for that or more, or give fixed layers cheaper rules.",
            )
        )
    if _off(found, problem) <= CLOSE:
        return found
    _log.warning(
        "the nearest network of %d that were built takes %.4g %s, %+.1f %% off the target; "
        "search again on a quiet machine",
        *(_ROUNDS, found.cost, problem.unit.name, 100 * (found.cost / problem.limit - 1)),
    )
    return found


def _off(solution: Solution, problem: Problem) -> float:
    return abs(solution.cost / problem.limit - 1)


def _fixed(problem: Problem, costs: CostModel) -> list[LayerOptions]:
    """Layers that no choice is made for, whose costs follow the widths."""
    found = []
    for row in problem.planned:
        if row.config is not None and row.name in costs.parts and row.name not in problem.free:
            share = problem.unit.share(row.config)
            found.append(LayerOptions(row.name, [row.config], [share], np.zeros(1)))
    return found


def _built(problem: Problem, design: Design, space: Space, number: int) -> Solution:
    network = problem.narrowed(design.widths)
    planned = problem.replan(network)
    chosen = {name: choice for name, choice in design.choices.items() if name in problem.free}
    configs = {name: choice.config for name, choice in chosen.items()}

    def check() -> dict[str, Any]:
        made = problem.unit.check(network, problem.inputs, with_configs(planned, configs))
        return {"layers": dict(made.layers), "total": made.total}

    layered = {name: (config.weights, config.zeros) for name, config in configs.items()}
    key = f"{design.widths} {problem.ranking} {layered}"
    known = problem.state.known(f"check {number} {key}", check)
    layers = {name: known["layers"][name] for name in space.layers}
    reasons = {
        name: f"auto: {layers[name]:.3g} {problem.unit.name}, error {choice.error:.2g}"
        for name, choice in chosen.items()
    }
    planned = with_configs(planned, configs, reasons)
    return Solution(design, known["total"], layers, planned, space.path())
