# SPDX-License-Identifier: Apache-2.0
"""Threshold of the residual: a quantile of its law while a sensor is healthy."""

from __future__ import annotations

from statistics import NormalDist

from ternary_ops.errors import BadConfig, need

# Measured quantiles lie above the law's: the estimate's own error is part of the residual.
MARGIN = 1.06


def residual_threshold(rho: float, quantile: float = 0.999) -> float:
    """Level that a healthy sensor's residual exceeds in a share 1 - quantile of the steps.

    The residual sums squares with weights (1 - rho) rho^k: close to chi-squared over its degrees of
    freedom, (1 + rho) / (1 - rho). Quantile by Wilson and Hilferty's cube, plus 6 %.

    >>> round(residual_threshold(0.95, 0.999), 2)
    1.96
    """
    if not 0.5 < quantile < 1:
        raise BadConfig(need("a quantile in (0.5, 1)", quantile, "Use 0.999."))
    if not 0 < rho <= 1:
        raise BadConfig(need("rho in (0, 1]", rho, "Use 0.95."))
    spread = 2 / 9 * (1 - rho) / (1 + rho)
    cube: float = (1 - spread + NormalDist().inv_cdf(quantile) * spread**0.5) ** 3
    return MARGIN * cube
