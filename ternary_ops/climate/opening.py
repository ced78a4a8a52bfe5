# SPDX-License-Identifier: Apache-2.0
"""Data sets from files as the command line names them: NetCDF and Zarr, lazily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ternary_ops.climate.xarray_package import INSTALL, xr
from ternary_ops.errors import BadConfig, FormatError, need, needs_package


def open_data(path: str) -> Any:
    """A Dataset of dask arrays, from a NetCDF file or a Zarr folder; FILE:GROUP names a group.

    Raises FormatError for a file that neither is, FileNotFoundError.
    """
    name, colon, group = path.partition(":")
    if colon and Path(path).exists():  # a colon in the name itself
        name, group = path, ""
    if not Path(name).exists():
        raise FileNotFoundError(f"no such file or folder: {name}")
    engine = "zarr" if Path(name).is_dir() else "netcdf4"
    with needs_package("dask", "lazy data", INSTALL), needs_package("zarr", "Zarr", INSTALL):
        try:
            return xr.open_dataset(name, engine=engine, group=group or None, chunks={})
        except (OSError, ValueError, KeyError) as error:
            got = " ".join(str(error).split())[:200]
            do = "Pass a NetCDF file or a Zarr folder; FILE:GROUP names a group of it."
            raise FormatError(need(f"gridded data in {path}", got, do)) from None


def named(texts: Sequence[str], alone: str) -> dict[str, Any]:
    """Data sets of texts NAME=FILE by name; one text without a name is called `alone`."""
    found = {}
    for text in texts:
        name, equals, path = text.partition("=")
        name, path = (name, path) if equals else (alone, text)
        if name in found:
            do = "Name each data set: ncep=FILE."
            raise BadConfig(need("data sets with names of their own", f"{name!r} twice", do))
        found[name] = open_data(path)
    return found


def parse_units(texts: Sequence[str]) -> dict[str, str]:
    """Units by variable, of texts VARIABLE=UNITS."""
    found = {}
    for text in texts:
        name, equals, units = text.partition("=")
        if not equals:
            raise BadConfig(need("units as VARIABLE=UNITS", repr(text), "Pass --units tas=degC."))
        found[name] = units
    return found


def variable_of(data: Any, name: str | None) -> Any:
    """The variable of that name, or the data set's only one; raises BadConfig."""
    names = [str(one) for one in data.data_vars if data[one].ndim >= 2]
    if name is None and len(names) == 1:
        return data[names[0]]
    if name not in names:
        got = name if name else f"{len(names)} of them"
        raise BadConfig(need(f"one of the variables {', '.join(names)}", got, "Use --variable."))
    return data[name]
