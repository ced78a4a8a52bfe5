# SPDX-License-Identifier: Apache-2.0
"""Simulate: a plant, its controller, faults and a method of estimation, in many rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, check_type, need
from ternary_ops.monitor.faults import Fault
from ternary_ops.monitor.methods import Bayesian, Opinion
from ternary_ops.monitor.plants import Model
from ternary_ops.monitor.rollouts import sensor_noise

Real = NDArray[np.float64]


class Plant(Protocol):
    """A system to simulate: see `plants`."""

    @property
    def model(self) -> Model:
        """The linear model, of which the system is made and which its filter uses."""

    def goal(self, step: int) -> Real:
        """State wanted, at least its first entries."""

    def control(self, mean: Real, variance: Real, step: int) -> Real:
        """Inputs [inputs, B] for the believed mean [D, B], variance [B] of the first state."""


Controller = Callable[[Real, Real, int], Real]


@dataclass(frozen=True)
class Simulation:
    """After every step of every rollout: true state and mean [T, D, B], residual, weights and flags
    [T, S, B], the first state's goal at that time [T].
    """

    truth: Real
    mean: Real
    residual: Real
    weights: Real
    flags: NDArray[np.bool_]
    goal: Real

    def rmse(self, first: int = 0) -> float:
        """Root mean square error of the first state's estimate, from a step on."""
        return float(np.sqrt(np.mean((self.mean[first:, 0] - self.truth[first:, 0]) ** 2)))

    def goal_error(self, first: int = 0) -> float:
        """Root mean square distance of the first state from its goal, from a step on."""
        return float(np.sqrt(np.mean((self.truth[first:, 0] - self.goal[first:, None]) ** 2)))

    def first_alarm(self, first: int = 0) -> NDArray[np.int64]:
        """Step of each sensor's first flag [S, B] from a step on, or -1."""
        seen = self.flags[first:]
        found: NDArray[np.int64] = np.where(seen.any(axis=0), seen.argmax(axis=0) + first, -1)
        return found

    def named(self, sensor: int, first: int = 0) -> dict[str, float]:
        """Detection of a fault of `sensor` from a step on: shares of rollouts, and the delay.

        detected: its flag is set; delay: median steps until then; wrong: another sensor is flagged
        before it.
        """
        alarms = self.first_alarm(first)
        own, never = alarms[sensor], len(self.truth)
        others = np.delete(np.where(alarms < 0, never, alarms), sensor, axis=0)
        before = others.min(axis=0, initial=never) < np.where(own < 0, never, own)
        hit = own >= 0
        delay = float(np.median(own[hit] - first)) if hit.any() else float("nan")
        return {"detected": float(hit.mean()), "delay": delay, "wrong": float(before.mean())}


def simulate(
    plant: Plant,
    controller: Controller | None = None,
    faults: Sequence[Fault] = (),
    rollouts: int = 1000,
    seed: int = 0,
    *,
    steps: int = 200,
    method: Callable[[Model, int], Any] = Bayesian,
    first_rollout: int = 0,
) -> Simulation:
    """Run a plant in closed loop: the controller acts on what the method believes.

    controller: (mean, variance, step) -> inputs [inputs, B]; the plant's own by default. faults:
    several may act at once, in their order. method: of `methods`, made for (model, rollouts).
    Rollout i is the same whatever the number of rollouts or the place: noise is keyed on (seed;
    rollout, step, sensor). Raises BadConfig.
    """
    model = plant.model
    for name, value in (("rollouts", rollouts), ("steps", steps)):
        check_type(name, value, int, "Use a number of 1 or more.")
        if value < 1:
            raise BadConfig(need(f"{name} >= 1", value, "Use a positive number."))
    sensors, states = model.c.shape
    for fault in faults:
        if not isinstance(fault, Fault) or fault.sensor >= sensors:
            do = "Use monitor.faults and count sensors from 0."
            raise BadConfig(need(f"faults of sensors 0 to {sensors - 1}", fault, do))
    act = plant.control if controller is None else controller
    estimator = method(model, rollouts)
    roots = _root(model.q), np.sqrt(model.r)[:, None]
    x = np.repeat(model.mean[:, None], rollouts, axis=1)
    # The first belief's variance is the filter's doubt; the plant itself begins at its mean.
    mean, variance = x.copy(), np.full(rollouts, model.covariance[0, 0])
    held: dict[int, Real] = {}
    truths, opinions = [], []
    for t in range(steps):
        drawn = sensor_noise(
            seed, first_rollout, rollouts, t, sensors + states + len(faults)
        ).astype(np.float64)
        drive = model.b @ act(mean, variance, t)
        x = model.a @ x + drive + roots[0] @ drawn[sensors : sensors + states]
        y = model.c @ x + roots[1] * drawn[:sensors]
        _break(y, faults, t, held, drawn[sensors + states :])
        opinion: Opinion = estimator.step(y, drive)
        mean, variance = opinion.mean, opinion.variance
        truths.append(x)
        opinions.append(opinion)
    goals = np.array([plant.goal(t + 1)[0] for t in range(steps)])
    return Simulation(
        np.array(truths),
        np.array([o.mean for o in opinions]),
        np.array([o.residual for o in opinions]),
        np.array([o.weights for o in opinions]),
        np.array([o.flags for o in opinions]),
        goals,
    )


def _break(y: Real, faults: Sequence[Fault], t: int, held: dict[int, Real], noise: Real) -> None:
    """Let faults change readings [S, B] in place; `held`: each fault's last reading before it."""
    for i, fault in enumerate(faults):
        if fault.active(t):
            y[fault.sensor] = fault.apply(y[fault.sensor], held[i], t - fault.start, noise[i])
        elif t < fault.start:
            held[i] = y[fault.sensor].copy()


def _root(covariance: Real) -> Real:
    """A matrix times its transpose that is a covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    root: Real = vectors * np.sqrt(np.maximum(values, 0.0))
    return root
