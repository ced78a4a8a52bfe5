# SPDX-License-Identifier: Apache-2.0
"""Time axes: steps as keys that match across data sets, gaps, seasons, days of the year."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, need

_DAY = 86400.0
_FORMATS = ((28 * _DAY, "%Y-%m"), (_DAY, "%Y-%m-%d"), (0.0, "%Y-%m-%dT%H:%M:%S"))


@dataclass(frozen=True, eq=False)
class TimeAxis:
    """The steps of a data set.

    keys      one text a step: the month, day or second, whichever the step of the axis is
    previous  whether the step before lies one step away: false at the start and after a gap
    runs      number of the uninterrupted stretch that each step belongs to: winters, say
    phase     share of the year that has passed, 0..1
    decade    decades since 2000
    """

    keys: tuple[str, ...]
    previous: NDArray[np.bool_]
    runs: NDArray[np.int64]
    phase: NDArray[np.float64]
    decade: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, at: NDArray[np.int64]) -> TimeAxis:
        """The steps at these positions; each keeps what it knew of the step before it."""
        return TimeAxis(
            tuple(self.keys[i] for i in at),
            self.previous[at],
            self.runs[at],
            self.phase[at],
            self.decade[at],
        )


def time_axis(data: Any) -> TimeAxis:
    """Read the `time` coordinate of a data set, of any calendar.

    Raises BadConfig where there is none, or where it does not rise.
    """
    if "time" not in data.dims or "time" not in data.coords:
        do = "Name the time dimension 'time' and give it coordinates."
        raise BadConfig(need("a time axis", f"dimensions {list(data.dims)}", do))
    time = data["time"]
    if len(time) == 0:
        raise BadConfig(need("time steps", "none", "Select other times."))
    if time.dtype.kind not in "MO":
        do = "Open it with decode_times=True, and give it CF units such as 'days since 1900-01-01'."
        raise BadConfig(need("dates as the time axis", f"{time.dtype} numbers", do))
    seconds = _seconds(time.values)
    steps = np.diff(seconds)
    if (steps <= 0).any():
        at = int(np.flatnonzero(steps <= 0)[0]) + 1
        do = "Sort it with .sortby('time') and remove repeated steps."
        raise BadConfig(need("a rising time axis", f"{time.values[at]} after a later step", do))
    usual = float(np.median(steps)) if len(steps) else _DAY
    shape = next(text for least, text in _FORMATS if usual >= least)
    # Months differ in length; other steps are equal but for rounding of the coordinate.
    whole = steps < 1.2 * usual
    previous = np.r_[False, whole]
    year = _year_length(time)
    phase = (np.asarray(time.dt.dayofyear.values, np.float64) - 1) / year
    keys = tuple(str(text) for text in time.dt.strftime(shape).values)
    decade = (np.asarray(time.dt.year.values, np.float64) + phase - 2000) / 10
    return TimeAxis(keys, previous, np.cumsum(~previous) - 1, phase, decade)


def _seconds(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind == "M":
        since: NDArray[np.float64] = (values - values[0]) / np.timedelta64(1, "s")
        return since
    return np.array([(value - values[0]).total_seconds() for value in values])


def _year_length(time: Any) -> float:
    calendar = str(time.dt.calendar)
    return {"360_day": 360.0, "noleap": 365.0, "365_day": 365.0}.get(calendar, 365.25)


def common(keys: Sequence[tuple[str, ...]]) -> list[NDArray[np.int64]]:
    """For each axis the positions of the steps that all axes have; raises BadConfig for none."""
    shared = set(keys[0]).intersection(*keys[1:])
    if not shared:
        got = "; ".join(f"{k[0]} to {k[-1]}" for k in keys)
        do = "Give data sets of the same period and the same time step."
        raise BadConfig(need("time steps that all data sets have", got, do))
    return [np.flatnonzero(np.isin(np.asarray(k), list(shared))) for k in keys]


def refuse_shared(trained: Sequence[str], tested: Sequence[str]) -> None:
    """Raise BadConfig where a step of the test was trained on."""
    shared = sorted(set(trained) & set(tested))
    if shared:
        got = f"{len(shared)} shared ones, {shared[0]} the first"
        do = "Split by time: train on some years and test on others."
        raise BadConfig(need("test dates that the model was not trained on", got, do))


def last_runs(axis: TimeAxis, count: int = 3) -> NDArray[np.bool_]:
    """True at the steps on which hyper-parameters are chosen: the last `count` winters (or other
    uninterrupted stretches) of the training data; of one stretch, its last fifth.
    """
    names = np.unique(axis.runs)
    if len(names) > count:
        return np.asarray(np.isin(axis.runs, names[-count:]))
    return np.arange(len(axis)) >= len(axis) * 4 // 5
