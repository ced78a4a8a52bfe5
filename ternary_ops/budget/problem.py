# SPDX-License-Identifier: Apache-2.0
"""What a search chooses for: the network, what may vary, and where measurements are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ternary_ops.budget.search_state import SearchState, digest
from ternary_ops.budget.units import Kinds, Unit
from ternary_ops.budget.width_features import Widths
from ternary_ops.graph.wrappers import copy_of
from ternary_ops.progress import Progress
from ternary_ops.prune.choice import channels_of
from ternary_ops.prune.filters import FilterGroup, FilterGroups
from ternary_ops.prune.removal import remove_
from ternary_ops.quantize.plan_rows import Plan

_LEVELS = 8  # widths of a group that are tried, the whole included
_ROUND_TO = 4  # channels of a packet in the engine


@dataclass(frozen=True)
class Problem:
    """What a search chooses for.

    model: float, on the CPU. inputs: samples. planned: its plan, what no choice is made for
    included. replan: makes the plan of a narrower copy. free: layers that are chosen for, each with
    the kinds of weights that it may have, and zeros with the shares of empty units. groups: of
    channels that may go, with a score for each channel.
    """

    model: nn.Module
    example: Tensor
    inputs: list[Tensor]
    planned: Plan
    replan: Callable[[nn.Module], Plan]
    free: Kinds
    zeros: Sequence[float]
    groups: FilterGroups
    scores: Mapping[str, Tensor]
    unit: Unit
    limit: float
    state: SearchState
    progress: Progress | None = None

    def kept(self, widths: Widths) -> dict[str, Tensor]:
        """The channels that stay at these widths, of groups that get narrower."""
        less = [group for group in self.groups if widths.get(group.name, group.width) < group.width]
        return channels_of(less, self.scores, widths)

    @property
    def ranking(self) -> str:
        """A name of the scores."""
        return digest(self.scores.values())

    def narrowed(self, widths: Widths) -> nn.Module:
        """A float copy of these widths."""
        network, kept = copy_of(self.model).eval(), self.kept(widths)
        if kept:
            remove_(network, self.example, kept, round_to=1)
        return network


def levels_of(group: FilterGroup) -> list[int]:
    """Widths of a group that are tried: whole packets of channels, as many in each part."""
    unit = math.lcm(group.parts, _ROUND_TO)
    step = unit * max(1, math.ceil(group.width / _LEVELS / unit))
    return [group.width, *range((math.ceil(group.width / step) - 1) * step, 0, -step)]
