# SPDX-License-Identifier: Apache-2.0
"""How the share of zeros grows over training: pure functions of the progress t in [0, 1].

A curve maps [0, 1] to [0, 1] and is 1 at its end; a Schedule places it between `start` and `end`
of the training. Add a schedule with one line in SCHEDULES.

Sources: one_cycle from Hubens et al., "One-Cycle Pruning" (arXiv 2107.02086; formula of the
authors' code); agp from Zhu & Gupta, "To prune, or not to prune" (arXiv 1710.01878).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ternary_ops.errors import BadConfig, need


@dataclass(frozen=True)
class Schedule:
    """A named curve and the progress at which it starts unless the caller says otherwise."""

    name: str
    curve: Callable[[float], float]
    start: float = 0.0

    def __call__(
        self,
        t: float,
        *,
        start: float | None = None,
        end: float = 1.0,
        initial: float = 0.0,
        final: float = 1.0,
    ) -> float:
        """Share of zeros at progress t: `initial` before `start`, exactly `final` from `end` on."""
        begin = self.start if start is None else start
        if t >= end:
            return final
        if t < begin:
            return initial
        return initial + (final - initial) * self.curve((t - begin) / (end - begin))


def one_cycle(alpha: float = 14.0, beta: float = 6.0, zero_start: bool = False) -> Schedule:
    """A logistic curve of steepness alpha, half way at t = beta / alpha, scaled to be 1 at t = 1.

    It starts at 0.25 % of the target; `zero_start` subtracts that and rescales: both ends are met.
    """
    if not (math.isfinite(alpha) and math.isfinite(beta) and alpha > 0):
        raise BadConfig(
            need(
                "one_cycle needs a finite beta and alpha > 0",
                f"alpha={alpha}, beta={beta}",
                "The paper uses alpha=14, beta=6.",
            )
        )

    def logistic(t: float) -> float:
        return (1.0 + math.exp(beta - alpha)) / (1.0 + math.exp(beta - alpha * t))

    def from_zero(t: float) -> float:
        first = logistic(0.0)
        return (logistic(t) - first) / (1.0 - first)

    default = (alpha, beta, zero_start) == (14.0, 6.0, False)
    options = "" if default else f"(alpha={alpha:g}, beta={beta:g}, zero_start={zero_start})"
    return Schedule("one_cycle" + options, from_zero if zero_start else logistic)


def _at_once(t: float) -> float:
    return 1.0


def _cubic(t: float) -> float:
    return 1.0 - (1.0 - t) ** 3


SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        one_cycle(),
        Schedule("one_shot", _at_once, start=0.5),
        Schedule("agp", _cubic, start=0.2),
    )
}


def get_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of that name; a Schedule passes through. BadConfig lists the names there are."""
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise BadConfig(
            need(
                f"schedule must be one of {', '.join(SCHEDULES)}, or a prune.Schedule",
                repr(schedule),
                "Pass one of these names, or prune.Schedule('mine', curve) with curve(1) == 1.",
            )
        )
    return SCHEDULES[schedule]
