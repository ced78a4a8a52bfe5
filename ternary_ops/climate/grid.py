# SPDX-License-Identifier: Apache-2.0
"""Latitude-longitude grids: found in a field, compared, and the weights that lead between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, UnsupportedShape, need

Array = NDArray[np.float64]
_NAMES = {"lat": ("lat", "latitude"), "lon": ("lon", "longitude")}
_STANDARD = {"lat": "latitude", "lon": "longitude"}
_DEGREES = {
    "lat": ("degrees_north", "degree_north", "degrees_N", "degree_N"),
    "lon": ("degrees_east", "degree_east", "degrees_E", "degree_E"),
}
_DO = "Name the axes lat and lon, or give them CF attributes (standard_name or units)."
_SAME = 1e-4  # degrees: float32 coordinates of fine grids are off by less


@dataclass(frozen=True, eq=False)
class Grid:
    """Cell centers of a regular grid in degrees, latitudes and longitudes ascending.

    Fields of descending latitudes, or of longitudes that begin anywhere in 0..360 or -180..180, are
    turned to this order when they are read (`aligned`) and back when they are written.
    """

    lat: Array
    lon: Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.lat), len(self.lon)

    @property
    def wraps(self) -> bool:
        """Whether the columns go all around the globe."""
        step = float(np.diff(self.lon).mean()) if len(self.lon) > 1 else 0.0
        return bool(step and abs(len(self.lon) * step - 360) < 0.5 * step)

    def same(self, other: Grid) -> bool:
        """Whether both have the same centers, whole turns of longitude aside."""
        if self.shape != other.shape:
            return False
        turned = (self.lon - other.lon + 180) % 360 - 180
        return bool(np.abs(self.lat - other.lat).max() < _SAME and np.abs(turned).max() < _SAME)

    def area(self) -> Array:
        """The share of each cell in the sphere's area, up to a factor: [rows, columns]."""
        north = np.clip(edges(self.lat), -90, 90)
        rows = np.diff(np.sin(np.radians(north)))
        made: Array = np.outer(rows, np.abs(np.diff(edges(self.lon))))
        return made

    def refined(self, factor: int) -> Grid:
        """The grid whose cells are `factor` x `factor` to each of these."""
        return Grid(_refined(self.lat, factor), _refined(self.lon, factor))

    def describe(self) -> str:
        """Rows, columns and corners, for messages."""
        corners = f"{self.lat[0]:g}..{self.lat[-1]:g} N, {self.lon[0]:g}..{self.lon[-1]:g} E"
        return f"{len(self.lat)} x {len(self.lon)} cells of {corners}"


def axis_name(field: Any, axis: str) -> str:
    """The name of a field's latitude ("lat") or longitude ("lon") dimension; raises BadConfig."""
    for name in field.dims:
        if name not in field.coords:
            continue
        about = field.coords[name].attrs
        if about.get("standard_name") == _STANDARD[axis] or about.get("units") in _DEGREES[axis]:
            return str(name)
    for name in field.dims:
        if str(name).lower() in _NAMES[axis] and name in field.coords:
            return str(name)
    what = f"a {_STANDARD[axis]} dimension with coordinates in {field.name!r}"
    raise BadConfig(need(what, f"dimensions {list(field.dims)}", _DO))


def aligned(field: Any) -> tuple[Any, Grid]:
    """The field as [..., rows, columns] with both axes ascending, and its grid.

    Raises BadConfig where an axis is missing, has no numbers, or is not monotonic.
    """
    y, x = axis_name(field, "lat"), axis_name(field, "lon")
    field = field.transpose(..., y, x)
    lat, lon = _numbers(field, y), _numbers(field, x)
    if len(lat) > 1 and lat[0] > lat[-1]:
        field, lat = field.isel({y: slice(None, None, -1)}), lat[::-1]
    _check_rising(field, y, lat)
    jumps = np.flatnonzero(np.diff(lon) < 0)
    if len(jumps) == 1 and len(lon) > 2:  # a global row cut in the middle: ..., 179, -180, ...
        lon = np.where(np.arange(len(lon)) > jumps[0], lon + 360, lon)
    _check_rising(field, x, lon)
    return field, Grid(lat, lon)


