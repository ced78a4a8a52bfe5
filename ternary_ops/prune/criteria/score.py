# SPDX-License-Identifier: Apache-2.0
"""Score, the base of pruning criteria."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ternary_ops.nn.patterns import Pattern
from ternary_ops.prune.cutter import Cutter

_DECAY = 0.9


class Score(ABC):
    """Scores the weights of several layers, each known by its name; the lowest go.

    What a score keeps in `memory` (by layer) is part of the Pruner's state.

    reads: what the Pruner must be given: "gradients" (of training: its optimizer), "batches",
        "loss" (with batches); "weight" and "inputs" need nothing.
    rounds: mask updates that a whole run is made of at least: scores are asked for anew after each,
        at densities that fall exponentially.
    """

    reads: tuple[str, ...] = ("weight",)
    reads_gradients: ClassVar[bool] = False  # the older spelling of "gradients" in reads
    rounds: ClassVar[int] = 1

    def __init__(self) -> None:
        """With nothing observed."""
        self.memory: dict[str, Tensor] = {}

    def watch(self, name: str, layers: Sequence[nn.Module]) -> None:
        """Called once for each weight, with the layers that hold it, before training."""
        return None

    def watch_units(self, name: str, pattern: Pattern) -> None:
        """Called once for each weight after `watch`, with the pattern whose units are ranked by the
        sum of their weights' scores.
        """
        return None

    def prepare(self, model: nn.Module, batches: Any, loss: Any) -> None:
        """Called once after these, where the Pruner was given batches: read them before training.

        model: the network, out of wrappers, which must stay as it is: `criteria.probing` lends a
        copy. batches: pairs of input and label, or inputs. loss: a function of output and label, or
        None.
        """
        return None

    def refresh(self, masks: Mapping[str, Tensor]) -> None:
        """Called before each update of the masks, with those of now (bool, of the weights' shape),
        which the weights may not show yet.
        """
        return None

    def observe(self, name: str, weight: Tensor) -> None:
        """Called for each weight before every optimizer step, with its gradient in place."""
        return None

    @abstractmethod
    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """One score per weight of `weight` [O, I, ...], of its shape; groups: of a convolution."""

    def state(self) -> dict[str, Tensor]:
        """Everything observed, by layer."""
        return {name: value.clone() for name, value in self.memory.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of state()."""
        self.memory = {name: value.clone() for name, value in state.items()}

    def resize(self, name: str, cut: Cutter) -> None:
        """The layer's weight has lost channels: what is known of them goes too, of each weight or
        of each input channel.
        """
        value = self.memory.get(name)
        if value is not None:
            self.memory[name] = cut.inputs(value) if value.ndim == 1 else cut(value)

    def known(self, name: str, weight: Tensor) -> Tensor | None:
        """The layer's memory on the weight's device; None before anything was observed."""
        value = self.memory.get(name)
        return None if value is None else value.to(weight.device)

    def average(self, name: str, value: Tensor) -> None:
        """Let the running mean in memory take up `value`."""
        before = self.memory.get(name, value)
        self.memory[name] = before + (1 - _DECAY) * (value - before)


def magnitude(weight: Tensor) -> Tensor:
    """|w|, float32 (float64 stays)."""
    return wide(weight.detach().abs())


def wide(values: Tensor) -> Tensor:
    """The values in float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over the ranks of a distributed run, equal on all; else the values."""
    if dist.is_available() and dist.is_initialized():
        values = values.contiguous().clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
