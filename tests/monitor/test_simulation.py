# SPDX-License-Identifier: Apache-2.0
"""Closed loops with faults: the tables measured for the method, and its limits.

Scalar plant, 200 steps, a fault of the last sensor at step 100. The numbers of the tables were
measured by another implementation over 4000 rollouts; here 1000 run.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from ternary_ops import monitor, runtime
from ternary_ops.errors import BadConfig
from ternary_ops.monitor import faults, methods, plants

START = 100
ROLLOUTS = 1000


def run(
    fault: faults.Fault | None = None,
    sensors: int = 2,
    method: object = methods.Bayesian,
    **options: int,
) -> monitor.Simulation:
    broken = () if fault is None else (fault,)
    plant = plants.Cruise(sensors=sensors)
    settings = {"rollouts": ROLLOUTS, **options}
    return monitor.simulate(plant, faults=broken, method=method, **settings)  # type: ignore[arg-type]


def row(name: str, sensor: int) -> faults.Fault:
    return {
        "bias -10": faults.Bias(sensor, START, size=-10.0),
        "bias -2": faults.Bias(sensor, START, size=-2.0),
        "bias -1": faults.Bias(sensor, START, size=-1.0),
        "drift -0.1": faults.Drift(sensor, START, rate=-0.1),
        "noise 2": faults.Noise(sensor, START, std=2.0),
        "freeze": faults.Freeze(sensor, START),
    }[name]


def test_healthy_loop() -> None:
    """Half a deadbeat controller lags 0.2 behind the ramp; the estimate has Riccati's error."""
    found = run()
    assert found.rmse(START) == pytest.approx(0.134, abs=0.005)
    lag = (found.goal[START:, None] - found.truth[START:, 0]).mean()
    assert lag == pytest.approx(0.2, abs=0.01)
    assert found.flags[START:170].any(axis=0).mean() < 0.06


# Root mean square errors after the fault: precisions fixed, learned; share of wrong first alarms.
TABLE = {
    "bias -10": (4.997, 0.165, 0.0),
    "bias -2": (1.008, 0.190, 0.002),
    "bias -1": (0.519, 0.361, 0.06),
    "drift -0.1": (3.107, 0.432, 0.13),
    "noise 2": (0.486, 0.165, 0.004),
    "freeze": (5.87, 0.374, 0.15),
}


@pytest.mark.parametrize("name", TABLE)
def test_table_of_two_sensors(name: str) -> None:
    fixed, learned, wrong = TABLE[name]
    fault = row(name, 1)
    assert run(fault, method=methods.Fixed).rmse(START) == pytest.approx(fixed, rel=0.15)
    found = run(fault)
    assert found.rmse(START) == pytest.approx(learned, rel=0.15)
    named = found.named(1, START)
    assert named["detected"] > 0.98
    assert named["wrong"] < wrong + 0.05
    assert np.isfinite(found.truth).all()
    assert found.goal_error(START) < 2.0


@pytest.mark.parametrize("name", ["bias -1", "drift -0.1", "freeze"])
def test_three_sensors_name_the_right_one(name: str) -> None:
    found = run(row(name, 2), sensors=3)
    assert found.named(2, START)["wrong"] < 0.06
    assert found.rmse(START) < 0.2


def test_a_sudden_bias_is_named_at_once() -> None:
    found = run(row("bias -10", 1))
    alarms = found.first_alarm(START)
    assert (alarms[1] == START).mean() >= 0.999
    assert found.named(1, START)["wrong"] == 0
    ratio = found.weights[START + 3, 1] / found.weights[START + 3, 0]
    assert ratio.mean() < 0.01 and (ratio < 0.01).mean() > 0.95
    assert found.rmse(START) <= 0.18
    assert run(row("bias -10", 1), method=methods.Fixed).rmse(START) == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("bias", [-10.0, -3.0])
def test_weight_under_a_lasting_bias(bias: float) -> None:
    found = run(faults.Bias(1, START, size=bias), steps=400)
    weight = 1 / (1 / found.weights[300:, 1]).mean()
    assert weight == pytest.approx(1 / (0.1 + bias**2), rel=0.1)


