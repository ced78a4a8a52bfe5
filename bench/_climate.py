# SPDX-License-Identifier: Apache-2.0
"""Data sets of the climate data pack, with the names, units and splits that rows are stated for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from _cifar import folder

from ternary_ops.climate.grid import Grid, interpolate

# The pack's variables say no units: these are the sources' (README of the pack).
UNITS = {"tas": "degC", "pr": "kg m-2 s-1", "psl": "Pa", "ta850": "K", "hus850": "kg/kg"}
GCM_UNITS = {**UNITS, "tas": "K"}
INPUTS = (
    ("pressure", "psl"),
    ("pressure", "ta850"),
    ("pressure", "hus850"),
    ("gauss", "tas"),
    ("gauss", "pr"),
)
TRAINING_DAYS = 1354  # to February 1997; five winters are left
Data = dict[str, Any]


def pack() -> Path:
    """Folder of the climate pack, inside the one that TERNARY_OPS_DATA names."""
    return Path(folder()) / "climate"


def _group(name: str) -> Any:
    found = xr.open_dataset(pack() / "iberia_daily.nc", group=name).load()
    return found


def _plain(data: Any, names: list[str], y: str, x: str, units: dict[str, str]) -> Any:
    """Some variables on one grid, with axes lat and lon and units."""
    made = data[names].rename({y: "lat", x: "lon"})
    for name in names:
        made[name].attrs["units"] = units[name]
    return made


def iberia() -> Data:
    """E-OBS and its NCEP predictors, one data set a grid."""
    eobs, ncep = _group("eobs"), _group("ncep")
    return {
        "eobs": _plain(eobs, ["tas"], "y_05", "x_05", UNITS),
        "gauss": _plain(ncep, ["tas", "pr"], "y_gauss", "x_gauss", UNITS),
        "pressure": _plain(ncep, ["psl", "ta850", "hus850"], "y_25", "x_25", UNITS),
    }


def gcm(period: str) -> Data:
    """CNRM-CM5's predictors under the names of NCEP's: "hist" or "rcp85"."""
    found = _group(f"cnrm_{period}")
    return {
        "gauss": _plain(found, ["tas", "pr"], "y_g", "x_g", GCM_UNITS),
        "pressure": _plain(found, ["psl", "ta850", "hus850"], "y_g", "x_g", GCM_UNITS),
    }


def racmo(period: str) -> Any:
    """Near-surface temperature of RACMO22E in degC on its rotated grid, with lon and lat."""
    return _group(f"racmo_{period}")


def at(data: Data, steps: np.ndarray[Any, Any]) -> Data:
    """The same steps of every data set."""
    return {name: one.isel(time=steps) for name, one in data.items()}


def era5(factor: int) -> Data:
    """Hourly temperature over the United Kingdom and its area means over factor x factor cells."""
    fine = xr.open_dataset(pack() / "era5_uk_t2m_2019-03.nc").load()
    rows, columns = (fine.sizes[axis] // factor * factor for axis in ("lat", "lon"))
    fine = fine.isel(lat=slice(0, rows), lon=slice(0, columns)).sortby("lat")
    low = fine.coarsen(lat=factor, lon=factor).mean()
    grids = [Grid(one["lat"].values, one["lon"].values) for one in (fine, low)]
    means = interpolate(fine["t2m"].values, grids[0], grids[1], conservative=True)
    coarse = low.assign(t2m=(("time", "lat", "lon"), means, fine["t2m"].attrs))
    return {"fine": fine, "coarse": coarse}


def forward(data: Data) -> tuple[Data, Data]:
    """Fifteen winters to train on, the five after them to test."""
    steps = np.arange(data["eobs"].sizes["time"])
    return at(data, steps[:TRAINING_DAYS]), at(data, steps[TRAINING_DAYS:])


def folds(data: Data, count: int) -> Iterator[tuple[Data, Data]]:
    """Training and test data of each of `count` blocks of whole winters."""
    time = data["eobs"]["time"].to_index()
    winter = time.year + (time.month == 12)
    names = np.unique(winter)
    for block in np.array_split(names, count):
        inside = np.isin(winter, block)
        yield at(data, np.flatnonzero(~inside)), at(data, np.flatnonzero(inside))
