# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, with predictors on several grids, matched by date as arrays to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.climate import units as unit_rules
from ternary_ops.climate.grid import Grid, aligned
from ternary_ops.climate.time_axis import TimeAxis, common, time_axis
from ternary_ops.errors import BadConfig, need

Floats = NDArray[np.float64]
Data = Mapping[str, Any]
GAPS = ("nan", "repeat")


@dataclass(frozen=True)
class Features:
    """Options of what a model sees.

    target     name of the data set to learn, and `variable` in it (None: its only one)
    inputs     (data set, variable) of each predictor; None: all variables of the other data sets
    season     the day of the year as a sine and a cosine
    trend      the time in decades: for a drift between predictors and target within the period,
               not to be used beyond it
    previous   the step before as well. At the first step after a gap it is the step itself
               (gap="repeat"), or the result is missing there (gap="nan")
    """

    target: str = "target"
    variable: str | None = None
    inputs: tuple[tuple[str, str], ...] | None = None
    season: bool = True
    trend: bool = False
    previous: bool = True
    gap: str = "repeat"

    def __post_init__(self) -> None:
        """Raises BadConfig."""
        if self.gap not in GAPS:
            raise BadConfig(need(f"gap of {' or '.join(GAPS)}", repr(self.gap), "Use 'repeat'."))

    def chosen(self, data: Data) -> tuple[tuple[str, str], ...]:
        """The predictors: those named, or every variable with a time axis."""
        if self.inputs is not None:
            return self.inputs
        return tuple(
            (name, str(variable))
            for name, one in data.items()
            if name != self.target
            for variable in one.data_vars
            if "time" in one[variable].dims
        )


@dataclass(frozen=True, eq=False)
class Variable:
    """One field of a data set: its values [steps, rows, columns], grid and units."""

    source: str
    name: str
    values: Any
    grid: Grid
    units: str
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Data set and variable, for messages."""
        return f"{self.source}.{self.name}"


@dataclass(frozen=True, eq=False)
class Samples:
    """Matched steps: predictors, their time axis and, to learn from, the target.

    usable: steps at which every predictor is there, the step before included where it is asked for.
    """

    inputs: tuple[Variable, ...]
    times: TimeAxis
    time: Any
    target: Variable | None = None


def read_field(
    data: Data, source: str, name: str, units: Mapping[str, str], wanted: str | None = None
) -> Variable:
    """A variable of a data set, in `wanted` units; raises BadConfig where it is not there."""
    if source not in data:
        got = f"data sets {sorted(data)}"
        raise BadConfig(need(f"a data set {source!r}", got, "Check the names of the data."))
    one = data[source]
    if name not in one.data_vars:
        got = f"variables {sorted(map(str, one.data_vars))}"
        raise BadConfig(need(f"a variable {name!r} in {source!r}", got, "Check the name."))
    found, grid = aligned(one[name])
    unit = wanted or unit_rules.units_of(found, units)
    found = unit_rules.to_units(found, unit, units)
    return Variable(source, name, found, grid, unit, dict(found.attrs))


def only_variable(data: Data, source: str, name: str | None) -> str:
    """The name given, or that of the data set's only variable with a time axis."""
    if name is not None:
        return name
    if source not in data:
        got = f"data sets {sorted(data)}"
        raise BadConfig(need(f"a data set {source!r}", got, "Name the target: Features(target=)."))
    names = [str(v) for v in data[source].data_vars if "time" in data[source][v].dims]
    if len(names) != 1:
        raise BadConfig(need(f"one variable in {source!r}", names, "Name it: variable='tas'."))
    return names[0]


def match(
    data: Data,
    features: Features,
    units: Mapping[str, str] | None = None,
    with_target: bool = True,
    wanted: Sequence[str] | None = None,
) -> Samples:
    """Read the predictors (and the target) at the steps that all of them have.

    units: of variables that say none. wanted: units in which predictors come, in their order.
    Values stay lazy where they were. Raises BadConfig.
    """
    given = dict(units or {})
    unit_rules.check_names(given, {str(v) for one in data.values() for v in one.data_vars})
    chosen = features.chosen(data)
    if not chosen:
        raise BadConfig(need("predictors", f"data sets {sorted(data)}", "Add a data set."))
    asked: Sequence[str | None] = wanted or [None] * len(chosen)
    fields = [
        read_field(data, *name, given, unit) for name, unit in zip(chosen, asked, strict=True)
    ]
    if with_target:
        variable = only_variable(data, features.target, features.variable)
        fields.append(read_field(data, features.target, variable, given))
    axes = {source: time_axis(data[source]) for source in {f.source for f in fields}}
    places = dict(zip(axes, common([a.keys for a in axes.values()]), strict=True))
    cut = [replace(f, values=f.values.isel(time=places[f.source])) for f in fields]
    cut = [replace(f, values=f.values.transpose("time", ...)) for f in cut]
    time = cut[0].values["time"]
    inputs = tuple(cut[: len(chosen)])
    target = cut[-1] if with_target else None
    return Samples(inputs, time_axis(inputs[0].values.to_dataset(name="x")), time, target)


def in_memory(samples: Samples) -> Samples:
    """The same with NumPy arrays, float64; raises BadConfig for predictors that are all missing."""

    def load(one: Variable) -> Variable:
        values = np.asarray(one.values.values, np.float64)
        if not np.isfinite(values).any():
            do = "Select a period and a region that the data set covers."
            raise BadConfig(need(f"values of {one.label}", "missing ones alone", do))
        return replace(one, values=values)

    target = None if samples.target is None else load(samples.target)
    return replace(samples, inputs=tuple(map(load, samples.inputs)), target=target)


def with_previous(values: Floats, times: TimeAxis, gap: str) -> Floats:
    """Values of the step before each, [steps, ...]; after a gap as `gap` says."""
    before = np.concatenate([values[:1], values[:-1]])
    missing = ~times.previous
    before[missing] = values[missing] if gap == "repeat" else np.nan
    return before


def season(phase: Floats) -> Floats:
    """Cosine and sine of the time of the year, [steps, 2]."""
    angle = 2 * np.pi * phase
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def matrix(samples: Samples, features: Features) -> Floats:
    """All that a model sees as rows of numbers, [steps, count]: fields, steps before, season."""
    fields = [v.values.reshape(len(samples.times), -1) for v in samples.inputs]
    x = np.concatenate(fields, 1)
    parts = [x]
    if features.previous:
        parts.append(with_previous(x, samples.times, features.gap))
    if features.season:
        parts.append(season(samples.times.phase))
    if features.trend:
        parts.append(samples.times.decade[:, None])
    return np.concatenate(parts, 1)
