# SPDX-License-Identifier: Apache-2.0
"""Baselines: any result of a network is stated beside these, of the same split.

    model = baselines.KernelRidge(Features(target="eobs", variable="tas")).fit(train)
    fine = model.predict(test)            # a DataArray on the target's grid

Strengths and widths are chosen on the last three winters of the training data
(`time_axis.last_runs`), then the model is fitted to all of it; `chosen` says what was taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.climate.grid import Grid, interpolate
from ternary_ops.climate.output import as_field
from ternary_ops.climate.samples import Data, Features, Samples, Variable, in_memory, match, matrix
from ternary_ops.climate.time_axis import refuse_shared
from ternary_ops.climate.training_data import Scaling, TrainingData, cells_of, training_data
from ternary_ops.climate.units import conversion
from ternary_ops.errors import BadConfig, need

Floats = NDArray[np.float64]
_STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_KERNEL_STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


class Baseline:
    """Fit and predict on named data sets; a subclass says `_fit` and `_predict`.

    dates: the steps that were trained on; `predict` refuses them (BadConfig) unless told that the
    data are the training data.
    """

    def __init__(
        self, features: Features | None = None, units: Mapping[str, str] | None = None
    ) -> None:
        """units: of variables whose data sets say none."""
        self.features = features or Features()
        self.units = dict(units or {})
        self.dates: tuple[str, ...] = ()
        self.chosen: dict[str, float] = {}
        self._target: Variable | None = None
        self._units: tuple[str, ...] = ()

    def fit(self, data: Data) -> Baseline:
        """Learn from the steps that all data sets have; raises BadConfig."""
        samples = in_memory(match(data, self.features, self.units))
        target = samples.target
        if target is None:
            raise BadConfig(need("a target to learn from", sorted(data), "Add it to the data."))
        self.dates = samples.times.keys
        self._units = tuple(one.units for one in samples.inputs)
        self.cells = cells_of(target.values)
        self._target = target
        self._fit(samples)
        return self

    def predict(self, data: Data, trained: bool = False) -> Any:
        """The target's field at every step of the predictors, missing where it was not learnt."""
        if self._target is None:
            raise BadConfig(need("a fitted baseline", "one without data", "Call .fit(data)."))
        samples = in_memory(match(data, self.features, self.units, False, self._units))
        if not trained:
            refuse_shared(self.dates, samples.times.keys)
        made = np.where(self.cells, self._predict(samples), np.nan)
        return as_field(made, samples.time, self._target)

    @property
    def grid(self) -> Grid:
        """The target's grid."""
        if self._target is None:
            raise BadConfig(need("a fitted baseline", "one without data", "Call .fit(data)."))
        return self._target.grid

    def _fit(self, samples: Samples) -> None:
        raise NotImplementedError

    def _predict(self, samples: Samples) -> Floats:
        raise NotImplementedError


class Bilinear(Baseline):
    """The target's own variable among the predictors, interpolated; nothing is learnt."""

    conservative = False

    def _fit(self, samples: Samples) -> None:
        self._own(samples)

    def _predict(self, samples: Samples) -> Floats:
        own = self._own(samples)
        if self._target is None:
            raise BadConfig(need("a fitted baseline", "one without data", "Call .fit(data)."))
        made = interpolate(own.values, own.grid, self.grid, self.conservative)
        factor, offset = conversion(own.units, self._target.units)
        return made * factor + offset

    def _own(self, samples: Samples) -> Variable:
        """The predictor of the target's name."""
        name = "" if self._target is None else self._target.name
        found = [one for one in samples.inputs if one.name == name]
        if not found:
            got = ", ".join(one.label for one in samples.inputs)
            raise BadConfig(need(f"a predictor {name!r} to interpolate", got, "Add it to inputs."))
        return found[0]


class Conservative(Bilinear):
    """The same by area overlap: means over coarse cells are kept where the grids nest."""

    conservative = True


class DeltaBias(Bilinear):
    """Bilinear interpolation less its mean error in each cell over the training steps."""

    def _fit(self, samples: Samples) -> None:
        if samples.target is None:
            raise BadConfig(need("a target to learn from", "none", "Add it to the data."))
        error = super()._predict(samples) - samples.target.values
        with np.errstate(invalid="ignore"):
            count = np.isfinite(error).sum(0)
            self.bias = np.nansum(error, 0) / np.maximum(count, 1)

    def _predict(self, samples: Samples) -> Floats:
        made: Floats = super()._predict(samples) - self.bias
        return made


