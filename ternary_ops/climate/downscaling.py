# SPDX-License-Identifier: Apache-2.0
"""Downscaling: data sets and a model in, a field out, lazily where the data are.

A local model runs in tiles with the halo that its program needs; a domain model runs in stretches
of time that begin with the step before. Either way the result has the bits of the whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.climate.downscaler import Downscaler
from ternary_ops.climate.grid import Grid, check_grid
from ternary_ops.climate.output import as_field
from ternary_ops.climate.samples import Data, Samples, match
from ternary_ops.climate.time_axis import TimeAxis
from ternary_ops.climate.xarray_package import INSTALL, xr
from ternary_ops.errors import BadConfig, check_type, need, needs_package
from ternary_ops.sr.inference.tiling import Tile, cut

Chunks = int | Mapping[str, int] | None


def downscale(
    data: Any,
    model: Downscaler | str | os.PathLike[str],
    chunks: Chunks = None,
    units: Mapping[str, str] | None = None,
) -> Any:
    """The model's field, a DataArray [time, lat, lon], at every step that all predictors have.

    data: data sets by name as for `fit`, or one Dataset where the model reads one. chunks: None
    runs as the data are: lazily, in their chunks, where they are dask arrays, at once where they
    are not. A number makes the result lazy: coarse cells along each side of a tile (local), steps
    of a stretch (domain); a mapping names "time", "lat" and "lon". units: of variables that say
    none. Raises BadConfig, and UnsupportedShape for a grid that the model was not made for.
    """
    if not isinstance(model, Downscaler):
        model = Downscaler.load(model)
    samples = match(_named(data, model), model.features, units, False, _units(model))
    for one, of in zip(samples.inputs, model.inputs, strict=True):
        if model.kind == "domain":
            check_grid(one.label, one.grid, of.grid)
        else:
            check_grid(one.label, one.grid, samples.inputs[0].grid)
    way = _Local if model.kind == "local" else _Domain
    work = way(model, samples)
    sizes = _sizes(chunks, model.kind, samples)
    values = work.whole() if sizes is None else work.lazy(sizes)
    return as_field(values, samples.time, replace(model.target, grid=work.grid))


def _named(data: Any, model: Downscaler) -> Data:
    sources = sorted({one.source for one in model.inputs})
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=data.name or model.inputs[0].name)
    if isinstance(data, xr.Dataset):
        if len(sources) > 1:
            do = f"Pass a dictionary: {{{sources[0]!r}: ..., {sources[1]!r}: ...}}."
            raise BadConfig(need(f"data sets {', '.join(sources)}", "one", do))
        return {sources[0]: data}
    found: Data = data
    return found


def _units(model: Downscaler) -> list[str]:
    """Units in which the model reads its inputs."""
    return [one.units for one in model.inputs]


def _sizes(chunks: Chunks, kind: str, samples: Samples) -> dict[str, int] | None:
    """Steps, rows and columns of a chunk; None: all at once."""
    first = samples.inputs[0].values
    steps, rows, columns = first.shape
    sizes = {"time": steps, "lat": rows, "lon": columns}
    if chunks is None:
        if first.chunks is None:
            return None
        largest = [max(one) for one in first.chunks]
        sizes = dict(zip(sizes, largest, strict=True))
        return sizes if kind == "local" else {**sizes, "lat": rows, "lon": columns}
    if isinstance(chunks, Mapping):
        unknown = sorted(set(chunks) - set(sizes))
        if unknown:
            raise BadConfig(need("chunks of time, lat and lon", unknown, "Check the names."))
        given = dict(chunks)
    else:
        given = {"lat": chunks, "lon": chunks, "time": 1} if kind == "local" else {"time": chunks}
    for name, size in given.items():
        check_type(f"chunks[{name!r}]", size, int, "Use 256.")
        if size < 1:
            raise BadConfig(need(f"chunks of 1 or more along {name}", size, "Use 256."))
        if kind == "domain" and name != "time" and size < sizes[name]:
            do = "Chunk along time alone: a domain model sees its whole grid."
            raise BadConfig(need(f"a whole {name} axis of {sizes[name]}", f"chunks of {size}", do))
    return {name: min(given.get(name, size), size) for name, size in sizes.items()}


class _Domain:
    """One grid, chunks along time with an overlap of one step."""

    def __init__(self, model: Downscaler, samples: Samples) -> None:
        self.model, self.samples = model, samples
        self.grid = model.target.grid
        self.fields = [one.values for one in samples.inputs]

    def whole(self) -> NDArray[np.float32]:
        """All steps."""
        fields = [one.values for one in self.fields]
        return self.model.domain(fields, self.samples.times, 0)

    def lazy(self, sizes: dict[str, int]) -> Any:
        """A dask array, a chunk a stretch of time."""
        dask, array = _dask()
        model, times = dask.delayed(self.model, pure=True), self.samples.times
        parts = []
        for span in cut(len(times), sizes["time"], 0):
            low = max(0, span.first - 1)
            fields = [one.data[low : span.last] for one in self.fields]
            made = dask.delayed(_domain_part)(
                model,
                fields,
                times.take(np.arange(low, span.last)),
                span.first - low,
            )
            shape = (span.last - span.first, *self.model.cells.shape)
            parts.append(array.from_delayed(made, shape, np.float32))
        return array.concatenate(parts, 0)


class _Local:
    """Tiles of any extent with a halo, wrapped around the globe where the grid goes around it."""

    def __init__(self, model: Downscaler, samples: Samples) -> None:
        self.model, self.samples = model, samples
        self.coarse = samples.inputs[0].grid
        self.grid: Grid = self.coarse.refined(model.factor)
        self.fields = [one.values for one in samples.inputs]
        self.area = np.diff(_sines(self.grid)) if model.conserve else None

    def whole(self) -> NDArray[np.float32]:
        """All steps and cells, still a step at a time."""
        rows, columns = self.coarse.shape
        turn = self.model.halo if self.coarse.wraps else 0
        column = Tile(-turn, columns + turn, 0, columns)
        fields = [_around(one.values, column.low, column.high) for one in self.fields]
        return _local_part(self.model, fields, self.area, Tile(0, rows, 0, rows), column)

    def lazy(self, sizes: dict[str, int]) -> Any:
        """A dask array of tiles."""
        dask, array = _dask()
        model, factor = dask.delayed(self.model, pure=True), self.model.factor
        rows, columns = self.coarse.shape
        halo = self.model.halo
        times = cut(len(self.samples.times), sizes["time"], 0)
        steps = []
        for span in times:
            bands = []
            for row in cut(rows, sizes["lat"], halo, 2):
                band = []
                for column in self._columns(columns, sizes["lon"], halo):
                    fields = [self._part(one, span, row, column) for one in self.fields]
                    area = None
                    if self.area is not None:
                        area = self.area[factor * row.low : factor * row.high]
                    made = dask.delayed(_local_part)(model, fields, area, row, column)
                    shape = (
                        span.last - span.first,
                        factor * (row.last - row.first),
                        factor * (column.last - column.first),
                    )
                    band.append(array.from_delayed(made, shape, np.float32))
                bands.append(array.concatenate(band, 2))
            steps.append(array.concatenate(bands, 1))
        return array.concatenate(steps, 0)

    def _columns(self, count: int, side: int, halo: int) -> list[Tile]:
        """Tiles along longitude; those of a globe have their halo beyond both ends as well."""
        tiles = cut(count, side, halo, 2)
        if not self.coarse.wraps:
            return tiles
        return [Tile(t.first - halo, t.last + halo, t.first, t.last) for t in tiles]

    def _part(self, field: Any, span: Tile, row: Tile, column: Tile) -> Any:
        data = field.data[span.first : span.last, row.low : row.high]
        return _around(data, column.low, column.high)


def _around(data: Any, low: int, high: int) -> Any:
    """Columns low to high of a field whose columns go around the globe."""
    count = data.shape[-1]
    if low >= 0 and high <= count:
        return data[..., low:high]
    at = np.arange(low, high) % count
    return data[..., at]


def _core(made: NDArray[np.float32], row: Tile, column: Tile, factor: int) -> NDArray[np.float32]:
    """The part of a computed tile that is kept."""
    left, top = column.first - column.low, row.first - row.low
    return made[
        :,
        factor * top : factor * (top + row.last - row.first),
        factor * left : factor * (left + column.last - column.first),
    ]


def _domain_part(
    model: Downscaler,
    fields: list[NDArray[Any]],
    times: TimeAxis,
    skip: int,
) -> NDArray[np.float32]:
    return model.domain(fields, times, skip)


def _local_part(
    model: Downscaler,
    fields: list[NDArray[Any]],
    area: NDArray[np.float64] | None,
    row: Tile,
    column: Tile,
) -> NDArray[np.float32]:
    made = model.local(fields, area)
    return np.ascontiguousarray(_core(made, row, column, model.factor))


def _sines(grid: Grid) -> NDArray[np.float64]:
    from ternary_ops.climate.grid import edges

    made: NDArray[np.float64] = np.sin(np.radians(np.clip(edges(grid.lat), -90, 90)))
    return made


def _dask() -> tuple[Any, Any]:
    with needs_package("dask", "lazy results", INSTALL):
        import dask
        import dask.array
    return dask, dask.array
