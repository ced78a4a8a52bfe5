# SPDX-License-Identifier: Apache-2.0
"""Pruning criteria: one score per weight, summed over the units of the pattern; the lowest go.

    magnitude  |w|; gradients and inputs do not matter
    movement   -sum over steps of g * w: weights that training drives towards zero go first; Sanh et
               al. 2020 (arXiv 2005.07683)
    taylor     running mean (0.9) of (g * w)^2, the first-order change of the loss; Molchanov et al.
               2019 (arXiv 1906.10771)
    wanda      |w| * |x|_2, x the input channel over the images seen so far (running mean 0.9 of
               squares); Sun et al. 2023 (arXiv 2306.11695), who rank within a row: scope or
               normalize decide that here
    random     uniform, fixed at the start: the baseline

g is the gradient that the optimizer is about to apply. In a DistributedDataParallel run gradients
are equal on all ranks, and wanda averages what it has seen over them, so that masks agree.
`register_criterion` adds one: a function of the weight, or a subclass of Score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.prune.cutter import Cutter
from ternary_ops.prune.registry import Registry

_DECAY = 0.9


class Score(ABC):
    """Scores the weights of several layers, each known by its name.

    What `observe` keeps in `memory` (float32, by layer) is part of the Pruner's state.
    """

    reads_gradients: ClassVar[bool] = False  # then the Pruner needs the optimizer

    def __init__(self) -> None:
        """With nothing observed."""
        self.memory: dict[str, Tensor] = {}

    def watch(self, name: str, layers: Sequence[nn.Module]) -> None:
        """Called once for each weight, with the layers that hold it, before training."""
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


CRITERIA: Registry[Callable[[], Score]] = Registry(
    "a criterion", "add yours with prune.register_criterion(name, score)"
)


def register_criterion(name: str, score: type[Score] | Callable[[Tensor], Tensor]) -> None:
    """Make `name` a value of Pruner(criterion=).

    score: a function, weight [O, I, ...] -> scores of its shape, or a subclass of Score without
    arguments. Raises BadConfig for a taken name and for what cannot be called.
    """
    if not callable(score):
        do = "Pass a function of the weight or a subclass of prune.Score."
        raise BadConfig(need("a criterion that can be called", repr(score), do))
    if isinstance(score, type) and issubclass(score, Score):
        CRITERIA.add(name, score)
    else:
        CRITERIA.add(name, partial(_OfWeight, cast("Callable[[Tensor], Tensor]", score)))


def get_criterion(name: str, optimizer: torch.optim.Optimizer | None) -> Score:
    """A fresh Score; BadConfig for an unknown name, or gradients to read without an optimizer."""
    score = CRITERIA.find(name)()
    if score.reads_gradients and optimizer is None:
        what = f"an optimizer for criterion {name!r}, which reads gradients"
        raise BadConfig(need(what, "optimizer=None", "Pass optimizer= to the Pruner."))
    return score


class _OfWeight(Score):
    """The criterion that a function of the weight alone makes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        return self.function(weight.detach())


def magnitude(weight: Tensor) -> Tensor:
    """|w|, float32 (float64 stays)."""
    size = weight.detach().abs()
    return size if size.dtype == torch.float64 else size.float()


class Movement(Score):
    """-sum of g * w; magnitude before the first step."""

    reads_gradients = True

    def observe(self, name: str, weight: Tensor) -> None:
        """Subtract g * w of this step."""
        if weight.grad is not None:
            value = (weight.grad * weight.detach()).float()
            self.memory[name] = self.memory.get(name, torch.zeros_like(value)) - value

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """The sums."""
        known = self.known(name, weight)
        return magnitude(weight) if known is None else known


class Taylor(Movement):
    """Running mean of (g * w)^2; magnitude before the first step."""

    def observe(self, name: str, weight: Tensor) -> None:
        """Average (g * w)^2 of this step."""
        if weight.grad is not None:
            self.average(name, (weight.grad * weight.detach()).float().square())


class Wanda(Score):
    """|w| times the norm of its input channel; magnitude before the first step."""

    def __init__(self) -> None:
        """With no input seen."""
        super().__init__()
        self._fresh: dict[str, Tensor] = {}

    def watch(self, name: str, layers: Sequence[nn.Module]) -> None:
        """Observe the inputs of these layers during training."""

        def look(layer: nn.Module, given: tuple[Any, ...]) -> None:
            if layer.training:
                x = given[0].detach().float()
                dims = tuple(d for d in range(x.ndim) if d != (1 if x.ndim == 4 else x.ndim - 1))
                self._fresh[name] = x.square().mean(dims)

        for layer in layers:
            layer.register_forward_pre_hook(look)

    def resize(self, name: str, cut: Cutter) -> None:
        """Inputs seen since the last step are forgotten: they had more channels."""
        self._fresh.pop(name, None)
        super().resize(name, cut)

    def observe(self, name: str, weight: Tensor) -> None:
        """Average the mean square of each input channel, over the ranks too."""
        if name in self._fresh:
            seen = self._fresh.pop(name)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(seen)
                seen /= dist.get_world_size()
            self.average(name, seen)

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """|w| * |x|; rows of a grouped convolution read the channels of their group."""
        known = self.known(name, weight)
        if known is None:
            return magnitude(weight)
        norms = known.sqrt().view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
        return magnitude(weight) * norms.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))


class Random(Score):
    """Uniform, from a generator seeded with the layer's name."""

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """Random numbers, equal at every call."""
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        return torch.rand(weight.shape, generator=generator).to(weight.device)


register_criterion("magnitude", magnitude)
register_criterion("movement", Movement)
register_criterion("taylor", Taylor)
register_criterion("wanda", Wanda)
register_criterion("random", Random)
