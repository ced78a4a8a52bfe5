# SPDX-License-Identifier: Apache-2.0
"""Cases of precision_filter: 1 to 8 states, sensors that fail, readings that are missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cases import OpCase
from ternary_ops.reference import precision

Single = NDArray[np.float32]


@dataclass(frozen=True)
class FilterShape:
    """T steps of B rollouts of a stable random system of D states and S sensors."""

    states: int
    sensors: int
    steps: int
    rollouts: int
    rule: precision.PrecisionRule = precision.PrecisionRule(rho=0.9)
    learn: bool = True

    @property
    def products(self) -> float:
        """Multiply-adds of convolutions: none."""
        return 0.0

    def operands(self, seed: int = 0) -> list[Single]:
        """y, drive, a, q, c, r0, mean, covariance, beta."""
        d, s, t, b = self.states, self.sensors, self.steps, self.rollouts
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(d, d))
        a *= 0.95 / np.abs(np.linalg.eigvals(a)).max()
        root = rng.normal(size=(d, d)) * 0.3
        c, r0 = rng.normal(size=(s, d)), rng.uniform(0.05, 0.3, s)
        x = rng.normal(size=(t, d, b)).cumsum(axis=0) * 0.1
        y = np.einsum("sd,tdb->tsb", c, x) + rng.normal(size=(t, s, b)) * 0.3
        y[t // 2 :, 0] += 8.0
        y[rng.random(y.shape) < 0.03] = np.nan
        y[0, -1, 0], y[-1, -1, 0] = np.inf, -1e30
        spread = np.eye(d)[np.tril_indices(d)]
        covariance = np.repeat(spread[:, None], b, axis=1)
        beta = np.repeat((self.rule.alpha * r0)[:, None], b, axis=1)
        drive = rng.normal(size=(t, d, b)) * 0.1
        drawn = (y, drive, a, root @ root.T + 0.01 * np.eye(d), c, r0, rng.normal(size=(d, b)))
        return [v.astype(np.float32) for v in (*drawn, covariance, beta)]

    def __str__(self) -> str:
        return f"{self.states}.{self.sensors}.{self.steps}x{self.rollouts}"


def by_steps(shape: FilterShape, operands: list[Single]) -> tuple[NDArray[np.float64], ...]:
    """mean, covariance, beta, means, residuals by the float64 reference."""
    y, drive, a, q, c, r0, mean, covariance, beta = (v.astype(np.float64) for v in operands)
    d = shape.states
    full = np.zeros((d, d, shape.rollouts))
    rows, columns = np.tril_indices(d)
    full[rows, columns] = full[columns, rows] = covariance
    belief = precision.Belief(mean, full, beta, shape.rule.alpha)
    means, residuals = [], []
    for t in range(shape.steps):
        belief, residual = precision.precision_step(
            belief, y[t], a, q, c, r0, shape.rule, drive[t], shape.learn
        )
        means.append(belief.mean)
        residuals.append(residual)
    packed = belief.covariance[rows, columns]
    return belief.mean, packed, belief.beta, np.array(means), np.array(residuals)


_ONCE = precision.PrecisionRule(rho=1.0, sweeps=1)

CASE = OpCase(
    op="precision_filter",
    reference=by_steps,
    integer_exact=False,
    shapes=(
        FilterShape(1, 1, 1, 1),
        FilterShape(1, 3, 40, 33, _ONCE),
        FilterShape(2, 5, 12, 130),
        FilterShape(4, 9, 10, 17, learn=False),
        FilterShape(8, 11, 6, 20),
    ),
    bench=(("8 sensors", FilterShape(1, 8, 1000, 4096, precision.PrecisionRule(sweeps=1))),),
)
