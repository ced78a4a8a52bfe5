# SPDX-License-Identifier: Apache-2.0
"""Growth: which pruned units come back in dynamic sparse training, and how many at a time.

    set    uniformly at random; SET, Mocanu et al. 2018 (arXiv 1707.04780)
    rigl   the largest |gradient| of this step; RigL, Evci et al. 2020 (arXiv 1911.11134)

At each update of the masks a fraction of the units that are left is dropped, the lowest by the
Pruner's criterion, and as many pruned units grow: the count stays exact. A unit that is dropped and
grows in one update keeps its value; others come back as zeros with zero optimizer state. The
fraction falls to 0 along half a cosine. Both methods are reconstructions from the published rules;
unlike the authors' RigL, the optimizer's step of an update is applied. They count within each layer
(`scope="layer"`, or "erk" for densities by Erdos-Renyi kernels); "global" moves units between
layers too. `register_growth` adds a rule: a subclass of Growth with one method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, need
from ternary_ops.nn.patterns import Pattern, unit_scores
from ternary_ops.prune.registry import Registry


@dataclass(frozen=True)
class Candidates:
    """One weight at an update of the masks.

    name: of its layer. weight, gradient: [O, I, ...], the gradient also where the weight is pruned;
    zeros if the layer did not run. step: optimizer steps done.
    """

    name: str
    weight: Tensor
    gradient: Tensor
    pattern: Pattern
    step: int

    @property
    def units(self) -> int:
        """Number of units of the weight."""
        return self.pattern.units(self.weight.shape)

    def uniform(self) -> Tensor:
        """Numbers in 0..1, float32 [units], that depend on name and step alone."""
        generator = torch.Generator().manual_seed(crc32(f"{self.name} {self.step}".encode()))
        return torch.rand(self.units, generator=generator).to(self.weight.device)


@dataclass(frozen=True)
class Growth(ABC):
    """A rule of dynamic sparse training; a subclass says by `scores` which pruned units come back.

    fraction      fraction of the surviving units dropped and grown at the first update
    until         fraction of total_steps after which masks are fixed
    random_start  draw the first mask at random, as in training from scratch; False: by the
                  Pruner's criterion
    """

    fraction: float = 0.3
    until: float = 0.75
    random_start: bool = True

    def __post_init__(self) -> None:
        """Raises BadConfig unless 0 < fraction < 1 and 0 < until <= 1."""
        if not (0 < self.fraction < 1 and 0 < self.until <= 1):
            got = f"fraction={self.fraction}, until={self.until}"
            what = "growth with 0 < fraction < 1 and 0 < until <= 1"
            raise BadConfig(need(what, got, "0.3 and 0.75 suit most networks."))

    def fraction_at(self, progress: float) -> float:
        """The fraction at `progress` (0..1) of the steps: cosine decay."""
        if progress >= self.until:
            return 0.0
        return self.fraction / 2 * (1 + math.cos(math.pi * progress / self.until))

    @abstractmethod
    def scores(self, candidates: Candidates) -> Tensor:
        """One score per unit, [units]; of the units that are pruned the highest grow."""


class SET(Growth):
    """Sparse Evolutionary Training: pruned units grow uniformly at random."""

    def scores(self, candidates: Candidates) -> Tensor:
        """Random numbers."""
        return candidates.uniform()


class RigL(SET):
    """The Rigged Lottery: pruned units grow where the gradient is largest."""

    def scores(self, candidates: Candidates) -> Tensor:
        """Sum of |g| over each unit."""
        return unit_scores(candidates.gradient, candidates.pattern)


GROWTHS: Registry[type[Growth]] = Registry(
    "a growth rule", "pass an instance of prune.Growth, or add yours with prune.register_growth"
)


def register_growth(name: str, growth: type[Growth]) -> None:
    """Make `name` a value of Pruner(growth=); BadConfig for a taken name or no subclass."""
    if not (isinstance(growth, type) and issubclass(growth, Growth)):
        raise BadConfig(need("a subclass of prune.Growth", repr(growth), "Pass one."))
    GROWTHS.add(name, growth)


def get_growth(growth: str | Growth | None) -> Growth | None:
    """The rule of that name with its defaults; a Growth, or None, passes through."""
    return growth if growth is None or isinstance(growth, Growth) else GROWTHS.find(growth)()


register_growth("set", SET)
register_growth("rigl", RigL)
