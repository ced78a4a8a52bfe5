# SPDX-License-Identifier: Apache-2.0
"""FaultTolerantFilter: state estimation that learns how far each sensor can be trusted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ternary_ops import _native
from ternary_ops.errors import BadConfig, UnsupportedShape, check_type, need
from ternary_ops.monitor.discretize import discretize
from ternary_ops.monitor.threshold import residual_threshold
from ternary_ops.reference.precision import PrecisionRule

Real = NDArray[np.float64]
FAULT, MISSING = 1, 2
_STATES = 8


class Estimate(NamedTuple):
    """Result of one step, in arrays of its own: later steps do not change it.

    mean [D]: the state; weights [S]: the precision of each sensor; residual [S]: its learned over
    its nominal variance, 1 when healthy; flags [S]: uint8 bits, FAULT (1) where the residual is
    above the threshold, MISSING (2) where there was no reading.
    """

    mean: Real
    weights: Real
    residual: Real
    flags: NDArray[np.uint8]


class FaultTolerantFilter:
    """Kalman filter whose sensor precisions are learned, so that a failing sensor loses its weight.

    x+ = A x + B u + q, q ~ N(0, Q); y = C x + e. Each sensor's precision has a Gamma posterior that
    forgets (Baioumy et al., arXiv 2109.05870, 2204.08035). No threshold decides on weights: it only
    sets flags. The residual beta / (alpha R) is a reconstruction of the paper's. Needs no torch.

    A missing reading is NaN: the estimate is then predicted, or made from the other sensors, and
    the flag says so. Pass NaN for what lies outside a sensor's range too: a single absurd number
    moves the estimate before it is distrusted. Two equal sensors tell apart sudden faults; slow
    ones need three.

    >>> f = FaultTolerantFilter(A=[[1.0]], B=[[0.1]], Q=[[0.01]], C=[[1.0]] * 3, R=[0.1] * 3)
    >>> for _ in range(50):
    ...     estimate = f.step([2.0, 2.0, 9.0], u=[0.0])  # the third sensor is off by 7
    >>> bool(abs(estimate.mean[0] - 2) < 0.05), estimate.flags.tolist()
    (True, [0, 0, 1])
    """

    def __init__(
        self,
        A: ArrayLike,  # noqa: N803  the letters of the equations
        B: ArrayLike | None,  # noqa: N803
        Q: ArrayLike,  # noqa: N803
        C: ArrayLike,  # noqa: N803
        R: ArrayLike,  # noqa: N803
        *,
        mean: ArrayLike | None = None,
        covariance: ArrayLike | None = None,
        rule: PrecisionRule | None = None,
        quantile: float = 0.999,
        warm_up: int = 0,
    ) -> None:
        """Set up the model of one step, or of continuous time for `step(..., dt=...)`.

        A [D, D], B [D, inputs] or None, Q [D, D], C [S, D], D <= 8; R [S]: each sensor's nominal
        variance, with what a controller lags behind: too small a one locks a good sensor out.
        mean, covariance: of the state before the first step (0; 100 times the identity). rule:
        how precisions are learned. quantile: of a healthy residual, at which FAULT is set. warm_up:
        steps at the start that learn no precision.

        Raises BadConfig, UnsupportedShape.
        """
        a, c = matrix("A", A), matrix("C", C)
        d = len(a)
        self._a, self._q = square("A", a, d), covariance_of("Q", Q, d)
        self._b = np.zeros((d, 0)) if B is None else matrix("B", B)
        if c.shape[1] != d or len(self._b) != d:
            got = f"C {list(c.shape)}, B {list(self._b.shape)}"
            raise UnsupportedShape(need(f"C [S, {d}] and B [{d}, inputs]", got, "Check A."))
        if not 1 <= d <= _STATES or not len(c):
            got = f"D = {d}, S = {len(c)}"
            raise UnsupportedShape(need(f"1 to {_STATES} states and a sensor", got, "Check A, C."))
        self._r = variances("R", R, len(c))
        check_type("warm_up", warm_up, int, "Use the steps until the estimate has settled.")
        self.rule = PrecisionRule() if rule is None else rule
        self.threshold = residual_threshold(self.rule.rho, quantile)
        start = np.zeros(d) if mean is None else vector("mean", mean, d)
        spread = (
            100.0 * np.eye(d) if covariance is None else covariance_of("covariance", covariance, d)
        )
        self._native = _native.core().PrecisionFilter(
            c, self._r, start, spread, self.rule.packed(), self.rule.alpha, self.threshold
        )
        self._learn_from, self._steps, self._dt = warm_up, 0, 0.0
        self._native.set_model(self._a, self._b, self._q)

    def step(self, y: ArrayLike, u: ArrayLike | None = None, dt: float | None = None) -> Estimate:
        """Predict by the input u of the time before, then take the readings y [S].

        dt: the time since the step before, in which case A, B and Q are those of continuous time.
        Raises UnsupportedShape for another number of readings or inputs, BadConfig for dt <= 0.
        """
        if dt is not None or self._dt:
            self._advance(dt)
        self._steps += 1
        return Estimate(*self._native.step(y, u, self._steps > self._learn_from))

    def covariance(self) -> Real:
        """Covariance [D, D] of the state after the last step."""
        found: Real = self._native.covariance()
        return found

    def _advance(self, dt: float | None) -> None:
        if dt is None or not 0 < dt < np.inf:
            do = "Pass the seconds since the last step, at every step; drop readings out of order."
            raise BadConfig(need("dt > 0", dt, do))
        if self._steps and not self._dt:
            raise BadConfig(need("steps without dt, as before", dt, "Pass dt at every step."))
        if dt != self._dt:
            self._dt = dt
            self._native.set_model(*discretize(self._a, self._b, self._q, dt))


def numbers(name: str, value: ArrayLike) -> Real:
    """A finite float64 array."""
    try:
        array = np.ascontiguousarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise BadConfig(need(f"{name} of numbers", repr(value)[:60], "Pass an array.")) from error
    if not np.isfinite(array).all():
        raise BadConfig(need(f"finite {name}", "NaN or infinity", "Check how it was computed."))
    return array


def matrix(name: str, value: ArrayLike) -> Real:
    """A finite matrix."""
    array = numbers(name, value)
    if array.ndim != 2:
        do = "Write a scalar system with [[a]]."
        raise UnsupportedShape(need(f"{name} of two axes", list(array.shape), do))
    return array


def square(name: str, array: Real, d: int) -> Real:
    """A matrix [d, d]."""
    if array.shape != (d, d):
        raise UnsupportedShape(need(f"{name} [{d}, {d}]", list(array.shape), "Check A."))
    return array


def covariance_of(name: str, value: ArrayLike, d: int) -> Real:
    """A symmetric positive semidefinite matrix [d, d]."""
    array = square(name, matrix(name, value), d)
    low = np.linalg.eigvalsh(array).min() if d else 0.0
    if not np.allclose(array, array.T) or low < -1e-9 * max(1.0, np.abs(array).max(initial=0)):
        do = "Pass a covariance."
        raise BadConfig(need(f"symmetric positive semidefinite {name}", array.tolist(), do))
    return array


def vector(name: str, value: ArrayLike, n: int) -> Real:
    """A finite vector [n]."""
    array = numbers(name, value)
    if array.shape != (n,):
        raise UnsupportedShape(need(f"{name} [{n}]", list(array.shape), "One number each."))
    return array


def variances(name: str, value: ArrayLike, n: int) -> Real:
    """Positive variances [n], or the diagonal of a diagonal matrix."""
    array = numbers(name, value)
    if array.ndim == 2 and array.shape[0] == array.shape[1]:
        if np.count_nonzero(array - np.diag(np.diag(array))):
            do = "Precisions are learned sensor by sensor: whiten the readings first."
            raise BadConfig(need(f"diagonal {name}", "correlated sensors", do))
        array = np.diag(array).copy()
    array = vector(name, array, n)
    if not (array > 0).all():
        do = "A variance of 0 trusts a sensor without end."
        raise BadConfig(need(f"positive variances {name}", array.tolist(), do))
    return array
