# SPDX-License-Identifier: Apache-2.0
"""When the masks of a Pruner change, and to what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ternary_ops.prune.criteria import Score
from ternary_ops.prune.growth_run import GrowthRun
from ternary_ops.prune.phases import Phases
from ternary_ops.prune.ranking import Group
from ternary_ops.prune.rounds import Collapse, in_rounds
from ternary_ops.prune.schedules import Schedule


class MaskUpdates:
    """Brings the masks of groups to the share of zeros that the schedule has at a step.

    pace: the schedule in this run. growing: the rule of growth in it.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        phases: Phases,
        schedule: Schedule,
        growing: GrowthRun,
        criterion: Score,
        criterion_name: str,
        *,
        nested: bool,
        normalize: bool,
    ) -> None:
        """nested, normalize: see Group.update."""
        self.groups, self.phases, self.schedule, self.growing = groups, phases, schedule, growing
        self.criterion, self.criterion_name = criterion, criterion_name
        self.nested, self.normalize = nested, normalize
        self.pace = schedule.fresh_pace()
        self._collapse = Collapse()

    def share(self, step: int) -> float:
        """The fraction of the zeros that is due at a step."""
        total, end = self.phases.total, self.phases.end
        return self.pace.share(step / total, self.phases.start, end / total)

    def due(self, step: int) -> bool:
        """True at steps that update the masks."""
        if self.schedule.cyclic and self.share(step) != self.share(step - 1):
            return True
        # Criteria that have read batches know all they will at the start.
        at_start = step == 1 and "batches" in self.criterion.reads
        return at_start or self.growing.updates(step)

    def gives_back(self, step: int) -> bool:
        """True where weights may come back at this update."""
        return self.growing.due(step) or self.schedule.cyclic

    def update(self, step: int) -> bool:
        """Change the masks; True where more is pruned than before."""
        before = sum(group.count for group in self.groups)
        self.pace.look(self._wanted_units)
        share = self.share(step)
        if self.schedule.cyclic and self.nested and share == 0:
            for group in self.groups:
                group.release()
            return False
        exchange = self.growing.at(step)
        random = exchange is not None and exchange.rule.random_start and not before
        rounds = in_rounds(self.groups, share, 1 if random else self.criterion.rounds)
        for number, shares in enumerate(rounds, 1):
            self._refresh()
            last = exchange if number == len(rounds) else None
            for group, due in zip(self.groups, shares, strict=True):
                group.update(
                    *(due, self.criterion),
                    nested=self.nested,
                    normalize=self.normalize,
                    exchange=last,
                )
        if share == 1.0:
            self._collapse.warn(self.groups, self.criterion_name)
        self.growing.gradients = {}
        return sum(group.count for group in self.groups) > before

    def resettle(self, groups: Sequence[Group], step: int) -> None:
        """Bring groups whose weights are smaller now to the share that is due."""
        for group in groups:
            group.resettle(self.share(step), self.criterion, self.nested, self.normalize)

    def _refresh(self) -> None:
        masks = {target.name: target.mask for group in self.groups for target in group.targets}
        for criterion in {self.criterion, self.growing.criterion}:
            criterion.refresh(masks)

    def _wanted_units(self) -> Tensor:
        """The units that would be pruned if the whole target were due now."""
        self._refresh()
        return torch.cat([group.chosen(self.criterion, self.normalize) for group in self.groups])