class _Linear(Baseline):
    """Regression of all cells on all that the features say, hyper-parameters by validation."""

    def _fit(self, samples: Samples) -> None:
        data = training_data(samples, self.features)
        self.cells = data.cells
        options = list(self._options())
        self.scores: list[tuple[float, dict[str, float]]] = []
        if len(options) > 1:
            first, last = ~data.held, data.held
            part = TrainingData(data.x[first], data.y[first], data.cells, data.held, data.steps)
            self.scores = sorted(
                self._trials(part, data.x[last], data.y[last], options), key=lambda s: s[0]
            )
            self.chosen = self.scores[0][1]
        else:
            self.chosen = options[0]
        self._solve(data, self.chosen)

    def _trials(
        self, part: TrainingData, x: Floats, y: Floats, options: Sequence[dict[str, float]]
    ) -> Iterator[tuple[float, dict[str, float]]]:
        """Errors on held-out steps."""
        for option in options:
            self._solve(part, option)
            yield float(np.sqrt(np.mean((self._rows(x) - y) ** 2))), option

    def _predict(self, samples: Samples) -> Floats:
        x = matrix(samples, self.features)
        made = np.full((len(x), *self.cells.shape), np.nan)
        there = np.isfinite(x).all(1)
        made[np.ix_(there, *map(np.arange, self.cells.shape))] = self._scattered(x[there])
        return made

    def _scattered(self, x: Floats) -> Floats:
        made = np.full((len(x), *self.cells.shape), np.nan)
        made[:, self.cells] = self._rows(x)
        return made

    def _options(self) -> Iterator[dict[str, float]]:
        raise NotImplementedError

    def _solve(self, data: TrainingData, option: dict[str, float]) -> None:
        raise NotImplementedError

    def _rows(self, x: Floats) -> Floats:
        raise NotImplementedError


class Ridge(_Linear):
    """Ridge regression on standardised predictors; `strengths`: values of lambda to choose from."""

    def __init__(
        self,
        features: Features | None = None,
        units: Mapping[str, str] | None = None,
        strengths: Sequence[float] = _STRENGTHS,
    ) -> None:
        super().__init__(features, units)
        self.strengths = tuple(strengths)

    def _options(self) -> Iterator[dict[str, float]]:
        return ({"strength": value} for value in self.strengths)

    def _solve(self, data: TrainingData, option: dict[str, float]) -> None:
        self.scaling = Scaling.of(data.x)
        x, self.mean = self.scaling(data.x), data.y.mean(0)
        left = x.T @ x + option["strength"] * np.eye(x.shape[1])
        self.weights: Floats = np.linalg.solve(left, x.T @ (data.y - self.mean))

    def _rows(self, x: Floats) -> Floats:
        made: Floats = self.scaling(x) @ self.weights + self.mean
        return made


class KernelRidge(_Linear):
    """Kernel ridge regression with exp(-width * mean squared difference of the predictors)."""

    def __init__(
        self,
        features: Features | None = None,
        units: Mapping[str, str] | None = None,
        strengths: Sequence[float] = _KERNEL_STRENGTHS,
        widths: Sequence[float] = _WIDTHS,
    ) -> None:
        super().__init__(features, units)
        self.strengths, self.widths = tuple(strengths), tuple(widths)

    def _options(self) -> Iterator[dict[str, float]]:
        pairs = itertools.product(self.widths, self.strengths)
        return ({"width": width, "strength": strength} for width, strength in pairs)

    def _trials(
        self, part: TrainingData, x: Floats, y: Floats, options: Sequence[dict[str, float]]
    ) -> Iterator[tuple[float, dict[str, float]]]:
        """One eigendecomposition a width serves all strengths."""
        scaling, mean = Scaling.of(part.x), part.y.mean(0)
        known, asked = scaling(part.x), scaling(x)
        near, far = _distances(known, known), _distances(asked, known)
        for width in self.widths:
            values, vectors = np.linalg.eigh(np.exp(-width * near))
            right = vectors.T @ (part.y - mean)
            left = np.exp(-width * far) @ vectors
            for strength in self.strengths:
                made = left @ (right / (values + strength)[:, None]) + mean
                error = float(np.sqrt(np.mean((made - y) ** 2)))
                yield error, {"width": width, "strength": strength}

    def _solve(self, data: TrainingData, option: dict[str, float]) -> None:
        self.scaling, self.mean = Scaling.of(data.x), data.y.mean(0)
        self.known = self.scaling(data.x)
        kernel = np.exp(-option["width"] * _distances(self.known, self.known))
        left = kernel + option["strength"] * np.eye(len(kernel))
        self.weights: Floats = np.linalg.solve(left, data.y - self.mean)

    def _rows(self, x: Floats) -> Floats:
        near = np.exp(-self.chosen["width"] * _distances(self.scaling(x), self.known))
        made: Floats = near @ self.weights + self.mean
        return made


def _distances(a: Floats, b: Floats) -> Floats:
    """Mean squared differences between rows, [rows of a, rows of b]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    made: Floats = np.maximum(squares, 0) / a.shape[1]
    return made
