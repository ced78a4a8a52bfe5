# SPDX-License-Identifier: Apache-2.0
"""Schedules whose share of zeros depends on what a run shows.

    early_bird           dense until the mask that would be drawn hardly changes, then all at once
                         and fixed; You et al. 2020, "Drawing Early-Bird Tickets" (arXiv 1909.11957)
    generalization_loss  the more the loss on other data has risen above its lowest, the more is
                         pruned; after Prechelt 1997, "Connection pruning with static and adaptive
                         pruning schedules" (Neurocomputing 16)

Both are reconstructions, on units of any pattern. early_bird's distance is the share of the units
left that are others than at the update before: the authors count all channels, among which masks
that leave few units would look alike. Of generalization_loss the measure is Prechelt's, GL = 100
(loss / lowest loss - 1); the pruning strength and its constants are from memory and unverified, and
ours is that it counts as a share of what is still due, so that the target is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from ternary_ops.errors import BadConfig, need
from ternary_ops.prune.schedules import Pace, Schedule, register_schedule


class EarlyBird(Pace):
    """Draws the ticket once `window` distances in a row are below `distance`."""

    def __init__(self, schedule: Schedule, distance: float, window: int) -> None:
        """With no mask seen."""
        super().__init__(schedule)
        self.distance, self.window = distance, window
        self.last: Tensor | None = None
        self.distances: list[float] = []
        self.drawn = False

    def look(self, masks: Callable[[], Tensor]) -> None:
        """Compare the mask of now with the one before."""
        if self.drawn:
            return
        pruned = masks().cpu()
        if self.last is not None:
            left = int((~pruned).sum())
            self.distances.append(int((self.last & ~pruned).sum()) / max(left, 1))
            self.distances = self.distances[-self.window :]
        self.last = pruned
        full = len(self.distances) == self.window
        self.drawn = full and max(self.distances) < self.distance

    def share(self, t: float, start: float | None, end: float) -> float:
        """All once the ticket is drawn, at the latest at `end`."""
        return 1.0 if self.drawn or t >= end else 0.0

    def state(self) -> dict[str, Any]:
        """Last mask and distances."""
        last = None if self.last is None else self.last.clone()
        return {"last": last, "distances": list(self.distances), "drawn": self.drawn}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self.last = None if state["last"] is None else state["last"].clone()
        self.distances, self.drawn = list(state["distances"]), bool(state["drawn"])


class GeneralizationLoss(Pace):
    """At each loss, strongest * (1 - 1 / (1 + alpha * GL)) of what is still due falls due."""

    reads_losses: ClassVar[bool] = True

    def __init__(self, schedule: Schedule, strongest: float, alpha: float) -> None:
        """With no loss seen."""
        super().__init__(schedule)
        self.strongest, self.alpha = strongest, alpha
        self.lowest, self.due = math.inf, 0.0

    def loss(self, value: float) -> None:
        """BadConfig for a loss that is not finite and positive."""
        if not (isinstance(value, (int, float)) and 0 < value < math.inf):
            do = "Pass the mean loss on data that are not trained on."
            raise BadConfig(need("a finite loss > 0", repr(value), do))
        self.lowest = min(self.lowest, value)
        rise = 100 * (value / self.lowest - 1)
        rate = self.strongest * (1 - 1 / (1 + self.alpha * rise))
        self.due += rate * (1 - self.due)

    def share(self, t: float, start: float | None, end: float) -> float:
        """What fell due so far; all at `end`."""
        begin = self.schedule.start if start is None else start
        if t >= end:
            return 1.0
        return self.due if t >= begin else 0.0

    def state(self) -> dict[str, Any]:
        """Lowest loss and share."""
        return {"lowest": self.lowest, "due": self.due}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self.lowest, self.due = float(state["lowest"]), float(state["due"])


def early_bird(distance: float = 0.1, window: int = 5) -> Schedule:
    """Fixed once the masks of `window` updates in a row each differ from the one before in less
    than `distance` of the units left; the authors' values, for one update an epoch. BadConfig.
    """
    if not (isinstance(window, int) and window >= 1 and 0 < distance <= 1):
        got = f"distance={distance!r}, window={window!r}"
        do = "The authors use 0.1 and 5."
        raise BadConfig(need("0 < distance <= 1 and an integer window >= 1 of early_bird", got, do))
    options = "" if (distance, window) == (0.1, 5) else f"({distance:g}, {window})"
    pace = partial(EarlyBird, distance=distance, window=window)
    return Schedule(f"early_bird{options}", _all, pace=pace)


def generalization_loss(strongest: float = 2 / 3, alpha: float = 2.0) -> Schedule:
    """Pruning driven by `Pruner.report_loss`; see GeneralizationLoss. BadConfig."""
    if not (0 < strongest <= 1 and 0 < alpha < math.inf):
        got = f"strongest={strongest!r}, alpha={alpha!r}"
        do = "2/3 and 2 are usual."
        raise BadConfig(need("0 < strongest <= 1 and alpha > 0 of generalization_loss", got, do))
    usual = (strongest, alpha) == (2 / 3, 2.0)
    options = "" if usual else f"({strongest:g}, {alpha:g})"
    pace = partial(GeneralizationLoss, strongest=strongest, alpha=alpha)
    return Schedule(f"generalization_loss{options}", _all, pace=pace)


def _all(t: float) -> float:
    return 1.0


register_schedule(early_bird())
register_schedule(generalization_loss())
