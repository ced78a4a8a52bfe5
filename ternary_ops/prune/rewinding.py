# SPDX-License-Identifier: Apache-2.0
"""Rewinding: after each round of pruning, what is left goes back to the values of an early step.

Lottery tickets, Frankle & Carbin 2019 (arXiv 1803.03635), with rewinding to a step after the first,
Frankle et al. 2020 (arXiv 1912.05671). All parameters and the buffers of BatchNorm and other plain
layers go back, and the optimizer's state is emptied; the learning rate is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.prune.targets import is_quantized


class Rewinding:
    """The values of step `step`, and the step at which they came back last."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Keeps the values of now where `step` is 0."""
        self.model, self.optimizer, self.step = model, optimizer, step
        self.values: dict[str, Tensor] = {}
        self.rounds = 0
        self.last = step  # when the present round began
        self.take(0)

    def take(self, step: int) -> None:
        """Keep the values if this is the step."""
        if step == self.step:
            self.values = {name: value.detach().clone() for name, value in self._tensors()}

    def go_back(self, step: int) -> None:
        """Restore the values, in place, and empty the optimizer's state."""
        for name, value in self._tensors():
            value.copy_(self.values[name])
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                self.optimizer.state.pop(parameter, None)
        self.rounds += 1
        self.last = step

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        values = {name: value.clone() for name, value in self.values.items()}
        return {"values": values, "rounds": self.rounds, "last": self.last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        self.values = {name: value.clone() for name, value in state["values"].items()}
        self.rounds, self.last = int(state["rounds"]), int(state["last"])

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        for name, module in self.model.named_modules():
            if not is_quantized(module):
                for key, value in module.named_buffers(recurse=False):
                    yield f"{name}.{key}" if name else key, value
