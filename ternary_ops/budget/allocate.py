# SPDX-License-Identifier: Apache-2.0
"""A limit of time or bytes, and plans that keep to it: a search at the widths that there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ternary_ops.budget.problem import Problem
from ternary_ops.budget.search_state import SearchState
from ternary_ops.budget.solving import solve
from ternary_ops.budget.units import SHARES, Bytes, Milliseconds, Unit
from ternary_ops.errors import BadConfig, need
from ternary_ops.graph.batches import samples
from ternary_ops.program.layer_costs import KINDS
from ternary_ops.prune.filters import FilterGroups
from ternary_ops.quantize.plan_rows import Plan


@dataclass(frozen=True)
class Budget:
    """Limit on the compiled network: either ms per call on one sample, or bytes of its file.

    threads: the engine's threads while time is measured. Raises BadConfig unless exactly one limit
    is given and all values are positive.
    """

    ms: float | None = None
    bytes: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        limits = [value for value in (self.ms, self.bytes) if value is not None]
        if len(limits) != 1 or not limits[0] > 0 or self.threads < 1:
            do = "Pass Budget(ms=2.5) or Budget(bytes=500_000)."
            raise BadConfig(need("a budget with one limit > 0 and threads >= 1", self, do))

    @property
    def limit(self) -> float:
        """The one number."""
        return float(self.ms if self.ms is not None else self.bytes or 0)

    @property
    def unit(self) -> str:
        """ "ms" or "bytes"."""
        return "ms" if self.ms is not None else "bytes"

    def measure(self) -> Unit:
        """What says how much a network takes of it."""
        return Milliseconds(self.threads) if self.ms is not None else Bytes()

    def allocate(
        self, model: nn.Module, plan: Plan, free: list[str], batches: Iterable[Any]
    ) -> Plan:
        """`plan` with new configs for the layers named in `free`, chosen within the budget.

        model: float, on the CPU; not changed. Raises BadConfig when even the cheapest candidates
        exceed the budget, with their cost, and the errors of compile for a network that has no
        program form.
        """
        inputs = [x for x, _ in samples(model, batches)]
        problem = Problem(
            model=model,
            example=inputs[0][:1],
            inputs=inputs,
            planned=plan,
            replan=lambda _: plan,
            free=dict.fromkeys(free, KINDS),
            zeros=SHARES,
            groups=FilterGroups([], {}, {}),
            scores={},
            unit=self.measure(),
            limit=self.limit,
            state=SearchState(None, {}),
        )
        return solve(problem).planned
