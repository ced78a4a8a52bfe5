# SPDX-License-Identifier: Apache-2.0
"""Plants: systems with sensors to simulate, each with the linear model that its filter uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, need

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """x+ = A x + B u + q, q ~ N(0, Q); y = C x + e, e ~ N(0, diag(R)); the belief before step 0."""

    a: Real
    b: Real
    q: Real
    c: Real
    r: Real
    mean: Real
    covariance: Real


@dataclass(frozen=True)
class Cruise:
    """A vehicle's speed under drag, read by equal sensors: x+ = a x + b u + q.

    mass 100, drag 5, steps of 0.01: a = 0.9995, b = 1e-4; Q = 0.01, R = 0.1; the goal is step / 10.
    `control` is inference in closed form: a goal prior of variance 100 and a control prior of
    1e10 make it half a deadbeat controller, which lags 0.2 behind that goal.
    """

    sensors: int = 2
    mass: float = 100.0
    drag: float = 5.0
    dt: float = 0.01
    goal_variance: float = 100.0
    control_variance: float = 1e10

    def __post_init__(self) -> None:
        """BadConfig where there is no sensor or time does not pass."""
        if self.sensors < 1 or not self.mass > 0 or not self.dt > 0:
            got = f"sensors={self.sensors}, mass={self.mass}, dt={self.dt}"
            raise BadConfig(need("a sensor, a mass and a time step", got, "Use Cruise()."))

    @property
    def model(self) -> Model:
        """One state, `sensors` readings of it; the belief begins at 0 with variance 100."""
        a, b = 1 - self.drag * self.dt / self.mass, self.dt / self.mass
        one = np.ones((1, 1))
        return Model(
            *(a * one, b * one, 0.01 * one),
            *(np.ones((self.sensors, 1)), np.full(self.sensors, 0.1), np.zeros(1), 100.0 * one),
        )

    def goal(self, step: int) -> Real:
        """The speed wanted after a step."""
        return np.array([step / 10])

    def control(self, mean: Real, variance: Real, step: int) -> Real:
        """Inputs [1, B] for means [1, B] and variances [1, B] of the state."""
        m = self.model
        a, b, q = m.a[0, 0], m.b[0, 0], m.q[0, 0]
        doubt = (self.goal_variance + q + a * a * variance) / (b * b)
        share = self.control_variance / (self.control_variance + doubt)
        u: Real = (self.goal(step) - a * mean) / b * share
        return u


@dataclass(frozen=True)
class MassSpring:
    """A mass on a spring with a damper; sensors read position, velocity or both, in turn.

    mass 1, spring 1, damper 0.1, held to position 1 by a proportional and derivative law; the noise
    of the acceleration has density 0.01 and readings a standard deviation of 0.1.
    """

    sensors: int = 4
    dt: float = 0.01
    spring: float = 1.0
    damper: float = 0.1

    def __post_init__(self) -> None:
        """BadConfig where there is no sensor or time does not pass."""
        if self.sensors < 1 or not self.dt > 0:
            got = f"sensors={self.sensors}, dt={self.dt}"
            raise BadConfig(need("a sensor and a time step", got, "Use MassSpring()."))

    @property
    def model(self) -> Model:
        """States position and velocity, by one step of Euler's method."""
        a = np.array([[1.0, self.dt], [-self.spring * self.dt, 1 - self.damper * self.dt]])
        b, q = np.array([[0.0], [self.dt]]), np.diag([1e-8, 0.01 * self.dt])
        c = np.eye(2)[np.arange(self.sensors) % 2]
        start = np.array([-0.5, -1.0])
        return Model(a, b, q, c, np.full(self.sensors, 0.01), start, 0.01 * np.eye(2))

    def goal(self, step: int) -> Real:
        """Position and velocity wanted."""
        return np.array([1.0, 0.0])

    def control(self, mean: Real, variance: Real, step: int) -> Real:
        """Inputs [1, B] for means [2, B]."""
        u: Real = self.spring * 1.0 + 4 * (1.0 - mean[:1]) - 3 * mean[1:]
        return u
