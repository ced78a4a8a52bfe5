# SPDX-License-Identifier: Apache-2.0
"""Methods of estimation that a simulation compares; all see the same model and readings.

Each is made for a plant's model and a number of rollouts; `step` takes readings [S, B] and a drive
[D, B] and says what it believes.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, need
from ternary_ops.monitor.plants import Model
from ternary_ops.monitor.rollouts import RolloutFilter
from ternary_ops.monitor.threshold import residual_threshold
from ternary_ops.reference.precision import Belief, PrecisionRule, precision_step

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Opinion:
    """Of one step: mean [D, B], variance of the first state [B], residual and weights [S, B],
    flags [S, B].
    """

    mean: Real
    variance: Real
    residual: Real
    weights: Real
    flags: NDArray[np.bool_]


class Bayesian:
    """C3: precisions by variational Bayes, flags by the beta residual, as FaultTolerantFilter.

    rule: how they are learned; quantile: of the threshold.
    """

    def __init__(
        self,
        model: Model,
        rollouts: int,
        rule: PrecisionRule | None = None,
        quantile: float = 0.999,
        learn: bool = True,
    ) -> None:
        """Start at the model's belief."""
        self._filter = RolloutFilter(
            model.a,
            model.q,
            model.c,
            model.r,
            rollouts,
            mean=model.mean,
            covariance=model.covariance,
            rule=rule,
            learn=learn,
        )
        self._threshold = residual_threshold(self._filter.rule.rho, quantile)

    def step(self, y: Real, drive: Real) -> Opinion:
        """Readings [S, B] after the drive [D, B]."""
        f = self._filter
        means, residuals = f.run(y[None], drive[None])
        residual = residuals[0].astype(np.float64)
        variance = f.covariance[0].astype(np.float64)
        weights = f.weights().astype(np.float64)
        return Opinion(
            means[0].astype(np.float64), variance, residual, weights, residual > self._threshold
        )


class Fixed(Bayesian):
    """C0: a Kalman filter with nominal precisions; no fault tolerance, no flags."""

    def __init__(self, model: Model, rollouts: int) -> None:
        """Start at the model's belief."""
        super().__init__(model, rollouts, learn=False)


class _Weighted:
    """A Kalman filter in float64 whose sensors have variances [S, B] of this moment."""

    _RULE = PrecisionRule(rho=0.5)  # alpha = 1: beta is the variance

    def __init__(self, model: Model, rollouts: int) -> None:
        self._model = model
        covariance = np.repeat(model.covariance[:, :, None], rollouts, axis=2)
        mean = np.repeat(model.mean[:, None], rollouts, axis=1)
        variance = np.repeat(model.r[:, None], rollouts, axis=1)
        self._belief = Belief(mean, covariance, variance, 1.0)

    def _predicted(self, drive: Real) -> tuple[Real, Real]:
        """Expected readings and their variances [S, B] before the readings come."""
        m = self._model
        covariance = np.einsum("ij,jkb,lk->bil", m.a, self._belief.covariance, m.a) + m.q
        expected = m.c @ (m.a @ self._belief.mean + drive)
        return expected, np.einsum("sd,bde,se->sb", m.c, covariance, m.c)

    def _absorb(self, y: Real, drive: Real) -> None:
        m = self._model
        self._belief, _ = precision_step(
            self._belief, y, m.a, m.q, m.c, m.r, self._RULE, drive, learn=False
        )

    def _opinion(self, residual: Real, flags: NDArray[np.bool_]) -> Opinion:
        b = self._belief
        return Opinion(b.mean, b.covariance[0, 0], residual, 1 / b.beta, flags)


class Innovation(_Weighted):
    """C1: a sensor whose squared innovation passes a quantile of chi-squared is excluded for good.

    The residual of the sensory prediction error with a threshold, as in arXiv 2104.01817.
    """

    def __init__(self, model: Model, rollouts: int, quantile: float = 0.999) -> None:
        """Start at the model's belief."""
        if not 0.5 < quantile < 1:
            raise BadConfig(need("a quantile in (0.5, 1)", quantile, "Use 0.999."))
        super().__init__(model, rollouts)
        # A square of a standard normal is below z^2 where the normal is within +-z.
        self._limit = NormalDist().inv_cdf((1 + quantile) / 2) ** 2
        self._excluded = np.zeros((len(model.r), rollouts), bool)

    def step(self, y: Real, drive: Real) -> Opinion:
        """Readings [S, B] after the drive [D, B]."""
        expected, variance = self._predicted(drive)
        residual = (y - expected) ** 2 / (variance + self._model.r[:, None])
        self._excluded |= residual > self._limit
        self._absorb(np.where(self._excluded, np.nan, y), drive)
        return self._opinion(residual, self._excluded.copy())


class Gradient(_Weighted):
    """C2: precisions by gradient descent on the free energy, in their logarithm.

    ln P += rate / 2 (1 - P e^2), with P between floor and cap of the nominal one. The logarithm
    makes it independent of units; the form in P itself (arXiv 2109.05870) is not.
    """

    def __init__(
        self, model: Model, rollouts: int, rate: float = 0.05, rule: PrecisionRule | None = None
    ) -> None:
        """Start at the model's belief; rate: of a step."""
        if not 0 < rate <= 1:
            raise BadConfig(need("a rate in (0, 1]", rate, "Use 0.05."))
        super().__init__(model, rollouts)
        self._rate, self._bounds = rate, PrecisionRule() if rule is None else rule
        self._log = -np.log(self._belief.beta)

    def step(self, y: Real, drive: Real) -> Opinion:
        """Readings [S, B] after the drive [D, B]."""
        self._absorb(y, drive)
        nominal = -np.log(self._model.r[:, None])
        error = np.nan_to_num((y - self._model.c @ self._belief.mean) ** 2)
        change = self._rate / 2 * (1 - np.exp(self._log) * error)
        low, high = nominal + np.log(self._bounds.floor), nominal + np.log(self._bounds.cap)
        self._log = np.clip(self._log + np.maximum(change, -1.0), low, high)
        self._belief.beta = np.exp(-self._log)
        return self._opinion(np.exp(nominal - self._log), np.zeros(y.shape, bool))
