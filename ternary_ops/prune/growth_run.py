# SPDX-License-Identifier: Apache-2.0
"""When a Pruner exchanges units by a rule of growth, and what the rule keeps between exchanges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ternary_ops.prune.criteria import Score
from ternary_ops.prune.cutter import Cutter
from ternary_ops.prune.exchange import Exchange
from ternary_ops.prune.growth import Growth
from ternary_ops.prune.phases import Phases
from ternary_ops.prune.ranking import Group
from ternary_ops.prune.targets import Target


class GrowthRun:
    """A rule of growth in the run of one Pruner; without growth nothing is ever due."""

    def __init__(
        self,
        growth: Growth | None,
        phases: Phases,
        groups: Sequence[Group],
        criterion: Score,
        own: Score | None,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        """criterion: the Pruner's. own: that by which units are dropped, where it is another."""
        self.growth, self.phases, self.groups, self.optimizer = growth, phases, groups, optimizer
        self.own = own
        self.criterion = criterion if self.own is None else self.own
        self.gradients: dict[str, Tensor] = {}  # of the step that exchanges units
        self.memory: dict[str, Tensor] = {}

    def due(self, step: int) -> bool:
        """True at steps that exchange units: none before something is pruned."""
        growth = self.growth
        if growth is None or growth.latent or step >= self.phases.freeze:
            return False
        if not any(group.count for group in self.groups):
            return False
        return growth.fraction_at(step / self.phases.total) > 0 and self.updates(step)

    def updates(self, step: int) -> bool:
        """True at steps that update masks: with growth, the first step too."""
        growth = self.growth
        if growth is None:
            return self.phases.updates(step)
        over = growth.latent and growth.fraction_at(step / self.phases.total) == 0
        return step == 1 or (self.phases.updates(step) and not over)

    def leaves_weights(self, step: int) -> bool:
        """True at steps whose update of the weights is left out."""
        return self.growth is not None and self.growth.skip_update and self.due(step)

    def dense(self, step: int) -> bool:
        """True at steps at which pruned weights need gradients."""
        if self.growth is None or step > self.phases.freeze:
            return False
        return self.growth.dense_gradients or self.due(step)

    def observe(self, targets: Sequence[Target], step: int) -> None:
        """Let the rule see gradients before an optimizer step, and leave the step out where it
        says so.
        """
        if self.growth is None:
            return
        if self.growth.observes and step < self.phases.freeze:
            found = {t.name: t.weight.grad for t in targets if t.weight.grad is not None}
            exchange = self._exchange(self.growth, step, found)
            for target in targets:
                if target.name in found:
                    memory = self.growth.observe(exchange.candidates(target))
                    self.memory |= {} if memory is None else {target.name: memory}
        if self.due(step):
            self.gradients = self.read(targets)
        if self.leaves_weights(step):
            self._leave_out_step()

    def read(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The gradients of all targets, also where they are pruned, once for each exchange."""
        keeps = self.growth is not None and self.growth.skip_update  # nobody writes to them then
        found = {t.name: t.weight.grad.detach() for t in targets if t.weight.grad is not None}
        return found if keeps else {name: value.clone() for name, value in found.items()}

    def _leave_out_step(self) -> None:
        """Optimizers leave parameters without a gradient alone, momentum and decay included."""
        for group in self.optimizer.param_groups if self.optimizer is not None else ():
            for parameter in group["params"]:
                parameter.grad = None

    def at(self, step: int) -> Exchange | None:
        """The exchange of this step; None without growth."""
        return None if self.growth is None else self._exchange(self.growth, step, self.gradients)

    def _exchange(self, rule: Growth, step: int, gradients: Mapping[str, Tensor]) -> Exchange:
        fraction = rule.fraction_at(step / self.phases.total) if self.due(step) else 0.0
        groups = self.optimizer.param_groups if self.optimizer is not None else ()
        rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
        return Exchange(rule, self.criterion, fraction, step, gradients, self.memory, rates)

    def resize(self, name: str, cut: Cutter) -> None:
        """The layer's weight has lost channels."""
        self.gradients.clear()
        if name in self.memory:
            self.memory[name] = cut(self.memory[name])

    def state(self) -> dict[str, Any]:
        """What the rule and its criterion have seen, by layer."""
        memory = {name: value.clone() for name, value in self.memory.items()}
        return {"memory": memory, "drop": {} if self.own is None else self.own.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of state()."""
        self.memory = {name: value.clone() for name, value in state.get("memory", {}).items()}
        self.gradients = {}
        if self.own is not None:
            self.own.restore(state.get("drop", {}))
