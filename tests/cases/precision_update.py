# SPDX-License-Identifier: Apache-2.0
"""Cases of precision_update: sensors and rollouts of any number, some readings missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cases import OpCase
from ternary_ops.reference import precision

Single = NDArray[np.float32]


@dataclass(frozen=True)
class UpdateShape:
    """S sensors of B rollouts."""

    sensors: int
    rollouts: int
    alpha: float = 10.0

    @property
    def products(self) -> float:
        """Multiply-adds of convolutions: none."""
        return 0.0

    def operands(self, seed: int = 0) -> list[Single]:
        """y, expected, variance, beta, r0."""
        rng = np.random.default_rng(seed)
        size = (self.sensors, self.rollouts)
        y = rng.normal(size=size) * 10.0 ** rng.integers(-1, 3, size)
        y[rng.random(size) < 0.1] = np.nan
        r0 = rng.uniform(0.1, 2, self.sensors)
        beta = self.alpha * r0[:, None] * rng.uniform(0.3, 5, size)
        drawn = (y, rng.normal(size=size), rng.uniform(0, 1, size), beta, r0)
        return [v.astype(np.float32) for v in drawn]

    def __str__(self) -> str:
        return f"{self.sensors}x{self.rollouts}"


CASE = OpCase(
    op="precision_update",
    reference=precision.precision_update,
    integer_exact=False,
    shapes=(UpdateShape(1, 1), UpdateShape(2, 37, 0.5), UpdateShape(33, 17), UpdateShape(8, 1200)),
    bench=(("8 sensors", UpdateShape(8, 4096)),),
)
