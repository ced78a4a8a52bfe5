# SPDX-License-Identifier: Apache-2.0
"""The precision filter against float64, Kalman's filter, a conjugate update, and measured laws.

The scalar plant is the cruise controller's: a = 0.9995, Q = 0.01, sensors of variance 0.1.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ternary_ops import monitor, runtime
from ternary_ops.errors import BadConfig, UnsupportedShape
from ternary_ops.monitor.discretize import discretize, exponential
from ternary_ops.monitor.rollouts import RolloutFilter, sensor_noise
from ternary_ops.reference import precision as reference

ISAS = runtime.available_isas()
A, Q, R = 0.9995, 0.01, 0.1
RULE = reference.PrecisionRule()


def system(d: int, s: int, seed: int = 0) -> tuple[NDArray[np.float64], ...]:
    """A stable system of d states and s sensors: A, Q, C, R."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(d, d))
    a *= 0.95 / np.abs(np.linalg.eigvals(a)).max()
    root = rng.normal(size=(d, d)) * 0.3
    return a, root @ root.T + 0.01 * np.eye(d), rng.normal(size=(s, d)), rng.uniform(0.05, 0.3, s)


def readings(c: NDArray[np.float64], steps: int, rollouts: int, seed: int) -> NDArray[np.float32]:
    """Readings around a wandering state; some missing, one sensor off in the second half."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, c.shape[1], rollouts)).cumsum(axis=0) * 0.1
    y = np.einsum("sd,tdb->tsb", c, x) + rng.normal(size=(steps, len(c), rollouts)) * 0.3
    y[steps // 2 :, 0] += 8.0
    y[rng.random(y.shape) < 0.03] = np.nan
    y[3, -1, 0], y[4, -1, 0] = np.inf, -1e30
    return y.astype(np.float32)


def by_reference(
    model: tuple[NDArray[np.float64], ...],
    y: NDArray[np.float32],
    drive: NDArray[np.float32],
    rule: reference.PrecisionRule,
    learn: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64], reference.Belief]:
    a, q, c, r0 = (v.astype(np.float32).astype(np.float64) for v in model)
    b, d = y.shape[2], len(a)
    start = np.repeat((100.0 * np.eye(d))[:, :, None], b, axis=2)
    beta = np.repeat((rule.alpha * r0)[:, None], b, axis=1)
    belief = reference.Belief(np.zeros((d, b)), start, beta, rule.alpha)
    means, residuals = [], []
    for t in range(len(y)):
        belief, residual = reference.precision_step(
            belief, y[t], a, q, c, r0, rule, drive[t], learn
        )
        means.append(belief.mean)
        residuals.append(residual)
    return np.array(means), np.array(residuals), belief


@pytest.mark.parametrize("d", range(1, 9))
@pytest.mark.parametrize("learn", [True, False])
def test_float32_stays_close_to_float64(d: int, learn: bool) -> None:
    model = system(d, 1 + d % 5 + 2 * (d == 3), d)
    rule = reference.PrecisionRule(rho=1.0 if d == 5 else 0.9, sweeps=1 + d % 3)
    y = readings(model[2], 60, 37, d)
    drive = np.random.default_rng(d).normal(size=(60, d, 37)).astype(np.float32) * 0.1
    one = RolloutFilter(*model, 37, rule=rule, learn=learn)
    means, residuals = one.run(y, drive)
    wanted_means, wanted, belief = by_reference(model, y, drive, rule, learn)
    # The system is ill conditioned at its start, where the covariance is 100: bounds of the states'
    # own size.
    np.testing.assert_allclose(
        means, wanted_means, rtol=1e-5, atol=1e-4 * np.abs(wanted_means).max()
    )
    np.testing.assert_allclose(residuals, wanted, rtol=2e-3)
    rows, columns = np.tril_indices(d)
    close = np.abs(belief.covariance).max() * 1e-4
    np.testing.assert_allclose(one.covariance, belief.covariance[rows, columns], atol=close)


def test_scalar_plant_within_1e_5() -> None:
    """Item 1 of the method's list: 1e-5 relative to an independent float64 loop."""
    model = (np.array([[A]]), np.array([[Q]]), np.ones((3, 1)), np.full(3, R))
    y = readings(model[2], 200, 48, 5)
    drive = np.zeros((200, 1, 48), np.float32)
    means, residuals = RolloutFilter(*model, 48).run(y, drive)
    wanted_means, wanted, _ = by_reference(model, y, drive, RULE)
    scale = np.abs(wanted_means).max()
    np.testing.assert_allclose(means, wanted_means, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(residuals, wanted, rtol=1e-4)


def test_precision_of_a_known_state_is_the_conjugate_update() -> None:
    """A state that is known exactly: alpha and beta are those of a Gamma prior and normal data."""
    y = np.random.default_rng(0).normal(1.0, 0.5, (40, 2, 1))
    belief = reference.Belief(np.ones((1, 1)), np.zeros((1, 1, 1)), np.full((2, 1), 0.3), 1.5)
    one = np.ones((1, 1))
    rule = reference.PrecisionRule(rho=1.0)
    for row in y:
        belief, _ = reference.precision_step(
            belief, row, one, 0 * one, np.ones((2, 1)), np.full(2, 0.2), rule
        )
    assert belief.alpha == pytest.approx(1.5 + 40 / 2, abs=1e-12)
    np.testing.assert_allclose(
        belief.beta[:, 0], 0.3 + ((y[:, :, 0] - 1) ** 2).sum(0) / 2, rtol=1e-6
    )


def test_fixed_precisions_are_a_kalman_filter() -> None:
    f = monitor.FaultTolerantFilter([[A]], None, [[Q]], [[1.0]] * 2, [R] * 2, warm_up=1000)
    rng = np.random.default_rng(1)
    mean, variance = 0.0, 100.0
    for y in rng.normal(3, 0.3, (300, 2)):
        mean, variance = A * mean, A * variance * A + Q
        both = 1 / (1 / variance + 2 / R)
        mean, variance = both * (mean / variance + y.sum() / R), both
        assert f.step(y).mean[0] == pytest.approx(mean, abs=1e-6)
    assert f.covariance()[0, 0] == pytest.approx(variance, abs=1e-9)
    assert variance == pytest.approx(0.0179, abs=1e-4)


def healthy(rho: float, steps: int, rollouts: int, sensors: int = 2) -> NDArray[np.float32]:
    """Residuals of healthy sensors on the scalar plant, after 200 steps."""
    rule = reference.PrecisionRule(rho=rho)
    f = RolloutFilter([[A]], [[Q]], np.ones((sensors, 1)), [R] * sensors, rollouts, rule=rule)
    x = np.zeros(rollouts, np.float32)
    y = np.empty((steps, sensors, rollouts), np.float32)
    for t in range(steps):
        drawn = sensor_noise(7, 0, rollouts, t, sensors + 1)
        x = np.float32(A) * x + np.float32(Q**0.5) * drawn[-1]
        y[t] = x + np.float32(R**0.5) * drawn[:-1]
    return f.run(y)[1][200:]


@pytest.mark.parametrize(
    ("rho", "mean", "q99", "q999"), [(0.9, 1.028, 2.05, 2.61), (0.95, 1.013, 1.66, 1.96)]
)
def test_law_of_a_healthy_residual(rho: float, mean: float, q99: float, q999: float) -> None:
    r = healthy(rho, 600, 1024)
    assert r.mean() == pytest.approx(mean, abs=0.01)
    assert r.std() == pytest.approx((2 * (1 - rho) / (1 + rho)) ** 0.5, rel=0.05)
    assert np.quantile(r, 0.99) == pytest.approx(q99, rel=0.03)
    assert np.quantile(r, 0.999) == pytest.approx(q999, rel=0.03)
    assert monitor.residual_threshold(rho, 0.999) == pytest.approx(q999, rel=0.07)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("d", [1, 3])
def test_the_same_bits_whatever_runs_beside(isa: str, d: int) -> None:
    """Batch sizes, positions, threads, instruction sets, steps at once or one by one."""
    model = system(d, 9, d)
    y = readings(model[2], 12, 700, 2)
    with runtime.force_isa("scalar"), runtime.num_threads(1):
        means, residuals = RolloutFilter(*model, 700).run(y)
    with runtime.force_isa(isa), runtime.num_threads(3):
        again = RolloutFilter(*model, 700)
        parts = [again.run(y[t : t + 1]) for t in range(12)]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), means)
        for some in (slice(0, 1), slice(16, 32), slice(5, 86), slice(699, 700)):
            got = RolloutFilter(*model, some.stop - some.start).run(y[:, :, some])
            np.testing.assert_array_equal(got[0], means[:, :, some])
            np.testing.assert_array_equal(got[1], residuals[:, :, some])


