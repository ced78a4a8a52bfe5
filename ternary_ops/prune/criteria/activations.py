# SPDX-License-Identifier: Apache-2.0
"""Criteria that read activations: statistics of each layer's input channels, no gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.prune.criteria.probe import pairs, probing
from ternary_ops.prune.criteria.score import Score, magnitude, mean_over_ranks
from ternary_ops.prune.cutter import Cutter


class InputScore(Score):
    """|w| times a statistic of the input channel that it reads; magnitude before any input.

    The statistic is the mean over the Pruner's batches, if it was given some, in the network's
    mode; from then on, and without, the running mean (0.9) over forward passes in training mode.
    """

    def __init__(self) -> None:
        """With no input seen."""
        super().__init__()
        self._fresh: dict[str, Tensor] = {}
        self._names: list[str] = []
        self._hooks: list[Any] = []

    def statistic(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Of an input, float32, over all its axes but the channels: [I]."""
        return x.square().mean(dims)

    def weigh(self, weight: Tensor, known: Tensor) -> Tensor:
        """Scores of a weight, from the statistic of what each of its elements reads."""
        return magnitude(weight) * known.sqrt()

    def watch(self, name: str, layers: Sequence[nn.Module]) -> None:
        """Observe the inputs of these layers during training."""
        self._names.append(name)

        def look(layer: nn.Module, given: tuple[Any, ...]) -> None:
            if layer.training:
                self._fresh[name] = self._look(given[0])

        for layer in layers:
            self._hooks.append(layer.register_forward_pre_hook(look))

    def prepare(self, model: nn.Module, batches: Any, loss: Any) -> None:
        """Run the batches through a copy."""
        try:
            self._run(model, batches)
        except BaseException:
            for hook in self._hooks:
                hook.remove()
            raise

    def _run(self, model: nn.Module, batches: Any) -> None:
        seen: dict[str, list[Tensor]] = {name: [] for name in self._names}

        def look(name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
            seen[name].append(self._look(given[0]))

        with probing(model) as trial, torch.no_grad():
            for name in self._names:
                trial.get_submodule(name).register_forward_pre_hook(partial(look, name))
            for x, _ in pairs(trial, batches, labels=False):
                trial(x)
        self._fresh.clear()  # the copy has the hooks of the network too
        for name, found in seen.items():
            if found:
                self.memory[name] = mean_over_ranks(torch.stack(found).mean(0))

    def resize(self, name: str, cut: Cutter) -> None:
        """Inputs seen since the last step are forgotten: they had more channels."""
        self._fresh.pop(name, None)
        super().resize(name, cut)

    def observe(self, name: str, weight: Tensor) -> None:
        """Average the statistic of each input channel, over the ranks too."""
        if name in self._fresh:
            self.average(name, mean_over_ranks(self._fresh.pop(name)))

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """Rows of a grouped convolution read the channels of their group."""
        known = self.known(name, weight)
        if known is None:
            return magnitude(weight)
        return self.weigh(weight, along_inputs(known, weight, groups))

    def _look(self, x: Tensor) -> Tensor:
        x = x.detach().float()
        channels = 1 if x.ndim == 4 else x.ndim - 1
        return self.statistic(x, tuple(d for d in range(x.ndim) if d != channels))


def along_inputs(values: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Numbers of the input channels [I] laid along the weight's: [O, I / groups, 1, ...]."""
    rows = values.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return rows.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))


class Wanda(InputScore):
    """|w| times the norm of its input channel."""


class APoZ(InputScore):
    """|w| times the share of non-zero numbers in its input channel."""

    def statistic(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """1 - APoZ: the average percentage of zeros."""
        return (x != 0).float().mean(dims)

    def weigh(self, weight: Tensor, known: Tensor) -> Tensor:
        """The product."""
        return magnitude(weight) * known


class Variance(InputScore):
    """w^2 times the variance of its input channel within a batch: the error that is left of the
    layer's output if w goes and the mean of what it added goes into the bias.
    """

    def statistic(self, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The variance, over all numbers of a channel."""
        return x.var(dims, correction=0)

    def weigh(self, weight: Tensor, known: Tensor) -> Tensor:
        """The product."""
        return magnitude(weight).square() * known
