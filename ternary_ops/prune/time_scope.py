# SPDX-License-Identifier: Apache-2.0
"""Scope "time": zeros fall where they save most time in the engine for what they cost the network.

A unit is ranked by its score for each millisecond that emptying it saves; no layer is emptied
beyond MOST_EMPTY. Layers of few units that take as long as others of many, the early ones of most
networks, are emptied first, and most units stay. The rule is ours; bench/time_scope.py compares it
with others, and with equal zeros in every layer, at equal milliseconds.

Costs are measured by plan(..., example=) and travel with the layers (`nn.engine_cost`), the
Pruner's state and files; nothing is measured here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, FormatError, need
from ternary_ops.nn.engine_cost import EngineCost
from ternary_ops.program.cpu import isa, processor
from ternary_ops.program.layer_costs import MOST_EMPTY
from ternary_ops.prune.ranking import Group
from ternary_ops.prune.targets import Target

_log = logging.getLogger(__name__)


class TimeGroup(Group):
    """Targets whose units are ranked by what pruning them costs for each millisecond it saves."""

    survivors: ClassVar[str] = f'{1 - MOST_EMPTY:.0%} of every layer, which scope "time" keeps'

    def __init__(self, targets: Sequence[Target], zeros: float) -> None:
        """Raises BadConfig, naming them, for targets without a cost, and as Group does."""
        missing = [target.name for target in targets if target.cost is None]
        if missing:
            do = "Make the plan with an example, plan(model, config, example=x), then quantize_."
            what = 'measured costs of all layers for scope "time"'
            raise BadConfig(need(what, f"none of {', '.join(missing)}", do))
        super().__init__(targets, zeros)
        _warn_of_another_place(targets)

    def protected(self, target: Target) -> int:
        """Number of units of the target that stay."""
        return max(target.protected, target.units - math.floor(MOST_EMPTY * target.units))

    def ranked(self, parts: list[Tensor]) -> list[Tensor]:
        """Scores for each millisecond. A unit with a negative score, better off pruned, stays in
        front of the others, first where it saves most.
        """
        made = []
        for target, part in zip(self.targets, parts, strict=True):
            saving = _cost(target).ms / target.units
            made.append(torch.where(part < 0, part * saving, part / saving))
        return made


def by_time(targets: Sequence[Target], zeros: float) -> list[Group]:
    """One total over all layers, by time."""
    return [TimeGroup(targets, zeros)]


def costs_state(targets: Sequence[Target]) -> dict[str, dict[str, Any]]:
    """Costs by layer, as plain values, for the state of a Pruner."""
    return {t.name: t.cost.to_dict() for t in targets if t.cost is not None and t.scope == "time"}


def restore_costs(state: Mapping[str, Any], targets: Sequence[Target]) -> None:
    """Give layers the costs of a state, which go before those measured since.

    Raises FormatError, with nothing changed, unless all are there.
    """
    timed = [target for target in targets if target.scope == "time"]
    try:
        found = [EngineCost.from_dict(state["costs"][target.name]) for target in timed]
    except (KeyError, TypeError, BadConfig) as error:
        what = f"a state of a Pruner with costs of {', '.join(t.name for t in timed)}"
        do = "Pass what Pruner.state_dict() returned."
        raise FormatError(need(what, repr(error), do)) from error
    for target, cost in zip(timed, found, strict=True):
        for owner in target.owners:
            owner.cost = cost  # type: ignore[assignment]  # a plain attribute


def _cost(target: Target) -> EngineCost:
    if target.cost is None:
        raise TypeError(f"{target.name} has no cost")  # unreachable: the group refused it
    return target.cost


def _warn_of_another_place(targets: Sequence[Target]) -> None:
    """Costs are those of the machine that will run the network; say so where that is not this."""
    here = processor(), isa()
    costs = [_cost(target) for target in targets]
    there = sorted({cost.where for cost in costs if (cost.machine, cost.isa) != here})
    if there:
        now = ", ".join(here)
        _log.warning('scope "time" goes by costs of %s; this is %s', "; ".join(there), now)
