# SPDX-License-Identifier: Apache-2.0
"""Small climate data sets, and programs that downscale them, made without training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

xr = pytest.importorskip("xarray", reason="NOT RUN: pip install '.[climate]'")

from ternary_ops import compile as compile_network  # noqa: E402
from ternary_ops.climate import Downscaler, Features  # noqa: E402
from ternary_ops.climate.grid import Grid  # noqa: E402
from ternary_ops.climate.model_file import Input  # noqa: E402
from ternary_ops.climate.samples import Variable  # noqa: E402

DAYS = 40


def grid(rows: int = 5, columns: int = 6, step: float = 2.0) -> Grid:
    return Grid(36 + step * np.arange(rows), -10 + step * np.arange(columns))


def globe(rows: int, columns: int) -> Grid:
    step = 360 / columns
    lat = -90 + (np.arange(rows) + 0.5) * 180 / rows
    return Grid(lat, (np.arange(columns) + 0.5) * step)


def winters(days: int = DAYS, runs: int = 5) -> Any:
    """Daily dates in `runs` stretches with gaps of a year between."""
    import pandas

    each = days // runs
    parts = [pandas.date_range(f"{1990 + i}-12-01", periods=each) for i in range(runs)]
    return np.concatenate(parts)


def dataset(
    on: Grid,
    names: tuple[str, ...] = ("tas",),
    days: int = DAYS,
    seed: int = 0,
    units: str = "degC",
) -> Any:
    """Smooth random fields."""
    rng = np.random.default_rng(seed)
    time = winters(days)
    made = xr.Dataset(coords={"time": time, "lat": on.lat, "lon": on.lon})
    for name in names:
        values = rng.normal(size=(len(time), *on.shape)).cumsum(1).cumsum(2) / 3 + 8
        made[name] = ("time", "lat", "lon"), values.astype(np.float32), {"units": units}
    return made


def pair(factor: int = 2, days: int = DAYS) -> dict[str, Any]:
    """A fine target, with two cells at sea, whose area means are among the predictors."""
    coarse = grid()
    fine = dataset(coarse.refined(factor), days=days)
    from ternary_ops.climate.grid import interpolate

    low = fine.coarsen(lat=factor, lon=factor).mean()
    means = interpolate(fine["tas"].values, coarse.refined(factor), coarse, conservative=True)
    low = low.assign(tas=(("time", "lat", "lon"), means, {"units": "degC"}))
    return {"target": fine, "coarse": low.assign_coords(lat=coarse.lat, lon=coarse.lon)}


def local_model(
    factor: int = 2,
    channels: int = 1,
    quantized: bool = False,
    conserve: bool = True,
    depth: int = 3,
) -> Downscaler:
    """A local model with random weights."""
    import torch

    import ternary_ops as tops
    from ternary_ops.climate.networks import LocalNetwork

    torch.manual_seed(1)
    net = LocalNetwork(channels, 0, factor, 8, depth).eval()
    torch.nn.init.normal_(net.tail.weight, std=0.1)
    example = torch.randn(2, channels, 8, 9)
    if quantized:
        tops.quantize_(net, tops.TernaryConfig(weights="int8"))
        tops.calibrate(net, [example])
    on = grid()
    names = [f"v{i}" for i in range(channels)]
    names[0] = "tas"
    one = np.asarray(1.0)
    inputs = tuple(Input("coarse", n, "degC", on, 8 * one, 2 * one) for n in names)
    return Downscaler(
        kind="local",
        program=compile_network(net, example),
        features=Features(
            "target", "tas", tuple(("coarse", n) for n in names), False, False, False
        ),
        inputs=inputs,
        target=Variable("target", "tas", None, on.refined(factor), "degC", {}),
        mean=8 * one,
        deviation=2.0,
        grid=on,
        dates=("1980-01-01",),
        conserve=conserve,
    )
