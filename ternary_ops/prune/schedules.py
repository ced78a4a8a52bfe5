# SPDX-License-Identifier: Apache-2.0
"""Schedules: the fraction of zeros over training, pure functions of the progress t in [0, 1].

A curve maps [0, 1] to [0, 1] and ends at 1, or at 0 if the network is to be dense again; a Schedule
places it between `start` and `end` of the training. `register_schedule` adds one.

Sources: one_cycle from Hubens et al., "One-Cycle Pruning" (arXiv 2107.02086; formula of the
authors' code, as are the steps of iterative, linear, cosine and dsd); agp from Zhu & Gupta, "To
prune, or not to prune" (arXiv 1710.01878); dsd after Han et al., "DSD: Dense-Sparse-Dense Training"
(arXiv 1607.04381), whose phases are steps, not a curve; constant, at the target from the first
update on, is that of dynamic sparse training (prune.growth); iht, sparse and dense phases in turn,
after Jin et al., "Training Skinny Deep Neural Networks with Iterative Hard Thresholding Methods"
(arXiv 1607.05423): a reconstruction. Schedules that go by what a run shows: adaptive_schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ternary_ops.errors import BadConfig, need
from ternary_ops.prune.registry import Registry


@dataclass(frozen=True)
class Schedule:
    """A named curve and the progress at which it starts unless the caller says otherwise.

    last: the curve's value at its end, 1 (the target) or 0 (dense again: weights must be able to
    come back, Pruner(nested=False)). cyclic: the curve is 0 or 1 and falls in between; at 0 all
    pruned weights come back, as zeros. pace: makes what one Pruner asks for its share, where that
    depends on more than the progress.
    """

    name: str
    curve: Callable[[float], float]
    start: float = 0.0
    last: float = 1.0
    cyclic: bool = False
    pace: Callable[[Schedule], Pace] | None = None

    def __call__(
        self,
        t: float,
        *,
        start: float | None = None,
        end: float = 1.0,
        initial: float = 0.0,
        final: float = 1.0,
    ) -> float:
        """Fraction of zeros at progress t: `initial` before `start`, exactly `final` (with last 0:
        `initial`) from `end` on.
        """
        begin = self.start if start is None else start
        if t >= end:
            return final if self.last == 1.0 else initial
        if t < begin:
            return initial
        return initial + (final - initial) * self.curve((t - begin) / (end - begin))

    def fresh_pace(self) -> Pace:
        """The pace of a run that begins."""
        return Pace(self) if self.pace is None else self.pace(self)


class Pace:
    """The share of the target that is due in one run: here, that of the curve."""

    reads_losses: ClassVar[bool] = False

    def __init__(self, schedule: Schedule) -> None:
        """At the beginning of a run."""
        self.schedule = schedule

    def share(self, t: float, start: float | None, end: float) -> float:
        """The share at progress t."""
        return self.schedule(t, start=start, end=end)

    def look(self, masks: Callable[[], Tensor]) -> None:
        """Called at each update of the masks, before `share`. masks: which units would be pruned
        if the whole target were due now, bool.
        """
        return None

    def loss(self, value: float) -> None:
        """The loss on data that are not trained on; BadConfig with a schedule that reads none."""
        what, do = "a schedule that reads losses, generalization_loss", "Leave report_loss out."
        raise BadConfig(need(what, repr(self.schedule.name), do))

    def state(self) -> dict[str, Any]:
        """Everything beyond the progress."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of state()."""
        return None


def one_cycle(alpha: float = 14.0, beta: float = 6.0, zero_start: bool = False) -> Schedule:
    """A logistic curve of steepness alpha, half way at t = beta / alpha, scaled to be 1 at t = 1.

    It starts at 0.25 % of the target; `zero_start` subtracts that and rescales: both ends are met.
    """
    if not (math.isfinite(alpha) and math.isfinite(beta) and alpha > 0):
        raise BadConfig(
            need(
                "a finite beta and a finite alpha > 0 of one_cycle",
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


def iterative(steps: int = 3) -> Schedule:
    """Equal jumps, the first one at its start: steps of 1 / steps each. BadConfig for steps < 1."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadConfig(need("an integer steps >= 1 of iterative", repr(steps), "Use 3."))
    options = "" if steps == 3 else f"({steps})"
    return Schedule(f"iterative{options}", lambda t: math.ceil(t * steps) / steps, start=0.2)


def iht(sparse: int = 1, dense: int = 1, steps: int = 9) -> Schedule:
    """`sparse` steps at the target, `dense` steps without zeros, and so on, sparse at the end;
    steps: those between its start and its end, which are the unit of the other two.

    BadConfig for counts < 1 and where all steps would be sparse.
    """
    counts = (sparse, dense, steps)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in counts)
    if not whole or steps <= sparse + dense:
        got = f"sparse={sparse!r}, dense={dense!r}, steps={steps!r}"
        what = "integers sparse, dense >= 1 and steps > sparse + dense of iht"
        raise BadConfig(need(what, got, "Use iht(100, 100, 900)."))

    def curve(t: float) -> float:
        step = math.floor(t * steps + 1e-6)  # t is a quotient of steps
        return 1.0 if t >= 1.0 or step % (sparse + dense) < sparse else 0.0

    options = "" if counts == (1, 1, 9) else f"({sparse}, {dense}, {steps})"
    return Schedule(f"iht{options}", curve, start=0.2, cyclic=True)


def _linear(t: float) -> float:
    return t


def _cosine(t: float) -> float:
    return (1.0 - math.cos(math.pi * t)) / 2.0


def _there_and_back(t: float) -> float:
    return (1.0 - math.cos(2.0 * math.pi * t)) / 2.0


def _at_once(t: float) -> float:
    return 1.0


def _cubic(t: float) -> float:
    return 1.0 - (1.0 - t) ** 3


SCHEDULES: Registry[Schedule] = Registry(
    "a schedule", "pass prune.Schedule('mine', curve) with curve(1) == 1"
)


def register_schedule(schedule: Schedule) -> None:
    """Make the schedule's name a value of Pruner(schedule=); BadConfig for a taken name."""
    if not isinstance(schedule, Schedule):
        got, do = repr(schedule), "Pass prune.Schedule('mine', curve)."
        raise BadConfig(need("a prune.Schedule to register", got, do))
    SCHEDULES.add(schedule.name, schedule)


def get_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of that name; a Schedule passes through. BadConfig lists the names there are."""
    return schedule if isinstance(schedule, Schedule) else SCHEDULES.find(schedule)


register_schedule(one_cycle())
register_schedule(Schedule("one_shot", _at_once, start=0.5))
register_schedule(iterative())
register_schedule(Schedule("agp", _cubic, start=0.2))
register_schedule(Schedule("linear", _linear))
register_schedule(Schedule("cosine", _cosine))
register_schedule(Schedule("constant", _at_once))
register_schedule(iht())
register_schedule(Schedule("dsd", _there_and_back, last=0.0))
