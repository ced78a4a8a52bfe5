# SPDX-License-Identifier: Apache-2.0
"""RolloutFilter: the precision filter of many rollouts of one system at once, in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ternary_ops import _native
from ternary_ops.errors import UnsupportedShape, need
from ternary_ops.reference.precision import PrecisionRule

Single = NDArray[np.float32]


def pack_covariance(covariance: ArrayLike, rollouts: int) -> Single:
    """The lower triangle [D (D + 1) / 2, B] of a covariance [D, D]."""
    full = np.asarray(covariance, np.float32)
    rows, columns = np.tril_indices(len(full))
    return np.repeat(full[rows, columns][:, None], rollouts, axis=1)


class RolloutFilter:
    """State of a filter over B rollouts: mean [D, B], covariance [D (D + 1) / 2, B], beta [S, B].

    Results of a rollout depend on neither its place nor the number of others, nor on threads or the
    instruction set.
    """

    def __init__(
        self,
        a: ArrayLike,
        q: ArrayLike,
        c: ArrayLike,
        r0: ArrayLike,
        rollouts: int,
        *,
        mean: ArrayLike | None = None,
        covariance: ArrayLike | None = None,
        rule: PrecisionRule | None = None,
        learn: bool = True,
    ) -> None:
        """Model of one step as in FaultTolerantFilter; learn=False keeps the nominal precisions."""
        self._a, self._q, self._c, self._r0 = (
            np.ascontiguousarray(v, np.float32) for v in (a, q, c, r0)
        )
        d, s = len(self._a), len(self._c)
        self.rule, self.learn = PrecisionRule() if rule is None else rule, learn
        self.alpha = self.rule.alpha
        start = np.zeros(d) if mean is None else np.asarray(mean)
        self.mean = np.repeat(start.astype(np.float32)[:, None], rollouts, axis=1)
        spread = 100.0 * np.eye(d) if covariance is None else covariance
        self.covariance = pack_covariance(spread, rollouts)
        nominal = np.float32(self.alpha) * self._r0
        self.beta = np.repeat(nominal[:, None], rollouts, axis=1)
        self._sizes = rollouts, d, s

    def run(self, y: ArrayLike, drive: ArrayLike | None = None) -> tuple[Single, Single]:
        """Means [T, D, B] and residuals [T, S, B] for readings y [T, S, B], drive [T, D, B]."""
        rollouts, d, s = self._sizes
        readings = np.ascontiguousarray(y, np.float32)
        steps = len(readings) if readings.ndim else 0
        pushed = None if drive is None else np.ascontiguousarray(drive, np.float32)
        if readings.shape != (steps, s, rollouts) or (
            pushed is not None and pushed.shape != (steps, d, rollouts)
        ):
            got = f"{readings.shape}, {None if pushed is None else pushed.shape}"
            what = f"readings [T, {s}, {rollouts}] and a drive [T, {d}, {rollouts}]"
            raise UnsupportedShape(need(what, got, "Put the rollouts last."))
        means = np.empty((steps, d, rollouts), np.float32)
        residuals = np.empty((steps, s, rollouts), np.float32)
        arrays = (self._a, self._q, self._c, self._r0, self.mean, self.covariance, self.beta)
        _native.core().precision_filter(
            readings.ctypes.data,
            0 if pushed is None else pushed.ctypes.data,
            *(v.ctypes.data for v in (*arrays, means, residuals)),
            (rollouts, steps, d, s),
            self.rule.packed(),
            self.alpha,
            self.learn,
        )
        for _ in range(steps if self.learn else 0):
            self.alpha = self.rule.rho * self.alpha + 0.5
        return means, residuals

    def weights(self) -> Single:
        """Precision [S, B] that the next step gives to each sensor."""
        limit = np.float32(self.rule.cap) / self._r0
        weights: Single = np.minimum(np.float32(self.alpha) / self.beta, limit[:, None])
        return weights


def sensor_noise(seed: int, rollout: int, rollouts: int, step: int, sensors: int) -> Single:
    """Standard normals [S, B] keyed on (seed; rollout, step, sensor), B of them from `rollout` on.

    The same bits on every instruction set, and whatever else is drawn in the same call.
    """
    drawn: Single = _native.core().sensor_noise(seed, rollout, step, sensors, rollouts)
    return drawn
