# SPDX-License-Identifier: Apache-2.0
"""Agreement of two engines' outputs: checked before a speed-up is printed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Random networks lose more to 8 bits than trained ones, deep ones most. Another network's outputs
# differ by 1.4 of their size; ones that do not depend on the image have no correlation.
_MOST_ERROR, _LEAST_CORRELATION = 0.3, 0.5


@dataclass(frozen=True)
class Agreement:
    """Outputs [N, classes] beside a reference's.

    error: root mean square of the difference, relative to the reference's. correlation: of what
    differs from image to image (NaN for a single one). top1: share of images with the same first
    class. max_error: largest difference, relative to the root mean square of the reference.
    """

    error: float
    correlation: float
    top1: float
    max_error: float

    @property
    def match(self) -> bool:
        """True if the outputs agree up to 8-bit rounding."""
        varies = np.isnan(self.correlation) or self.correlation >= _LEAST_CORRELATION
        return bool(self.error <= _MOST_ERROR and varies)


def agreement(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> Agreement:
    """Compare two arrays [N, classes] of one shape, N >= 1."""
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    size = float(np.sqrt((b**2).mean())) or 1.0
    difference = a - b
    return Agreement(
        error=float(np.sqrt((difference**2).mean())) / size,
        correlation=_correlation(a - a.mean(0), b - b.mean(0)) if len(a) > 1 else float("nan"),
        top1=float((a.argmax(1) == b.argmax(1)).mean()),
        max_error=float(np.abs(difference).max()) / size,
    )


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale else 0.0
