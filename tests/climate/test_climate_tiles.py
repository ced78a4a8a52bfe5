# SPDX-License-Identifier: Apache-2.0
"""Chunked results have the bits of the whole: tiles, borders, globes, stretches of time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import climate_data as made
import numpy as np
import pytest

from ternary_ops import climate, runtime
from ternary_ops.climate.grid import interpolate
from ternary_ops.errors import BadConfig, UnsupportedShape

dask = pytest.importorskip("dask", reason="NOT RUN: pip install '.[climate]'")


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("rows, columns, chunk", [(13, 17, 5), (9, 8, 2), (6, 31, 30)])
def test_tiles_are_the_whole(quantized: bool, rows: int, columns: int, chunk: int) -> None:
    model = made.local_model(quantized=quantized)
    data = made.dataset(made.grid(rows, columns), days=5)
    whole = climate.downscale(data, model)
    assert whole.shape == (5, 2 * rows, 2 * columns) and np.isfinite(whole.values).all()
    lazy = climate.downscale(data, model, chunks=chunk)
    assert lazy.chunks is not None and len(lazy.chunks[1]) >= rows // (chunk + 1)
    np.testing.assert_array_equal(lazy.values, whole.values)
    np.testing.assert_array_equal(climate.downscale(data.chunk(lat=3, time=2), model), whole)


def test_the_halo_is_needed_and_derived_from_the_program() -> None:
    model = made.local_model()
    assert model.halo == 4  # three convolutions, rounded up to pairs of rows
    assert made.local_model(depth=6).halo == 6
    less = replace(model)
    less.__dict__["halo"] = 0
    data = made.dataset(made.grid(13, 17), days=5)
    whole, torn = climate.downscale(data, model), climate.downscale(data, less, chunks=4)
    assert not np.array_equal(whole.values, torn.values)


@pytest.mark.parametrize("first", [0, 5])
def test_a_globe_has_no_seam(first: int) -> None:
    """Rolled longitudes give the rolled result; tiles, the whole one."""
    model = made.local_model(conserve=False)
    data = made.dataset(made.globe(6, 20), days=5)
    rolled = data.roll(lon=-first, roll_coords=True)
    whole, turned = climate.downscale(data, model), climate.downscale(rolled, model)
    np.testing.assert_array_equal(np.roll(whole.values, -2 * first, 2), turned.values)
    np.testing.assert_array_equal(climate.downscale(rolled, model, chunks=3), turned)
    flat = made.dataset(made.grid(6, 20), days=5)
    flat["tas"] = flat["tas"].copy(data=data["tas"].values)
    assert not np.array_equal(climate.downscale(flat, model).values, whole.values)


def test_conservation_is_exact_and_missing_cells_stay_missing() -> None:
    model = made.local_model(3)
    data = made.dataset(made.grid(7, 9), days=5)
    data["tas"][1, 2, 3] = np.nan
    fine = climate.downscale(data, model)
    lost = np.isnan(fine.values)
    assert lost.sum() == 9 and lost[1, 6:9, 9:12].all()
    fine_grid = made.grid(7, 9).refined(3)
    means = interpolate(np.nan_to_num(fine.values), fine_grid, made.grid(7, 9), True)
    there = np.isfinite(data["tas"].values)
    low = data["tas"].values.astype(np.float64)
    assert np.abs(means - low)[there].max() <= 1e-6 * np.abs(low[there]).max()
    score = climate.score(fine, fine, coarse=data["tas"])
    assert score["conservation"] <= 1e-6 and score["rmse"] == 0
    loose = climate.downscale(data, replace(model, conserve=False))
    assert climate.score(loose, loose, coarse=data["tas"])["conservation"] > 1e-3


def test_descending_latitudes_and_other_longitudes_are_the_same_field() -> None:
    model = made.local_model()
    data = made.dataset(made.grid(6, 7), days=5)
    whole = climate.downscale(data, model)
    turned = data.isel(lat=slice(None, None, -1))
    np.testing.assert_array_equal(climate.downscale(turned, model), whole)
    east = climate.downscale(data.assign_coords(lon=data["lon"] + 360), model)
    np.testing.assert_array_equal(east.values, whole.values)


def test_units_are_converted_or_refused() -> None:
    pytest.importorskip("pint", reason="NOT RUN: pip install '.[climate]'")
    model = made.local_model()
    data = made.dataset(made.grid(6, 7), days=5)
    kelvin = data.astype(np.float64) + 273.15
    kelvin["tas"].attrs["units"] = "K"
    whole = climate.downscale(data, model)
    np.testing.assert_allclose(climate.downscale(kelvin, model), whole, atol=2e-5)
    assert whole.attrs["units"] == "degC"
    bare = data.copy()
    bare["tas"].attrs = {}
    with pytest.raises(BadConfig, match="units of 'tas'"):
        climate.downscale(bare, model)
    np.testing.assert_array_equal(climate.downscale(bare, model, units={"tas": "degC"}), whole)
    with pytest.raises(BadConfig, match="convert to 'degC'"):
        climate.downscale(bare, model, units={"tas": "kg"})
    with pytest.raises(BadConfig, match="got units of 'pr'"):
        climate.downscale(bare, model, units={"pr": "mm"})


def broken(data: Any, how: str) -> Any:
    if how == "no lat":
        return data.rename(lat="row").drop_vars("row")
    if how == "not monotonic":
        return data.assign_coords(lat=[36.0, 38.0, 37.0, 42.0, 44.0, 46.0])
    if how == "time falls":
        return data.isel(time=[1, 0, 2])
    if how == "time as numbers":
        return data.assign_coords(time=np.arange(5.0))
    return data.rename(tas="tos")


@pytest.mark.parametrize(
    "how, said",
    [
        ("no lat", "latitude dimension"),
        ("not monotonic", "monotonic"),
        ("time falls", "rising"),
        ("time as numbers", "dates"),
        ("name", "variable 'tas'"),
    ],
)
def test_bad_data_is_named(how: str, said: str) -> None:
    data = broken(made.dataset(made.grid(6, 7), days=5), how)
    with pytest.raises(BadConfig, match=said):
        climate.downscale(data, made.local_model())


def test_a_saved_local_model_gives_the_same_bits(tmp_path: Path) -> None:
    model = made.local_model(channels=2)
    model.save(tmp_path / "m.safetensors")
    again = climate.Downscaler.load(tmp_path / "m.safetensors")
    data = made.dataset(made.grid(6, 7), ("tas", "v1"), days=5)
    np.testing.assert_array_equal(
        climate.downscale(data, again, chunks=3), climate.downscale(data, model)
    )
    assert again.dates == model.dates and again.features == model.features
    program = runtime.load(tmp_path / "m.safetensors")
    assert program.output_shape((1, 2, 5, 6)) == (1, 1, 10, 12)
    with pytest.raises(UnsupportedShape, match="coarse.v1"):
        mixed = data.copy()
        mixed["v1"] = (
            mixed["v1"].rename(lat="latitude").assign_coords(latitude=data["lat"].values + 1)
        )
        climate.downscale(mixed, model)
