# SPDX-License-Identifier: Apache-2.0
"""Checks of the precision operators on any device against the float64 reference."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from cases import precision_filter, precision_update

from ternary_ops.reference.precision import PrecisionRule

Update: TypeAlias = precision_update.UpdateShape
Filter: TypeAlias = precision_filter.FilterShape


def update_against_reference(shape: Update, call: Any, threshold: float = 1.7) -> None:
    """Every output of an update; readings that are missing are flagged too."""
    operands = shape.operands(seed=shape.rollouts)
    given = [torch.from_numpy(v) for v in operands]
    beta, weight, residual, flags = call(*given, shape.alpha, threshold, rho=0.9)
    y, *rest, r0 = operands
    wanted = precision_update.CASE.reference(y, *rest, shape.alpha, r0, PrecisionRule(rho=0.9))
    for got, value in zip((beta, weight, residual), wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), value, rtol=2e-6)
    set_ = (residual.numpy() > np.float32(threshold)) | ~np.isfinite(y)
    bits = [flags.numpy()[s // 32] >> (s % 32) & 1 for s in range(shape.sensors)]
    np.testing.assert_array_equal(np.array(bits), set_)


def filter_against_reference(shape: Filter, call: Any) -> None:
    """Every output of a filter."""
    operands = shape.operands(seed=shape.rollouts)
    given = [torch.from_numpy(v) for v in operands]
    rule = shape.rule
    options = {"rho": rule.rho, "floor": rule.floor, "cap": rule.cap, "sweeps": rule.sweeps}
    made = call(*given[:2], given[2:6], given[6:], rule.alpha, learn=shape.learn, **options)
    wanted = precision_filter.CASE.reference(shape, operands)
    for got, value, bound in zip(made, wanted, (2e-5, 2e-5, 1e-3, 2e-5, 1e-3), strict=True):
        close = bound * np.abs(value).max() if bound < 1e-3 else 1e-12
        np.testing.assert_allclose(got.numpy(), value, rtol=bound, atol=close)
    for before, after in zip(operands, given, strict=True):
        np.testing.assert_array_equal(before, after.numpy())
