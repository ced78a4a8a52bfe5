# SPDX-License-Identifier: Apache-2.0
"""The precision filter, a rollout a lane: see ternary_ops.reference.precision.

    program                    BLOCK rollouts through all steps; or BLOCK of one sensor's row
    state                      in global memory, at one address a lane: it stays in the L1 cache

Divisions are divisions; results are those of the CPU within rounding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ternary_ops.reference.precision import LARGEST_READING, PrecisionRule

BLOCK = 128
LARGEST = tl.constexpr(LARGEST_READING)


@triton.jit
def _present(y):
    return (y < LARGEST) & (y > -LARGEST)


@triton.jit
def _updated(y, expected, variance, beta, rho, kept, bound):
    error = tl.where(_present(y), y - expected, 0.0)
    made = rho * beta + 0.5 * (error * error + tl.maximum(variance, 0.0))
    return tl.where(_present(y), tl.minimum(made, bound), kept * beta)


@triton.jit
def _update(
    y, expected, variance, beta, r0, new_beta, weight, residual, flags, rollouts, sensors, after,
    kept, threshold, rho, floor, cap, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < rollouts
    word = tl.program_id(1)
    bits = tl.zeros((BLOCK,), tl.int32)
    first = word.to(tl.int64) * 32
    for k in range(0, tl.minimum(sensors - word * 32, 32)):
        at = (first + k) * rollouts + lane
        nominal = tl.load(r0 + first + k)
        reading = tl.load(y + at, mask=inside, other=0.0)
        made = _updated(
            reading, tl.load(expected + at, mask=inside, other=0.0),
            tl.load(variance + at, mask=inside, other=0.0),
            tl.load(beta + at, mask=inside, other=1.0), rho, kept, after * nominal / floor,
        )  # fmt: skip
        ratio = made / (after * nominal)
        tl.store(new_beta + at, made, mask=inside)
        tl.store(weight + at, 1.0 / tl.maximum(made / after, nominal / cap), mask=inside)
        tl.store(residual + at, ratio, mask=inside)
        seen = (ratio > threshold) | (_present(reading) == 0)
        bits = bits | (seen.to(tl.int32) << k)
    tl.store(flags + word.to(tl.int64) * rollouts + lane, bits, mask=inside)


def update(
    y: Tensor, expected: Tensor, variance: Tensor, beta: Tensor, r0: Tensor, new_beta: Tensor,
    weight: Tensor, residual: Tensor, flags: Tensor, alpha: float, threshold: float,
    rule: PrecisionRule,
) -> None:  # fmt: skip
    """All contiguous, y not empty; see ternary_ops.ops.precision_update."""
    sensors, rollouts = y.shape
    after = rule.rho * alpha + 0.5
    _update[(triton.cdiv(rollouts, BLOCK), len(flags))](
        y, expected, variance, beta, r0, new_beta, weight, residual, flags, rollouts, sensors,
        after, after / alpha, threshold, rule.rho, rule.floor, rule.cap, BLOCK=BLOCK,
    )  # fmt: skip


@triton.jit
def _row(base, i: tl.constexpr, j: tl.constexpr, rollouts):
    """Row (i, j) of a symmetric matrix whose lower triangle is stored."""
    high: tl.constexpr = i if i > j else j
    low: tl.constexpr = j if i > j else i
    return base + (high * (high + 1) // 2 + low) * rollouts


@triton.jit
def _predict(a, q, mean, covariance, drive, room, rollouts, inside, DRIVE: tl.constexpr,
             D: tl.constexpr):  # fmt: skip
    """m = A m + drive, P = A P A' + Q; room: D + D * D rows."""
    for i in tl.static_range(D):
        moved = tl.load(drive + i * rollouts, mask=inside, other=0.0) if DRIVE else 0.0
        for k in tl.static_range(D):
            moved += tl.load(a + i * D + k) * tl.load(mean + k * rollouts, mask=inside, other=0.0)
        tl.store(room + i * rollouts, moved, mask=inside)
        for j in tl.static_range(D):
            total = tl.load(a + i * D) * tl.load(
                _row(covariance, 0, j, rollouts), mask=inside, other=0.0
            )
            for k in tl.static_range(1, D):
                total += tl.load(a + i * D + k) * tl.load(
                    _row(covariance, k, j, rollouts), mask=inside, other=0.0
                )
            tl.store(room + (D + i * D + j) * rollouts, total, mask=inside)
    for i in tl.static_range(D):
        moved = tl.load(room + i * rollouts, mask=inside, other=0.0)
        tl.store(mean + i * rollouts, moved, mask=inside)
        for j in tl.static_range(i + 1):
            total = tl.load(q + i * D + j) + tl.zeros_like(moved)
            for k in tl.static_range(D):
                total += tl.load(a + j * D + k) * tl.load(
                    room + (D + i * D + k) * rollouts, mask=inside, other=0.0
                )
            tl.store(_row(covariance, i, j, rollouts), total, mask=inside)


@triton.jit
def _view(c, mean, covariance, room, rollouts, inside, D: tl.constexpr):
    """The variance c P c' and the expected reading; P c' goes to D rows of room."""
    variance = tl.zeros_like(tl.load(mean, mask=inside, other=0.0))
    expected = variance
    for i in tl.static_range(D):
        h = tl.load(c) * tl.load(_row(covariance, i, 0, rollouts), mask=inside, other=0.0)
        for j in tl.static_range(1, D):
            h += tl.load(c + j) * tl.load(_row(covariance, i, j, rollouts), mask=inside, other=0.0)
        tl.store(room + i * rollouts, h, mask=inside)
        variance += h * tl.load(c + i)
        expected += tl.load(c + i) * tl.load(mean + i * rollouts, mask=inside, other=0.0)
    return variance, expected


