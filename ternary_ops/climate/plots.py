# SPDX-License-Identifier: Apache-2.0
"""Maps of fields, off screen; matplotlib is imported at first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ternary_ops.charts import new_figure, save_figure
from ternary_ops.climate.grid import aligned, edges
from ternary_ops.errors import BadConfig, need


def plot_map(field: Any, path: str | Path, step: int = 0, relief: Any = None) -> None:
    """Draw one step of a field; the suffix of `path` chooses PNG, SVG or PDF.

    relief: a field of heights, whose zero contour is drawn as the coastline. Raises BadConfig for a
    step that is not there, MissingExtra without matplotlib.
    """
    field, grid = aligned(field)
    if "time" in field.dims:
        if not -len(field["time"]) <= step < len(field["time"]):
            got, do = f"step {step}", "Count from 0."
            raise BadConfig(need(f"one of {len(field['time'])} steps", got, do))
        field = field.isel(time=step)
    figure, (axes,) = new_figure(1)
    values = np.asarray(field.values, np.float64)
    drawn = axes.pcolormesh(edges(grid.lon), edges(grid.lat), values, cmap="viridis")
    figure.colorbar(drawn, ax=axes, label=f"{field.name} ({field.attrs.get('units', '')})")
    if relief is not None:
        heights, place = aligned(relief)
        coast = np.asarray(heights.values, np.float64)
        axes.contour(place.lon, place.lat, coast, levels=[0.0], colors="black", linewidths=0.6)
        axes.set_xlim(edges(grid.lon)[[0, -1]])
        axes.set_ylim(edges(grid.lat)[[0, -1]])
    # A degree of longitude is shorter by the cosine of the latitude.
    axes.set_aspect(1 / np.cos(np.radians(grid.lat.mean())))
    if "time" in field.coords:
        axes.set_title(str(field["time"].dt.strftime("%Y-%m-%d %H:%M").values), fontsize=9)
    save_figure(figure, path)
