# SPDX-License-Identifier: Apache-2.0
"""Samples to train on: usable steps, cells of the target, normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ternary_ops.climate.samples import Features, Samples, matrix
from ternary_ops.climate.time_axis import last_runs
from ternary_ops.errors import BadConfig, need

Floats = NDArray[np.float64]
_LEAST_SHARE = 0.5  # of steps at which a cell must have a value to be learnt


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows to learn from.

    x      all that a model sees, [steps, count]
    y      the target in its cells, [steps, cells]
    cells  which cells of the target's grid those are, [rows, columns]
    held   the steps on which hyper-parameters are chosen (`time_axis.last_runs`)
    steps  positions of these steps in the samples
    """

    x: Floats
    y: Floats
    cells: NDArray[np.bool_]
    held: NDArray[np.bool_]
    steps: NDArray[np.int64]


def cells_of(target: Floats) -> NDArray[np.bool_]:
    """Cells that have a value at half of the steps or more: land, say; raises BadConfig."""
    found = np.isfinite(target).mean(0) >= _LEAST_SHARE
    if not found.any():
        do = "Check the fill value, the variable and the period."
        raise BadConfig(need("a target with values", "missing ones alone", do))
    return np.asarray(found)


def training_data(samples: Samples, features: Features) -> TrainingData:
    """Complete rows alone: a step with a missing predictor or target is left out."""
    if samples.target is None:
        raise BadConfig(need("a target to learn from", "predictors alone", "Add it to the data."))
    x, target = matrix(samples, features), samples.target.values
    cells = cells_of(target)
    y = target[:, cells]
    complete = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    if complete.sum() < 2:
        got = f"{int(complete.sum())} of {len(x)}"
        do = "Give a longer period, or other variables."
        raise BadConfig(need("two or more steps without missing values", got, do))
    held = last_runs(samples.times)[complete]
    if held.all():  # a single winter of complete steps
        held = np.arange(len(held)) >= len(held) * 4 // 5
    return TrainingData(x[complete], y[complete], cells, held, np.flatnonzero(complete))


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and deviation of each column of a matrix."""

    mean: Floats
    deviation: Floats

    @staticmethod
    def of(x: Floats) -> Scaling:
        """Of the rows of x; a column that never changes has deviation 1."""
        deviation = x.std(0)
        return Scaling(x.mean(0), np.where(deviation > 0, deviation, 1.0))

    def __call__(self, x: Floats) -> Floats:
        """Rows with mean 0 and deviation 1."""
        made: Floats = (x - self.mean) / self.deviation
        return made
