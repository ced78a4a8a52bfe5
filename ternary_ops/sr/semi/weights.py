# SPDX-License-Identifier: Apache-2.0
"""Weights of the terms that SemiSR adds to a host's own, and how they grow."""

from __future__ import annotations

from dataclasses import dataclass

from ternary_ops.errors import BadConfig, need
from ternary_ops.sr.semi.host import check_weights


@dataclass(frozen=True)
class SemiWeights:
    """Weights of the terms beside the host's own; 0 switches one off. G generator, F degrader.

    degradation      |F(y) - x| of pairs (x, y), by which F learns
    cycle_low        |F(G(u)) - u| of small images u; F stays as it is
    cycle_high       the host's distances of G(F(v)) from v, large images: pseudo-pairs (F(v), v); F
                     stays as it is. Grows by exp(-5 (1 - t)^2) over the share `ramp` of the steps
    adversarial      G(u) for the host's discriminator, which sees v among real images; None: the
                     host's own weight
    adversarial_low  F(v) for a discriminator of small images; None: as `adversarial`
    identity         |G(block mean of v) - v|, in steps without adversarial terms alone
    consistency      |G(turned u) - turned G'(u)|, G' an average of G (mean teacher)
    decay            of that average
    levels           F(v) is rounded to multiples of 1/levels before G sees it, so that nothing can
                     be hidden in it: 255 for images of 8 bits; 0: not
    """

    degradation: float = 1.0
    cycle_low: float = 0.5
    cycle_high: float = 1.0
    adversarial: float | None = None
    adversarial_low: float | None = None
    identity: float = 0.1
    consistency: float = 0.0
    ramp: float = 0.2
    decay: float = 0.999
    levels: int = 0

    def __post_init__(self) -> None:
        check_weights({name: value for name, value in vars(self).items() if value is not None})
        if self.ramp > 1 or self.decay >= 1:
            got = f"{self.ramp} and {self.decay}"
            raise BadConfig(need("ramp in 0..1 and decay in 0..1", got, "Correct them."))

    @classmethod
    def off(cls) -> SemiWeights:
        """The host's own training."""
        return cls(0, 0, 0, 0, 0, 0, 0)

    @classmethod
    def pseudo_pairs(cls) -> SemiWeights:
        """F learned from pairs, and pairs (F(v), v), nothing else."""
        return cls(1, 0, 1, 0, 0, 0, 0)
