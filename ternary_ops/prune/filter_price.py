# SPDX-License-Identifier: Apache-2.0
"""What scores of filters cost while they are learned, and the controller that meets a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ternary_ops.prune.choice import round_up
from ternary_ops.prune.filter_costs import Cost
from ternary_ops.prune.filters import FilterGroup

# The controller: log strength = integral + proportional part of the gap to its line.
_INTEGRAL, _PROPORTIONAL = 100.0, 20.0
_EVERY = 10  # steps between looks at what a channel costs


class Price:
    """strength * the sum of scores beyond a group's least width, each times the share of the
    network's cost that a channel of its group has at the present widths, from step `begin` on.

    With a target the strength is controlled, so that the expected cost, that of the summed scores,
    follows a straight line from the whole cost at `begin` to the target at step `end`.
    """

    def __init__(
        self,
        groups: Sequence[FilterGroup],
        cost: Cost,
        target: float | None,
        strength: float,
        begin: float,
        end: float,
        round_to: int,
    ) -> None:
        """cost and target in one unit."""
        self.cost, self.target, self.strength = cost, target, strength
        self.whole = cost({})
        self._begin, self._end, self._step = begin, end, 0
        self._least = {group.name: round_up(group, 1, round_to) for group in groups}
        self._integral = self._gap = 0.0
        self.shares = self._marginal({group.name: float(group.width) for group in groups})

    @property
    def value(self) -> float:
        """The strength at this step: 0 while the network warms up."""
        if self._step < self._begin:
            return 0.0
        if self.target is None:
            return self.strength
        return self.strength * math.exp(self._integral + _PROPORTIONAL * self._gap)

    def step(self, done: int, expected: Mapping[str, float]) -> None:
        """After `done` steps, with these sums of scores."""
        self._step = done
        if done % _EVERY == 0:  # to the last step: what is left of other groups changes until then
            self.shares = self._marginal(expected)
        if self.target is not None and self._begin <= done < self._end:
            way = (done - self._begin) / (self._end - self._begin)
            line = 1 + way * (self.target / self.whole - 1)
            self._gap = self.cost(expected) / self.whole - line
            self._integral += _INTEGRAL * self._gap / (self._end - self._begin)

    def state_dict(self) -> dict[str, Any]:
        """Everything that steps change."""
        return {
            "step": self._step,
            "integral": self._integral,
            "gap": self._gap,
            "shares": self.shares,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self._step, self.shares = int(state["step"]), list(state["shares"])
        self._integral, self._gap = float(state["integral"]), float(state["gap"])

    def of(self, parts: Sequence[Tensor]) -> Tensor:
        """The price of scores, group by group. The least width of a group costs nothing: what
        cannot go would only be made small, and then come back whole.
        """
        pairs = zip(self.shares, parts, self._least.values(), strict=True)
        costs = [share * (part.sum() - least).clamp_min(0) for share, part, least in pairs]
        return self.value * torch.stack(costs).sum()

    def _marginal(self, expected: Mapping[str, float]) -> list[float]:
        """The share of a channel of each group, at least that of one beyond its least width."""
        shares = []
        for name, least in self._least.items():
            width = max(expected[name], least + 1.0)
            more, fewer = ({**expected, name: at} for at in (width, width - 1))
            shares.append((self.cost(more) - self.cost(fewer)) / self.whole)
        return shares
