# SPDX-License-Identifier: Apache-2.0
"""Rules of growth.

    set       uniformly at random; SET, Mocanu et al. 2018 (arXiv 1707.04780)
    rigl      the largest |gradient| of this step, whose weight update is left out; RigL, Evci et
              al. 2020 (arXiv 1911.11134), as in the authors' code
    snfs      the largest |running mean of gradients|; SNFS, Dettmers & Zettlemoyer 2019 (arXiv
              1907.04840). Between layers, counted as one total (scope "global"), what grows is
              shared out by the mean of it over the weights that are left: a reconstruction
    deepr     weights keep their signs; what crosses zero is dropped, others grow at random; DEEP-R,
              Bellec et al. 2018 (arXiv 1711.05136). A reconstruction, on units
    static    nothing: the first mask stays
    dnw       no exchange: the largest |latent weight| of every step, while all learn; Discovering
              Neural Wirings, Wortsman et al. 2019 (arXiv 1906.00586). A reconstruction
    random    dropped and grown at random: a control
    shuffled  RigL with the gradients of each layer in another order: a control, which should do no
              better than SET

Rules count within each layer under scope "layer" or "erk"; "global" and "time" move units between
layers too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, need
from ternary_ops.nn.patterns import unit_scores, unit_sums
from ternary_ops.prune.growth import Candidates, Growth, register_growth

_DECAY = 0.9


class SET(Growth):
    """Sparse Evolutionary Training: pruned units grow uniformly at random, as in any Growth."""


@dataclass(frozen=True)
class RigL(SET):
    """The Rigged Lottery: pruned units grow where the gradient is largest."""

    skip_update: bool = True

    def scores(self, candidates: Candidates) -> Tensor:
        """Sum of |g| over each unit."""
        return unit_scores(candidates.gradient, candidates.pattern)


class SNFS(Growth):
    """Sparse Networks From Scratch: pruned units grow where the mean gradient is largest."""

    observes: ClassVar[bool] = True
    dense_gradients: ClassVar[bool] = True

    def observe(self, candidates: Candidates) -> Tensor:
        """The running mean (0.9) of the gradient, pruned weights included."""
        new = candidates.gradient.float()
        old = new if candidates.memory is None else candidates.memory
        return old + (1 - _DECAY) * (new - old)

    def scores(self, candidates: Candidates) -> Tensor:
        """Sum of the mean's absolute values over each unit."""
        return unit_scores(_mean_gradient(candidates), candidates.pattern)

    def shares(self, candidates: Sequence[Candidates]) -> Sequence[float]:
        """In proportion to the mean of |mean gradient| over the units that are left."""
        means = [float(self.scores(seen)[seen.kept].mean()) for seen in candidates]
        return [mean / max(sum(means), 1e-30) for mean in means]


def _mean_gradient(candidates: Candidates) -> Tensor:
    return candidates.gradient if candidates.memory is None else candidates.memory


@dataclass(frozen=True)
class DeepR(SET):
    """Deep Rewiring: each weight keeps the sign it began with; a unit whose weights are, summed in
    the direction of their signs, below zero is dropped.

    At every step the gradient of the weights that are left gets l1 * sign, and Gaussian noise of
    the deviation sqrt(2 temperature / rate), so that SGD moves them by sqrt(2 rate temperature).
    fraction and decay do not count: what crosses zero goes, until `until`.
    """

    l1: float = 1e-4
    temperature: float = 0.0

    observes: ClassVar[bool] = True
    usual_every: ClassVar[int | None] = 1

    def __post_init__(self, grow: str | None) -> None:
        """Raises BadConfig for values out of range."""
        super().__post_init__(grow)
        if not (0 <= self.l1 < math.inf and 0 <= self.temperature < math.inf):
            got = f"l1={self.l1}, temperature={self.temperature}"
            raise BadConfig(need("l1 >= 0 and temperature >= 0 of DEEP-R", got, "Use 1e-4, 0."))

    def observe(self, candidates: Candidates) -> Tensor:
        """The signs of the first step; adds penalty and noise to the gradient."""
        signs = candidates.memory
        if signs is None:
            signs = torch.where(candidates.weight < 0, -1, 1).to(torch.int8)
        gradient = candidates.gradient
        gradient.add_(signs.to(gradient), alpha=self.l1)
        if self.temperature and candidates.rate > 0:
            deviation = math.sqrt(2 * self.temperature / candidates.rate)
            noise = torch.randn(gradient.shape, generator=candidates.generator("noise"))
            gradient.add_(noise.to(gradient), alpha=deviation)
        return signs

    def drop_scores(self, candidates: Candidates) -> Tensor:
        """Sum of weights times signs over each unit; negative: crossed."""
        signs = candidates.memory
        values = candidates.weight if signs is None else candidates.weight * signs
        return unit_sums(values.float(), candidates.pattern)

    def scores(self, candidates: Candidates) -> Tensor:
        """Random numbers, lower ones for units that have just crossed zero."""
        return candidates.uniform() - (self.drop_scores(candidates) < 0).float()

    def drop_count(self, scores: Tensor, fraction: float, left: int) -> int:
        """All that crossed zero; pruned units are 0 and have not."""
        return int((scores < 0).sum())


class Static(SET):
    """A fixed mask, random unless random_start=False."""

    def fraction_at(self, progress: float) -> float:
        """Nothing is exchanged."""
        return 0.0


@dataclass(frozen=True)
class DNW(Growth):
    """Discovering Neural Wirings: forward with the largest weights, gradients for all."""

    until: float = 1.0

    latent: ClassVar[bool] = True
    dense_gradients: ClassVar[bool] = True
    usual_every: ClassVar[int | None] = 1

    def scores(self, candidates: Candidates) -> Tensor:
        """Magnitude, which ranks all units anew at each update; nothing is exchanged."""
        return unit_scores(candidates.weight, candidates.pattern)


class RandomExchange(SET):
    """A control: what is dropped is random too."""

    def drop_scores(self, candidates: Candidates) -> Tensor:
        """Random numbers, others than those that grow."""
        return candidates.uniform("drop")


class ShuffledRigL(RigL):
    """A control: RigL by the scores of other units of the same layer."""

    def scores(self, candidates: Candidates) -> Tensor:
        """RigL's scores in a random order."""
        scores = super().scores(candidates)
        order = torch.randperm(candidates.units, generator=candidates.generator("shuffle"))
        return scores[order.to(scores.device)]


register_growth("set", SET)
register_growth("rigl", RigL)
register_growth("snfs", SNFS)
register_growth("deepr", DeepR)
register_growth("static", Static)
register_growth("dnw", DNW)
register_growth("random", RandomExchange)
register_growth("shuffled", ShuffledRigL)