@pytest.mark.parametrize("isa", ISAS)
def test_noise_is_keyed_on_rollout_step_and_sensor(isa: str) -> None:
    seed = 2**40 + 3
    with runtime.force_isa(isa):
        drawn = sensor_noise(seed, 5, 33, 9, 7)
        np.testing.assert_array_equal(sensor_noise(seed, 17, 3, 9, 5), drawn[:5, 12:15])
        assert not np.any(sensor_noise(seed, 5, 33, 10, 7) == drawn)
    with runtime.force_isa("scalar"):
        np.testing.assert_array_equal(sensor_noise(seed, 5, 33, 9, 7), drawn)
    wanted = reference.sensor_noise(seed, np.arange(5, 38), 9, 7)
    np.testing.assert_allclose(drawn, wanted, atol=3e-6)


def test_noise_is_normal_and_philox() -> None:
    z = sensor_noise(0, 0, 100_000, 3, 4)
    assert np.abs(z.mean(axis=1)).max() < 0.015
    assert np.abs(np.cov(z) - np.eye(4)).max() < 0.02
    assert np.abs((z**4).mean() - 3) < 0.1
    # Salmon et al.'s known answers for key and counter 0 and all ones.
    words = reference._philox(0, np.zeros(1, np.uint64), 0, 0)
    assert [int(w[0]) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = reference._philox(2**64 - 1, np.full(1, 2**64 - 1, np.uint64), 2**32 - 1, 2**32 - 1)
    assert [int(w[0]) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def make(sensors: int = 3, **options: float) -> monitor.FaultTolerantFilter:
    return monitor.FaultTolerantFilter(
        [[A]], [[1e-4]], [[Q]], [[1.0]] * sensors, [R] * sensors, **options
    )  # type: ignore[arg-type]


def test_an_estimate_is_kept_and_a_failing_sensor_named() -> None:
    f, rng = make(), np.random.default_rng(0)
    for _ in range(60):
        kept = f.step(5 + rng.normal(size=3) * R**0.5, [0.0])
    copies = [v.copy() for v in kept]
    for _ in range(30):
        later = f.step(5 + rng.normal(size=3) * R**0.5 + [0, -10, 0])
    for now, then in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(now, then)
    assert later.flags.tolist() == [0, monitor.FAULT, 0]
    assert later.residual.argmax() == 1
    assert later.weights[1] < 0.01 * later.weights[0]
    assert abs(later.mean[0] - 5) < 0.5


def test_missing_readings_are_flagged_and_predicted() -> None:
    f, rng = make(), np.random.default_rng(0)
    for _ in range(60):
        last = f.step(5 + rng.normal(size=3) * R**0.5)
    for bad in (np.nan, np.inf, -np.inf, 1e300):
        now = f.step([bad, 5.0, 5.0])
        assert now.flags.tolist() == [monitor.MISSING, 0, 0]
        assert now.weights[0] == pytest.approx(last.weights[0])
        assert abs(now.mean[0] - 5) < 0.5
    spread = f.covariance()[0, 0]
    for _ in range(100):
        now = f.step([np.nan] * 3)
    assert now.flags.tolist() == [monitor.MISSING] * 3
    assert abs(now.mean[0] - 5 * A**100) < 0.5
    assert f.covariance()[0, 0] > spread + 0.9
    assert f.step([1e4, 5.0, 5.0]).flags[0] == monitor.FAULT
    for _ in range(400):
        now = f.step([5.0, 5.0, 5.0])
    assert now.flags.tolist() == [0, 0, 0]
    assert abs(now.mean[0] - 5) < 0.1


def test_time_steps_of_any_length() -> None:
    """Two steps of 0.1 predict what one of 0.2 does; Van Loan's integral against a sum."""
    a, b, q = np.array([[0.0, 1.0], [-1.0, -0.1]]), np.array([[0.0], [1.0]]), np.diag([0.0, 0.2])
    one, two = discretize(a, b, q, 0.1), discretize(a, b, q, 0.2)
    np.testing.assert_allclose(one[0] @ one[0], two[0], rtol=1e-12)
    np.testing.assert_allclose(one[0] @ one[1] + one[1], two[1], rtol=1e-12)
    np.testing.assert_allclose(one[0] @ one[2] @ one[0].T + one[2], two[2], rtol=1e-10)
    np.testing.assert_allclose(
        exponential(np.array([[0.0, 9.0], [-9.0, 0.0]])),
        [[np.cos(9), np.sin(9)], [-np.sin(9), np.cos(9)]],
        atol=1e-12,
    )
    f = monitor.FaultTolerantFilter(a, b, q, [[1.0, 0.0]], [0.01])
    for t in range(1, 400):
        now = f.step([1 - np.cos(0.05 * t)], [1.0], dt=0.05)
    assert abs(now.mean[0] - (1 - np.cos(0.05 * 399))) < 0.2
    with pytest.raises(BadConfig, match="dt > 0"):
        f.step([0.0], [1.0], dt=-0.1)
    with pytest.raises(BadConfig, match="dt > 0"):
        f.step([0.0], [1.0])


def test_misuse_gets_a_named_error() -> None:
    good = {"A": [[A]], "B": [[1.0]], "Q": [[Q]], "C": [[1.0]] * 2, "R": [R, R]}
    bad = [
        (BadConfig, "positive variances R", {"R": [R, 0.0]}),
        (BadConfig, "finite A", {"A": [[np.nan]]}),
        (BadConfig, "semidefinite Q", {"Q": [[-1.0]]}),
        (BadConfig, "diagonal R", {"R": [[R, 0.01], [0.01, R]]}),
        (BadConfig, "a quantile", {"quantile": 0.1}),
        (UnsupportedShape, "of two axes", {"A": 1.0}),
        (UnsupportedShape, r"R \[2\]", {"R": [R]}),
        (UnsupportedShape, "C .S, 1.", {"C": [[1.0, 2.0]]}),
        (
            UnsupportedShape,
            "1 to 8 states",
            {"A": np.eye(9), "B": None, "Q": np.eye(9), "C": np.ones((2, 9))},
        ),
        (UnsupportedShape, r"mean \[1\]", {"mean": [1.0, 2.0]}),
    ]
    for error, text, change in bad:
        with pytest.raises(error, match=text):
            monitor.FaultTolerantFilter(**(good | change))  # type: ignore[arg-type]
    for error, wrong in (
        ("rho in", {"rho": 1.5}),
        ("floor <= 1", {"floor": 2.0}),
        ("sweeps", {"sweeps": 0}),
    ):
        with pytest.raises(BadConfig, match=error):
            monitor.PrecisionRule(**wrong)  # type: ignore[arg-type]
    f = make(2)
    for y, u in (([1.0], None), ([[1.0, 2.0]], None), ("ab", None), ([1.0, 2.0], [1.0, 2.0])):
        with pytest.raises(UnsupportedShape, match="numbers, got"):
            f.step(y, u)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedShape, match="finite inputs"):
        f.step([1.0, 2.0], [np.nan])
