# SPDX-License-Identifier: Apache-2.0
"""Faults of sensors: what each does to readings from a step on, until another.

apply(y, held, steps, noise): readings [B] of the sensor, its last reading before the fault, steps
since it began, and standard normals of the fault's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, need

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Fault:
    """A fault of `sensor` in steps start <= t < end (None: to the end)."""

    sensor: int
    start: int
    end: int | None = None

    def __post_init__(self) -> None:
        """BadConfig for negative numbers, or where the end comes first."""
        if self.sensor < 0 or self.start < 1 or (self.end is not None and self.end <= self.start):
            got = f"sensor={self.sensor}, start={self.start}, end={self.end}"
            do = "Count sensors from 0 and steps from 1."
            raise BadConfig(need("a sensor >= 0 and steps 1 <= start < end", got, do))

    def active(self, step: int) -> bool:
        """True in the steps of the fault."""
        return self.start <= step and (self.end is None or step < self.end)

    def apply(self, y: Real, held: Real, steps: int, noise: Real) -> Real:
        """The readings that come in place of y."""
        raise NotImplementedError


@dataclass(frozen=True)
class Bias(Fault):
    """A constant is added."""

    size: float = 0.0

    def apply(self, y: Real, held: Real, steps: int, noise: Real) -> Real:
        """y + size."""
        return y + self.size


@dataclass(frozen=True)
class Drift(Fault):
    """A growing amount is added, `rate` more at every step."""

    rate: float = 0.0

    def apply(self, y: Real, held: Real, steps: int, noise: Real) -> Real:
        """y + rate * steps."""
        return y + self.rate * (steps + 1)


@dataclass(frozen=True)
class Freeze(Fault):
    """The last reading is repeated."""

    def apply(self, y: Real, held: Real, steps: int, noise: Real) -> Real:
        """The reading before the fault."""
        return held


@dataclass(frozen=True)
class Noise(Fault):
    """Noise of a standard deviation `std` is added."""

    std: float = 0.0

    def apply(self, y: Real, held: Real, steps: int, noise: Real) -> Real:
        """y + std * noise."""
        return y + self.std * noise


@dataclass(frozen=True)
class Dropout(Fault):
    """Readings are missing."""

    def apply(self, y: Real, held: Real, steps: int, noise: Real) -> Real:
        """NaN."""
        return np.full_like(y, np.nan)


@dataclass(frozen=True)
class Saturation(Fault):
    """Readings stop at bounds."""

    low: float = -np.inf
    high: float = np.inf

    def apply(self, y: Real, held: Real, steps: int, noise: Real) -> Real:
        """y, clipped."""
        return np.clip(y, self.low, self.high)
