# SPDX-License-Identifier: Apache-2.0
"""Which weights matter least: one score per weight, summed over the units of the pattern.

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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need

_DECAY = 0.9

CRITERIA = ("magnitude", "movement", "taylor", "wanda", "random")


class Criterion:
    """Scores of the weights of several layers, and what is remembered for them (float32)."""

    def __init__(self, name: str, optimizer: torch.optim.Optimizer | None) -> None:
        """Raises BadConfig for an unknown name, or one that needs gradients without optimizer."""
        if name not in CRITERIA:
            raise BadConfig(
                need(f"a criterion is one of {', '.join(CRITERIA)}", repr(name), "Pick one.")
            )
        self.name = name
        self.from_gradients = name in ("movement", "taylor")
        if self.from_gradients and optimizer is None:
            what = f"criterion {name!r} reads gradients before each optimizer step"
            raise BadConfig(need(what, "optimizer=None", "Pass optimizer= to the Pruner."))
        self.memory: dict[str, Tensor] = {}
        self._fresh: dict[str, Tensor] = {}

    def watch(self, name: str, layers: Sequence[nn.Module]) -> None:
        """For wanda: begin to look at what enters these layers while they train."""
        if self.name == "wanda":
            for layer in layers:
                layer.register_forward_pre_hook(self._looker(name))

    def _looker(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(layer: nn.Module, given: tuple[Any, ...]) -> None:
            if layer.training:
                x = given[0].detach().float()
                dims = tuple(d for d in range(x.ndim) if d != (1 if x.ndim == 4 else x.ndim - 1))
                self._fresh[name] = x.square().mean(dims)

        return look

    def observe(self, name: str, weight: Tensor) -> None:
        """Remember what this step shows about one weight, before the optimizer changes it."""
        if self.from_gradients:
            if weight.grad is None:
                return
            value = (weight.grad * weight.detach()).float()
            if self.name == "movement":
                self.memory[name] = self.memory.get(name, torch.zeros_like(value)) - value
            else:
                self._average(name, value.square())
        elif name in self._fresh:
            seen = self._fresh.pop(name)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(seen)
                seen /= dist.get_world_size()
            self._average(name, seen)

    def _average(self, name: str, value: Tensor) -> None:
        before = self.memory.get(name, value)
        self.memory[name] = before + (1 - _DECAY) * (value - before)

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """One score per weight of `weight` [O, I, ...], float32 (magnitude: float64 stays).

        Before anything was observed, movement, taylor and wanda rank by magnitude.
        """
        if self.name == "random":
            generator = torch.Generator().manual_seed(crc32(name.encode()))
            return torch.rand(weight.shape, generator=generator).to(weight.device)
        magnitude = weight.detach().abs()
        magnitude = magnitude if magnitude.dtype == torch.float64 else magnitude.float()
        known = self.memory.get(name)
        if known is None:
            return magnitude
        known = known.to(weight.device)
        if self.name != "wanda":
            return known
        return magnitude * _per_input(known.sqrt(), weight, groups)

    def state(self) -> dict[str, Tensor]:
        """What was remembered, by layer."""
        return {name: value.clone() for name, value in self.memory.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of state()."""
        self.memory = {name: value.clone() for name, value in state.items()}


def _per_input(norms: Tensor, weight: Tensor, groups: int) -> Tensor:
    """[groups * I] shaped to broadcast over a weight [O, I, ...] whose rows lie in groups."""
    rows = norms.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return rows.reshape(weight.shape[0], -1, *[1] * (weight.ndim - 2))
