# SPDX-License-Identifier: Apache-2.0
"""Precision filter in float64: a Kalman filter that learns each sensor's precision (mean field).

Model of one step: x = A x + drive + q, q ~ N(0, Q); y_s = c_s x + e, e ~ N(0, 1 / g_s), g_s ~
Gamma(shape alpha, rate beta_s). Rollouts are the last axis everywhere.

The residual beta / (alpha R0), learned over nominal variance, is a reconstruction: the paper's
exact residual, prior and threshold (arXiv 2204.08035) were not available.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ternary_ops.errors import BadConfig, need

Real = NDArray[np.float64]

# Readings of this size or more count as missing: their squares would leave float32.
LARGEST_READING = 1e15


@dataclass(frozen=True)
class PrecisionRule:
    """Learning of the precisions: forgetting `rho`, and bounds as fractions of the nominal one.

    rho: what a step keeps of alpha and beta, in (0, 1]; floor: the least precision, which lets a
    repaired sensor come back; cap: the largest weight; sweeps: of one step, each of which estimates
    the state again with the weights of the one before. With two a sensor that fails at once does
    not move the estimate in that step.
    """

    rho: float = 0.95
    floor: float = 1e-4
    cap: float = 2.0
    sweeps: int = 2

    def __post_init__(self) -> None:
        """BadConfig where a value is out of range."""
        if not 0 < self.rho <= 1:
            raise BadConfig(need("rho in (0, 1]", self.rho, "0.95 forgets in about 20 steps."))
        if not 0 < self.floor <= 1 <= self.cap < np.inf:
            do = "Use floor=1e-4 and cap=2."
            raise BadConfig(need("0 < floor <= 1 <= cap", (self.floor, self.cap), do))
        if not 1 <= self.sweeps <= 100:
            raise BadConfig(need("1 to 100 sweeps", self.sweeps, "Use 2."))

    def packed(self) -> tuple[float, float, float, int]:
        """The fields in their order, for the native core."""
        return self.rho, self.floor, self.cap, self.sweeps

    @property
    def alpha(self) -> float:
        """Shape of a precision that has been learned for long: 1 / (2 (1 - rho)).

        Without forgetting there is none; 0.5 then, the shape after one reading.
        """
        return 0.5 if self.rho == 1 else 0.5 / (1 - self.rho)


@dataclass
class Belief:
    """Mean [D, B], covariance [D, D, B], rates beta [S, B] and shape alpha of the precisions."""

    mean: Real
    covariance: Real
    beta: Real
    alpha: float


def precision_update(
    y: ArrayLike,
    expected: ArrayLike,
    variance: ArrayLike,
    beta: ArrayLike,
    alpha: float,
    r0: ArrayLike,
    rule: PrecisionRule,
) -> tuple[Real, Real, Real]:
    """beta, weight and residual after readings y [S, B]; alpha: the shape before them.

    expected, variance [S, B]: of the readings under the posterior. A missing reading (not finite,
    or LARGEST_READING and above) teaches nothing: its weight stays.
    """
    y, beta = np.asarray(y, np.float64), np.asarray(beta, np.float64)
    nominal = np.asarray(r0, np.float64)[:, None]
    present = np.abs(y) < LARGEST_READING
    after = rule.rho * alpha + 0.5
    error = np.where(present, y, 0.0) - np.asarray(expected, np.float64)
    learned = rule.rho * beta + 0.5 * (error**2 + np.maximum(variance, 0.0))
    learned = np.minimum(learned, after * nominal / rule.floor)
    learned = np.where(present, learned, beta * (after / alpha))
    weight = np.minimum(after / learned, rule.cap / nominal)
    return learned, weight, learned / (after * nominal)


def precision_step(
    belief: Belief,
    y: ArrayLike,
    a: ArrayLike,
    q: ArrayLike,
    c: ArrayLike,
    r0: ArrayLike,
    rule: PrecisionRule,
    drive: ArrayLike | None = None,
    learn: bool = True,
) -> tuple[Belief, Real]:
    """Belief after readings y [S, B], and the residual [S, B]; drive [D, B], a [D, D], c [S, D].

    The first sweep estimates the state with the weights of the step before, each further one with
    those just learned. All readings at once, by the gain P C' / (C P C' + R).
    """
    a, q, c, r0, y = (np.asarray(v, np.float64) for v in (a, q, c, r0, y))
    mean = a @ belief.mean + (0.0 if drive is None else np.asarray(drive, np.float64))
    covariance = np.einsum("ij,jkb,lk->bil", a, belief.covariance, a) + q
    beta, alpha = belief.beta, belief.alpha
    for _ in range(rule.sweeps if learn else 1):
        noise = np.maximum(beta / alpha, (r0 / rule.cap)[:, None])
        m, p = _absorb(mean, covariance, y, c, noise)
        if learn:
            seen = np.einsum("sd,bde,se->sb", c, p, c)
            beta, _, _ = precision_update(y, c @ m, seen, belief.beta, belief.alpha, r0, rule)
            alpha = rule.rho * belief.alpha + 0.5
    return Belief(m, p.transpose(1, 2, 0), beta, alpha), beta / (alpha * r0[:, None])


def _absorb(mean: Real, covariance: Real, y: Real, c: Real, noise: Real) -> tuple[Real, Real]:
    """Mean [D, B] and covariance [B, D, D] after readings y [S, B] of variances `noise` [S, B]."""
    present = np.abs(y) < LARGEST_READING
    rows = np.where(present.T[:, :, None], c, 0.0)  # [B, S, D]
    seen = covariance @ rows.transpose(0, 2, 1)
    total = rows @ seen + np.eye(len(c)) * noise.T[:, None, :]
    gain = np.linalg.solve(total, seen.transpose(0, 2, 1)).transpose(0, 2, 1)
    error = np.where(present, y, 0.0) - np.where(present, c @ mean, 0.0)
    return mean + np.einsum("bds,sb->db", gain, error), covariance - gain @ seen.transpose(0, 2, 1)


def sensor_noise(seed: int, rollouts: ArrayLike, step: int, sensors: int) -> Real:
    """Standard normals [S, B] keyed on (seed; rollout, step, sensor).

    Philox4x32-10 of the counter (rollout, step, sensor // 4), then Box and Muller's transform of
    its first two words for sensors 0 and 1 of the four, of the last two for 2 and 3; 24 bits each.
    """
    lanes = np.asarray(rollouts, np.uint64)
    out = np.empty((-(-sensors // 4) * 4, len(lanes)))
    for group in range(len(out) // 4):
        words = _philox(seed, lanes, step, group)
        for k in (0, 2):
            radius = np.sqrt(-2 * np.log(((words[k] >> np.uint64(8)) + 1.0) * 2.0**-24))
            angle = 2 * np.pi * (words[k + 1] >> np.uint64(8)) * 2.0**-24
            out[4 * group + k] = radius * np.cos(angle)
            out[4 * group + k + 1] = radius * np.sin(angle)
    return out[:sensors]


def _philox(
    seed: int, lanes: NDArray[np.uint64], step: int, group: int
) -> list[NDArray[np.uint64]]:
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x = [lanes & low, lanes >> shift, np.full_like(lanes, step), np.full_like(lanes, group)]
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        x = [
            (b >> shift) ^ x[1] ^ np.uint64(key[0]),
            b & low,
            (a >> shift) ^ x[3] ^ np.uint64(key[1]),
            a & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x
