# SPDX-License-Identifier: Apache-2.0
"""Results as xarray fields with coordinates and attributes, and as files that appear whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ternary_ops._atomic import replace_file
from ternary_ops.climate.grid import Grid
from ternary_ops.climate.samples import Variable
from ternary_ops.climate.xarray_package import xr
from ternary_ops.errors import BadConfig, need

_LAT = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
_LON = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}


def as_field(values: Any, time: Any, target: Variable) -> Any:
    """[steps, rows, columns] on the target's grid as a DataArray with its units."""
    attrs = {k: v for k, v in target.attrs.items() if k not in ("_FillValue", "missing_value")}
    return field_of(values, time, target.grid, target.name, {**attrs, "units": target.units})


def field_of(values: Any, time: Any, grid: Grid, name: str, attrs: dict[str, Any]) -> Any:
    """A DataArray [time, lat, lon] with CF coordinates, latitudes ascending."""
    coords = {
        "time": time.variable,
        "lat": ("lat", grid.lat, _LAT),
        "lon": ("lon", grid.lon, _LON),
    }
    return xr.DataArray(values, dims=("time", "lat", "lon"), coords=coords, name=name, attrs=attrs)


def write(field: Any, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write a DataArray or Dataset as NetCDF, or as Zarr where the name ends in .zarr.

    The file, or folder, appears when it is whole: until then it has another name, and a failure
    leaves nothing. Lazy values are computed and written a chunk at a time. Raises BadConfig for a
    name that is taken, OSError.
    """
    target = Path(path)
    data = field.to_dataset() if isinstance(field, xr.DataArray) else field
    data = data.assign_attrs({"Conventions": "CF-1.8", **data.attrs})
    if target.exists() and not overwrite:
        raise BadConfig(need(f"a new name for {target}", "one that is taken", "Pass overwrite."))
    encoding = {name: _encoding(one) for name, one in data.data_vars.items()}
    data = data.drop_encoding() if "zarr" in target.suffix else data
    if target.suffix == ".zarr":
        _replace_folder(target, lambda part: data.to_zarr(part, mode="w", encoding={}))
        return
    replace_file(
        target,
        lambda part: data.to_netcdf(part, format="NETCDF4", engine="netcdf4", encoding=encoding),
    )


def _encoding(field: Any) -> dict[str, Any]:
    if field.dtype.kind != "f":
        return {}
    return {"zlib": True, "complevel": 1, "_FillValue": np.asarray(np.nan, field.dtype)[()]}


def _replace_folder(target: Path, write_part: Any) -> None:
    """Write a folder under another name, which says that it is incomplete, then rename it."""
    part = target.with_name(f".{target.stem}.incomplete.{os.urandom(4).hex()}.zarr")
    try:
        write_part(part)
        if target.exists():
            shutil.rmtree(target)
        os.replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