def _numbers(field: Any, name: str) -> Array:
    values = np.asarray(field.coords[name].values)
    if values.dtype.kind not in "fiu" or not np.isfinite(values.astype(np.float64)).all():
        raise BadConfig(need(f"finite numbers as coordinate {name!r}", values.dtype, _DO))
    return values.astype(np.float64)


def _check_rising(field: Any, name: str, values: Array) -> None:
    if len(values) < 1 or (np.diff(values) <= 0).any():
        what = f"monotonic coordinates {name!r} of {field.name!r}"
        do = "Sort the data set with .sortby, and remove repeated cells."
        raise BadConfig(need(what, f"{np.array2string(values[:6], precision=4)}...", do))


def edges(centers: Array) -> Array:
    """Borders of cells halfway between their centers: one more than centers."""
    if len(centers) == 1:
        return np.array([centers[0] - 0.5, centers[0] + 0.5])
    middle = (centers[1:] + centers[:-1]) / 2
    made: Array = np.r_[2 * centers[0] - middle[0], middle, 2 * centers[-1] - middle[-1]]
    return made


def bilinear(source: Array, target: Array) -> Array:
    """Weights [target, source] of linear interpolation along one axis; held at the ends."""
    if len(source) == 1:
        return np.ones((len(target), 1))
    left = np.clip(np.searchsorted(source, target) - 1, 0, len(source) - 2)
    share = np.clip((target - source[left]) / (source[left + 1] - source[left]), 0, 1)
    weights = np.zeros((len(target), len(source)))
    at = np.arange(len(target))
    weights[at, left] = 1 - share
    weights[at, left + 1] += share
    return weights


def overlaps(source: Array, target: Array) -> Array:
    """Weights [target, source]: the share of each target cell that each source cell covers.

    Rows add to 1; a target cell outside of all source cells takes the nearest.
    """
    low, high = edges(source), edges(target)
    shared = np.minimum(high[1:, None], low[None, 1:]) - np.maximum(high[:-1, None], low[None, :-1])
    weights = np.maximum(shared, 0)
    for row in np.flatnonzero(weights.sum(1) <= 0):
        weights[row, np.abs(source - target[row]).argmin()] = 1
    made: Array = weights / weights.sum(1, keepdims=True)
    return made


def interpolate(values: NDArray[Any], source: Grid, target: Grid, conservative: bool) -> Array:
    """Fields [..., rows, columns] on another grid, by area overlap or bilinearly."""
    way = overlaps if conservative else bilinear
    lon = source.lon + 360 * np.round((target.lon.mean() - source.lon.mean()) / 360)
    rows, columns = way(source.lat, target.lat), way(lon, target.lon)
    if conservative:
        rows = _by_area(rows, source, target)
    made: Array = rows @ np.asarray(values, np.float64) @ columns.T
    return made


def _by_area(rows: Array, source: Grid, target: Grid) -> Array:
    """Overlap of rows measured on the sphere, where cells narrow toward the poles."""
    sin = [np.sin(np.radians(np.clip(edges(g.lat), -90, 90))) for g in (source, target)]
    shared = np.minimum(sin[1][1:, None], sin[0][None, 1:]) - np.maximum(
        sin[1][:-1, None], sin[0][None, :-1]
    )
    weights = np.maximum(shared, 0)
    total = weights.sum(1, keepdims=True)
    made: Array = np.where(total > 0, weights / np.where(total > 0, total, 1), rows)
    return made


def factor_between(coarse: Grid, fine: Grid) -> int | None:
    """How many fine cells lie along each side of a coarse one, if the grids nest."""
    factor, rest = divmod(len(fine.lat), len(coarse.lat))
    if rest or factor < 2 or fine.shape[1] != factor * coarse.shape[1]:
        return None
    blocks = Grid(fine.lat.reshape(-1, factor).mean(1), fine.lon.reshape(-1, factor).mean(1))
    return factor if blocks.same(coarse) else None


def check_grid(name: str, got: Grid, wanted: Grid) -> None:
    """Raise UnsupportedShape where a field lies on another grid than the model was made for."""
    if not got.same(wanted):
        do = "Interpolate the data set to that grid, or use model.standardized_by(data)."
        raise UnsupportedShape(need(f"{name} on {wanted.describe()}", got.describe(), do))


def _refined(centers: Array, factor: int) -> Array:
    low = edges(centers)
    inside = (np.arange(factor) + 0.5) / factor
    made: Array = (low[:-1, None] + np.diff(low)[:, None] * inside).ravel()
    return made
