# SPDX-License-Identifier: Apache-2.0
"""Exchange: one update of the masks by a rule of growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, need
from ternary_ops.prune.criteria import Score
from ternary_ops.prune.growth import Candidates, Growth
from ternary_ops.prune.targets import Target


@dataclass(frozen=True)
class Exchange:
    """A rule at one update: its fraction now, the step, and what it goes by, by layer.

    criterion: by which units are dropped. rates: learning rates, by the id of the weight.
    """

    rule: Growth
    criterion: Score
    fraction: float
    step: int
    gradients: Mapping[str, Tensor]
    memory: Mapping[str, Tensor]
    rates: Mapping[int, float]

    def candidates(self, target: Target) -> Candidates:
        """The rule's view of one target."""
        weight = target.weight.detach()
        gradient = self.gradients.get(target.name)
        gradient = torch.zeros_like(weight) if gradient is None else gradient
        memory = self.memory.get(target.name)
        return Candidates(
            *(target.name, weight, gradient, target.pattern, self.step),
            mask=target.mask,
            rate=self.rates.get(id(target.weight), 0.0),
            memory=None if memory is None else memory.to(weight.device),
            seed=self.rule.seed,
        )

    def start_scores(self, target: Target, criterion: Score) -> Tensor:
        """Scores of the first mask, by the Pruner's criterion unless it is random: [units]."""
        if self.rule.random_start and not self.rule.latent:
            return self.candidates(target).uniform()
        return target.scores(criterion)

    def drop_scores(self, target: Target) -> Tensor:
        """Scores of which the lowest are dropped: [units]."""
        seen = self.candidates(target)
        scores = self.rule.drop_scores(seen)
        if scores is None:
            return target.scores(self.criterion)
        return self._checked(scores, seen, "drop_scores")

    def drop_count(self, parts: Sequence[Tensor], left: int) -> int:
        """How many of the `left` units are dropped."""
        return self.rule.drop_count(torch.cat(list(parts)), self.fraction, left)

    def scores(self, target: Target) -> Tensor:
        """Scores of which the highest grow: [units]."""
        seen = self.candidates(target)
        return self._checked(self.rule.scores(seen), seen, "scores")

    def shares(self, targets: Sequence[Target]) -> Sequence[float] | None:
        """See Growth.shares; None for a single target."""
        if len(targets) == 1:
            return None
        return self.rule.shares([self.candidates(target) for target in targets])

    def _checked(self, scores: Tensor, seen: Candidates, method: str) -> Tensor:
        if scores.shape != (seen.units,):
            what = f"one score per unit from {type(self.rule).__name__}.{method}, [{seen.units}]"
            do = "Sum over units: nn.patterns.unit_sums."
            raise BadConfig(need(what, list(scores.shape), do))
        return scores
