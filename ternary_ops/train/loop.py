# SPDX-License-Identifier: Apache-2.0
"""The training loop: one for classifiers, super-resolution and what else trains networks.

The caller brings batches and a loss, both functions of the step alone, so that a run that was cut
off goes on with the same bits. Everything beyond one loss and one optimizer is a Hook: calibration
at the freeze, averages of weights, the second network of a GAN, the next task of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, BadWeights, need
from ternary_ops.prune import Pruner
from ternary_ops.train.checkpoint import Checkpoint, Stateful
from ternary_ops.train.distributed import ALONE, Ranks

Batch = TypeVar("Batch")


class Hook:
    """Callbacks of a training loop; override those that are needed."""

    def parts(self) -> Mapping[str, Stateful]:
        """State for checkpoints beside the loop's own, under names of its own."""
        return {}

    def on_start(self, loop: TrainLoop) -> None:
        """Before the first step of this run, when `loop.done` steps were restored."""

    def before_step(self, loop: TrainLoop) -> None:
        """Before a step's batch is drawn."""

    def on_phase(self, loop: TrainLoop, phase: str) -> None:
        """After the step by which the Pruner came to another phase."""

    def after_step(self, loop: TrainLoop) -> None:
        """After the optimizer and the Pruner, before the step is counted and saved."""

    def on_end(self, loop: TrainLoop) -> None:
        """After the last step, while the model is still in training mode."""


class Narrowing(Protocol):
    """What removes filters from the network in mid-training: prune.SbF, or a choice of one's own.

    load_state_dict comes before those of network and optimizer, and removes what was removed.
    """

    def loss(self) -> Tensor:
        """Added to the loss of each step."""

    def step(self) -> None:
        """Called after each step of the optimizer."""

    @property
    def due(self) -> bool:
        """Whether finish_ is to be called now."""

    def finish_(self, optimizer: torch.optim.Optimizer) -> Any:
        """Remove filters from the network and the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""

    def load_state_dict(self, state: Any, optimizer: torch.optim.Optimizer, /) -> None:
        """The inverse."""


@dataclass
class _Narrowed:
    """A Narrowing as a part of checkpoints."""

    filters: Narrowing
    optimizer: torch.optim.Optimizer

    def state_dict(self) -> dict[str, Any]:
        return self.filters.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.filters.load_state_dict(state, self.optimizer)


@dataclass
class TrainLoop:
    """Trains `model` in place for `steps` optimizer steps.

    rate      learning-rate scheduler, advanced after every step
    pruner    its step() follows each of the optimizer
    filters   its loss counts, and it removes filters when it is due
    clip      largest norm of the gradient
    bfloat16  the loss is computed under autocast; weights and optimizer stay float32
    ranks     every process gets the mean gradient of all; the first one writes checkpoints
    hooks     called in this order at each of their points
    on_step   called once for every step done, those before a resumption included: progress bars
    done      steps done
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rate: torch.optim.lr_scheduler.LRScheduler
    steps: int
    pruner: Pruner | None = None
    filters: Narrowing | None = None
    clip: float = float("inf")
    bfloat16: bool = False
    checkpoint: Checkpoint | None = None
    ranks: Ranks = ALONE
    hooks: Sequence[Hook] = ()
    on_step: Callable[[], None] = lambda: None
    done: int = field(default=0, init=False)

    def run(
        self, batches: Callable[[int], Batch], loss: Callable[[nn.Module, Batch], Tensor]
    ) -> None:
        """Train to the end, from the checkpoint if there is one; the model ends in eval mode.

        batches(step): the batch of a step, from 0; this process' share of it. loss(model, batch): a
        scalar; `model` is wrapped where there are several processes. Raises BadWeights when the
        loss is not finite, before a weight has changed, BadConfig for hooks whose parts have the
        names of others, FormatError for a checkpoint of another run.
        """
        parts = self._parts()
        self.done = self.checkpoint.load(parts) if self.checkpoint is not None else 0
        for _ in range(self.done):
            self.on_step()
        self.model.train()
        model = self.ranks.wrapped(self.model)
        device = next(self.model.parameters()).device.type
        for hook in self.hooks:
            hook.on_start(self)
        while self.done < self.steps:
            for hook in self.hooks:
                hook.before_step(self)
            batch = batches(self.done)
            with torch.autocast(device, torch.bfloat16, enabled=self.bfloat16):
                value = loss(model, batch)
                if self.filters is not None:
                    value = value + self.filters.loss()
            self._update(value)
            if self.filters is not None and self.filters.due:
                self.filters.finish_(self.optimizer)
                model = self.ranks.wrapped(self.model)
            for hook in self.hooks:
                hook.after_step(self)
            self.rate.step()
            self.done += 1
            if self.checkpoint is not None and self.ranks.first:
                self.checkpoint.save(self.done, parts, now=self.done == self.steps)
            self.on_step()
        for hook in self.hooks:
            hook.on_end(self)
        self.model.eval()

    def _parts(self) -> dict[str, Stateful]:
        """Everything in a checkpoint, in the order in which it is loaded."""
        parts: dict[str, Stateful] = {}
        if self.filters is not None:
            parts["filters"] = _Narrowed(self.filters, self.optimizer)
        parts |= {"model": self.model, "optimizer": self.optimizer, "rate": self.rate}
        if self.pruner is not None:
            parts["pruner"] = self.pruner
        for hook in self.hooks:
            more = hook.parts()
            if not parts.keys().isdisjoint(more):
                got, do = ", ".join(sorted(parts.keys() & more)), "Rename the part."
                raise BadConfig(need(f"names of {type(hook).__name__}'s own", got, do))
            parts.update(more)
        return parts

    def _update(self, loss: Tensor) -> None:
        if not bool(loss.isfinite()):
            got = f"{loss.item()} at step {self.done + 1}"
            do = "Lower the learning rate, clip gradients, or look for NaN in data and weights."
            raise BadWeights(need("a finite loss", got, do))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip < float("inf"):
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if self.filters is not None:
            self.filters.step()
        if self.pruner is None:
            return
        before = self.pruner.phase
        self.pruner.step()
        if self.pruner.phase != before:
            for hook in self.hooks:
                hook.on_phase(self, self.pruner.phase)
