# SPDX-License-Identifier: Apache-2.0
"""Discretization: the model of one step from that of continuous time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


def exponential(x: Real) -> Real:
    """Matrix exponential: Taylor's series of x / 2^k, then k squarings.

    |x / 2^k| <= 1/2 in the 1-norm: 18 terms leave 0.5^19 / 19! = 2e-23.
    """
    norm = float(np.abs(x).sum(axis=0).max(initial=0.0))
    halvings = max(0, int(np.ceil(np.log2(norm))) + 1) if norm > 0.5 else 0
    scaled = x / 2.0**halvings
    term = total = np.eye(len(x))
    for k in range(1, 19):
        term = term @ scaled / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def discretize(a: Real, b: Real, q: Real, dt: float) -> tuple[Real, Real, Real]:
    """A, B, Q of a step of dt from dx = A x + B u + noise of density Q, u held (Van Loan 1978).

    exp([[-A, Q], [0, A']] dt) holds Q's integral, exp([[A, B], [0, 0]] dt) the other two.
    """
    d, k = b.shape
    held = np.zeros((d + k, d + k))
    held[:d, :d], held[:d, d:] = a * dt, b * dt
    both = exponential(held)
    pair = np.zeros((2 * d, 2 * d))
    pair[:d, :d], pair[:d, d:], pair[d:, d:] = -a * dt, q * dt, a.T * dt
    noise = exponential(pair)
    stepped = noise[d:, d:].T @ noise[:d, d:]
    return (
        np.ascontiguousarray(both[:d, :d]),
        np.ascontiguousarray(both[:d, d:]),
        np.ascontiguousarray((stepped + stepped.T) / 2),
    )