@triton.jit
def _copy(start, to, rollouts, inside, ROWS: tl.constexpr):
    for i in tl.static_range(ROWS):
        value = tl.load(start + i * rollouts, mask=inside, other=0.0)
        tl.store(to + i * rollouts, value, mask=inside)


@triton.jit
def _absorb(c, y, spread, mean, covariance, room, rollouts, inside, D: tl.constexpr):
    variance, expected = _view(c, mean, covariance, room, rollouts, inside, D)
    there = _present(y)
    gain = tl.where(there, 1.0 / (variance + spread), 0.0)
    error = tl.where(there, y - expected, 0.0)
    for i in tl.static_range(D):
        k = tl.load(room + i * rollouts, mask=inside, other=0.0) * gain
        m = tl.load(mean + i * rollouts, mask=inside, other=0.0) + k * error
        tl.store(mean + i * rollouts, m, mask=inside)
        for j in tl.static_range(i + 1):
            p = tl.load(_row(covariance, i, j, rollouts), mask=inside, other=0.0)
            h = tl.load(room + j * rollouts, mask=inside, other=0.0)
            tl.store(_row(covariance, i, j, rollouts), p - k * h, mask=inside)


@triton.jit
def _filter(
    y, drive, a, q, c, r0, mean, covariance, beta, means, residuals, room, alphas, rollouts, steps,
    sensors, rho, floor, cap, SWEEPS: tl.constexpr, DRIVE: tl.constexpr, LEARN: tl.constexpr,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < rollouts
    mean += lane
    covariance += lane
    beta += lane
    room += lane
    y += lane
    drive += lane
    means += lane
    residuals += lane
    triangle: tl.constexpr = D * (D + 1) // 2
    saved = room + (D + D * D) * rollouts  # the prediction, then beta before the step
    for t in range(steps):
        before = tl.load(alphas + t)
        after = tl.load(alphas + t + 1)
        _predict(a, q, mean, covariance, drive, room, rollouts, inside, DRIVE, D)
        _copy(mean, saved, rollouts, inside, D)
        _copy(covariance, saved + D * rollouts, rollouts, inside, triangle)
        kept = saved + (D + triangle) * rollouts
        for s in range(sensors):
            value = tl.load(beta + s * rollouts, mask=inside, other=1.0)
            tl.store(kept + s * rollouts, value, mask=inside)
        for sweep in tl.static_range(SWEEPS):
            shape = after if sweep else before
            _copy(saved, mean, rollouts, inside, D)
            _copy(saved + D * rollouts, covariance, rollouts, inside, triangle)
            for s in range(sensors):
                learned = tl.load(beta + s * rollouts, mask=inside, other=1.0) / shape
                spread = tl.maximum(learned, tl.load(r0 + s) / cap)
                reading = tl.load(y + s * rollouts, mask=inside, other=0.0)
                _absorb(c + s * D, reading, spread, mean, covariance, room, rollouts, inside, D)
            if LEARN:
                for s in range(sensors):
                    reading = tl.load(y + s * rollouts, mask=inside, other=0.0)
                    variance, expected = _view(
                        c + s * D, mean, covariance, room, rollouts, inside, D
                    )
                    old = tl.load(kept + s * rollouts, mask=inside, other=1.0)
                    bound = after * tl.load(r0 + s) / floor
                    made = _updated(reading, expected, variance, old, rho, after / before, bound)
                    tl.store(beta + s * rollouts, made, mask=inside)
        for s in range(sensors):
            made = tl.load(beta + s * rollouts, mask=inside, other=1.0)
            ratio = made / (after * tl.load(r0 + s))
            tl.store(residuals + s * rollouts, ratio, mask=inside)
        _copy(mean, means, rollouts, inside, D)
        y += sensors * rollouts
        residuals += sensors * rollouts
        drive += D * rollouts
        means += D * rollouts


def run_filter(
    y: Tensor, drive: Tensor | None, a: Tensor, q: Tensor, c: Tensor, r0: Tensor, mean: Tensor,
    covariance: Tensor, beta: Tensor, means: Tensor, residuals: Tensor, alpha: float,
    rule: PrecisionRule, learn: bool,
) -> None:  # fmt: skip
    """All contiguous, y not empty; mean, covariance and beta are changed in place."""
    steps, sensors, rollouts = y.shape
    d = len(a)
    shapes = [alpha]
    for _ in range(steps):
        shapes.append(rule.rho * shapes[-1] + 0.5 if learn else alpha)
    alphas = torch.tensor(shapes, dtype=torch.float32, device=y.device)
    rows = 2 * d + d * d + d * (d + 1) // 2 + sensors
    room = torch.empty(rows, rollouts, device=y.device)
    _filter[(triton.cdiv(rollouts, BLOCK),)](
        y, y if drive is None else drive, a, q, c, r0, mean, covariance, beta, means, residuals,
        room, alphas, rollouts, steps, sensors, rule.rho, rule.floor, rule.cap,
        SWEEPS=rule.sweeps if learn else 1, DRIVE=drive is not None, LEARN=learn, D=d, BLOCK=BLOCK,
    )  # fmt: skip
