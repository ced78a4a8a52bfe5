# SPDX-License-Identifier: Apache-2.0
"""Whole numbers in proportion to weights, between bounds, with an exact sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

_HALVINGS = 100  # of an interval: more than a float64 resolves


def apportion(
    total: int, weights: Sequence[float], least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """Counts near factor * weight, each at least `least` and at most `most`, that sum up to
    `total`, for the factor that makes it so; what rounding leaves goes to the largest rests.

    sum(least) <= total <= sum(most). Places of weight 0 get more than their least only where all
    others are full.
    """

    def counts(factor: float) -> list[float]:
        bounds = zip(weights, least, most, strict=True)
        return [min(max(factor * weight, low), high) for weight, low, high in bounds]

    low = 0.0
    high = max(
        (top / weight for weight, top in zip(weights, most, strict=True) if weight), default=0.0
    )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle)) <= total else (low, middle)
    exact = counts(low)
    made = [math.floor(value) for value in exact]
    order = sorted(range(len(made)), key=lambda i: (weights[i] == 0, made[i] - exact[i]))
    missing = total - sum(made)
    while missing:
        room = [i for i in order if made[i] < most[i]][:missing]
        for i in room:
            made[i] += 1
        missing -= len(room)
    return made
