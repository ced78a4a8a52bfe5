# SPDX-License-Identifier: Apache-2.0
"""Gates: weights as functions of trainable parameters, which learn the zeros with the loss.

    l0        w z, z a hard-concrete gate per unit: s = sigmoid((log u - log(1 - u) + log a) / 2/3),
              u uniform, z = clip(1.2 s - 0.1, 0, 1); its price is the probability that z > 0. In
              eval mode s = sigmoid(log a). Louizos et al. 2018 (arXiv 1712.01312)
    str       sign(w) max(|w| - sigmoid(s), 0), one s per layer; its price is the weight decay of s,
              s^2 / 2. Kusupati et al. 2020 (arXiv 2002.03231)
    variational   w + sigma e, e normal: log alpha = log sigma^2 - log w^2 learns how much noise a
              weight bears; the price is the divergence from the log-uniform prior, and weights with
              log alpha > 3 are off. Twice the parameters; wants a trained start. Molchanov et al.
              2017 (arXiv 1701.05369)
    movement  w where sigmoid(S) > 0.1, S a score per unit with a straight-through gradient: it
              falls by lr g w; the price is sigmoid(S). Soft movement pruning, Sanh et al. 2020
              (arXiv 2005.07683)

All four are reconstructions from the published formulas. Those of whole units (quads, filters)
treat a unit as one: its root mean square stands for |w|, the sums of its w^2 and sigma^2 for these.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.nn.patterns import Pattern, to_mask, unit_sums
from ternary_ops.prune.registry import Registry

_BETA, _LOW, _HIGH = 2 / 3, -0.1, 1.1  # of hard-concrete gates
_OPEN = 2.5  # log a at which a gate is 1 in eval mode
_FIRST_THRESHOLD = -10.0  # s
_FIRST_LOG_ALPHA, _DROP = -8.0, 3.0
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695  # of the divergence's approximation
_TAU = 0.1
_TINY = 1e-30


class Gate(nn.Module, ABC):
    """Makes the weight that a layer computes with of the one that is trained.

    In eval mode that is without noise, and exactly 0.0 in units that are off.
    """

    def __init__(self, weight: Tensor, pattern: Pattern) -> None:
        """All on, or nearly, for a weight [O, I, ...] and the units of the pattern."""
        super().__init__()
        self.pattern = pattern
        self.sizes: Tensor = unit_sums(torch.ones_like(weight), pattern)  # weights in each unit

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, of its shape."""

    @abstractmethod
    def price(self, weight: Tensor) -> Tensor:
        """What the units cost, [units]."""

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """One value per unit, laid over the weights of the unit."""
        return to_mask(values, weight.shape, self.pattern)

    def _new(self, weight: Tensor, value: float) -> nn.Parameter:
        return nn.Parameter(torch.full_like(self.sizes, value, device=weight.device))


class HardConcrete(Gate):
    """L0 regularization."""

    def __init__(self, weight: Tensor, pattern: Pattern) -> None:
        super().__init__(weight, pattern)
        self.log_alpha = self._new(weight, _OPEN)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight times its gates."""
        logits: Tensor = self.log_alpha
        if self.training:
            u = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = (u.log() - (1 - u).log() + logits) / _BETA
        gates = (logits.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        return weight * self.spread(gates, weight)

    def price(self, weight: Tensor) -> Tensor:
        """Probabilities that gates are not 0."""
        return (self.log_alpha - _BETA * math.log(-_LOW / _HIGH)).sigmoid()


class SoftThreshold(Gate):
    """Soft threshold reparametrization (STR)."""

    def __init__(self, weight: Tensor, pattern: Pattern) -> None:
        super().__init__(weight, pattern)
        self.threshold = nn.Parameter(torch.full_like(weight.flatten()[:1], _FIRST_THRESHOLD))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, shrunk."""
        squares = unit_sums(weight.square(), self.pattern) / self.sizes.to(weight)
        size = squares.clamp_min(_TINY).sqrt()
        return weight * self.spread(F.relu(1 - self.threshold.sigmoid() / size), weight)

    def price(self, weight: Tensor) -> Tensor:
        """Weight decay of the threshold."""
        return (self.threshold.square() / 2).expand(len(self.sizes))


class Variational(Gate):
    """Sparse variational dropout."""

    def __init__(self, weight: Tensor, pattern: Pattern) -> None:
        super().__init__(weight, pattern)
        squares = weight.detach().square().clamp_min(_TINY)
        self.log_sigma2 = nn.Parameter(squares.log() + _FIRST_LOG_ALPHA)

    def log_alpha(self, weight: Tensor) -> Tensor:
        """log sigma^2 - log w^2 of each unit."""
        noise, squares = self.log_sigma2.exp(), weight.square()
        sums = (unit_sums(part, self.pattern).clamp_min(_TINY) for part in (noise, squares))
        first, second = sums
        return first.log() - second.log()

    def forward(self, weight: Tensor) -> Tensor:
        """A sample of the weight, in eval mode its mean without the units that are noise."""
        if self.training:
            return weight + (self.log_sigma2 / 2).exp() * torch.randn_like(weight)
        return weight * self.spread(self.log_alpha(weight) <= _DROP, weight)

    def price(self, weight: Tensor) -> Tensor:
        """Divergences from the prior, of a unit as often as it has weights."""
        x = self.log_alpha(weight)
        gain = _K1 * (_K2 + _K3 * x).sigmoid() - F.softplus(-x) / 2 - _K1
        return -gain * self.sizes.to(weight)


class SoftMovement(Gate):
    """Soft movement pruning."""

    def __init__(self, weight: Tensor, pattern: Pattern) -> None:
        super().__init__(weight, pattern)
        self.score = self._new(weight, 0.0)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight where its unit's score is above the threshold."""
        on = (self.score.sigmoid() > _TAU).to(weight.dtype)
        return weight * self.spread(on + (self.score - self.score.detach()), weight)

    def price(self, weight: Tensor) -> Tensor:
        """sigmoid(S)."""
        return self.score.sigmoid()


GATES: Registry[type[Gate]] = Registry("a gate", "add yours with prune.register_gate(name, gate)")


def register_gate(name: str, gate: type[Gate]) -> None:
    """Make `name` a value of LearnedSparsity(gate=); BadConfig for a taken name or no subclass."""
    if not (isinstance(gate, type) and issubclass(gate, Gate)):
        raise BadConfig(need("a subclass of prune.Gate", repr(gate), "Pass one."))
    GATES.add(name, gate)


register_gate("l0", HardConcrete)
register_gate("str", SoftThreshold)
register_gate("variational", Variational)
register_gate("movement", SoftMovement)