def test_recovery_takes_as_long_as_forgetting() -> None:
    found = run(faults.Bias(1, START, end=160, size=-10.0), steps=400)
    peak = found.residual[159, 1].mean()
    threshold = monitor.residual_threshold(0.95)
    wanted = np.log(peak / (threshold - 1)) / -np.log(0.95)
    cleared = np.array([np.nonzero(flags)[0][-1] for flags in found.flags[160:, 1].T])
    assert np.median(cleared) == pytest.approx(wanted, rel=0.2)
    assert found.rmse(330) == pytest.approx(0.135, abs=0.005)


def test_without_forgetting_a_sensor_is_trusted_too_long() -> None:
    rule = monitor.PrecisionRule(rho=1.0, sweeps=1)
    f = monitor.FaultTolerantFilter([[0.9995]], None, [[0.01]], [[1.0]] * 2, [0.1] * 2, rule=rule)
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        f.step(rng.normal(0, 0.1**0.5, 2))
    for _ in range(3):
        now = f.step(rng.normal(0, 0.1**0.5, 2) + [0, -10])
    assert now.weights[1] > 0.01 * now.weights[0]


def test_a_lone_sensor_does_not_trust_itself() -> None:
    """The variance of the estimate in beta keeps the survivor's weight near the nominal one."""
    found = run(row("bias -10", 1), steps=400)
    weight = found.weights[200:, 0].mean() * 0.1
    assert weight == pytest.approx(1.02, abs=0.05)


def test_rollouts_do_not_depend_on_each_other() -> None:
    fault = (faults.Noise(1, 20, std=2.0), faults.Dropout(0, 30, end=40))
    whole = monitor.simulate(plants.Cruise(), faults=fault, rollouts=50, steps=60)
    with runtime.num_threads(1):
        part = monitor.simulate(
            plants.Cruise(), faults=fault, rollouts=3, steps=60, first_rollout=21
        )
    for name in ("truth", "mean", "residual", "weights", "flags"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[..., 21:24])


@pytest.mark.parametrize(
    "method", [methods.Fixed, methods.Innovation, methods.Gradient, methods.Bayesian]
)
def test_every_method_estimates_a_spring(method: type) -> None:
    found = monitor.simulate(plants.MassSpring(), rollouts=40, steps=300, method=method)
    assert found.rmse(100) < 0.06
    assert found.goal_error(290) < 0.3
    some = (faults.Bias(2, 100, size=3.0), faults.Saturation(0, 120, low=-0.1, high=0.1))
    broken = monitor.simulate(
        plants.MassSpring(), faults=some, rollouts=40, steps=300, method=method
    )
    assert np.isfinite(broken.mean).all()


def test_exclusion_and_gradient_against_fixed_precisions() -> None:
    fault = row("bias -10", 1)
    assert run(fault, method=methods.Innovation).rmse(START) == pytest.approx(0.342, rel=0.3)
    assert run(fault, method=methods.Gradient).rmse(START) < 1.5
    strict = partial(methods.Innovation, quantile=0.99999)
    assert run(fault, method=strict).flags[START:, 1].all()


def test_misuse_gets_a_named_error() -> None:
    with pytest.raises(BadConfig, match="faults of sensors 0 to 1"):
        run(faults.Bias(2, 5, size=1.0))
    with pytest.raises(BadConfig, match="rollouts >= 1"):
        run(rollouts=0)
    with pytest.raises(BadConfig, match="steps 1 <= start < end"):
        faults.Freeze(0, 0)
    with pytest.raises(BadConfig, match="steps 1 <= start < end"):
        faults.Bias(0, 9, 9, size=1.0)
    with pytest.raises(BadConfig, match="a sensor, a mass"):
        plants.Cruise(sensors=0)
    with pytest.raises(BadConfig, match="a quantile"):
        methods.Innovation(plants.Cruise().model, 3, quantile=0.1)
