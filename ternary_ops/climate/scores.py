# SPDX-License-Identifier: Apache-2.0
"""Scores of downscaled fields: errors, tails, spectra, conservation.

Every figure is pooled over cells and steps; cells without a value in the truth do not count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.climate.grid import Grid, aligned, check_grid, interpolate
from ternary_ops.climate.time_axis import common, refuse_shared, time_axis
from ternary_ops.climate.units import conversion
from ternary_ops.errors import BadConfig, need

Floats = NDArray[np.float64]
QUANTILES = (5, 95, 99)


def score(made: Any, truth: Any, model: Any = None, coarse: Any = None) -> dict[str, float]:
    """Compare two DataArrays at the steps that both have.

    model: whose `dates` it was trained on; a shared one is refused (BadConfig). coarse: the field
    that was downscaled; then "conservation" is there.

    rmse, bias (made - truth), rmse_without_bias (less each cell's own bias), correlation;
    p5, p95, p99: mean over cells of the error of that quantile; spectrum: mean absolute difference
    of the radial log10 spectra; conservation: largest difference of a coarse cell's area mean from
    `coarse`, relative to that field's largest magnitude.
    """
    (made, grid), (truth, other) = aligned(made), aligned(truth)
    check_grid("the result", grid, other)
    axes = [time_axis(one.to_dataset(name="x")) for one in (made, truth)]
    at = common([axis.keys for axis in axes])
    if model is not None:
        refuse_shared(model.dates, [axes[0].keys[i] for i in at[0]])
    a, b = (_values(one, i) for one, i in zip((made, truth), at, strict=True))
    if "units" in made.attrs and "units" in truth.attrs:
        factor, offset = conversion(made.attrs["units"], truth.attrs["units"])
        a = a * factor + offset
    figures = compare(a, b)
    if coarse is not None:
        figures["conservation"] = _conservation(made, grid, coarse)
    return figures


def compare(made: Floats, truth: Floats) -> dict[str, float]:
    """The same of arrays [steps, rows, columns]; raises BadConfig where nothing can be compared."""
    cells = np.isfinite(truth).any(0)
    if not cells.any():
        raise BadConfig(need("values in the truth", "missing ones alone", "Check the period."))
    a, b = made[:, cells], truth[:, cells]
    there = np.isfinite(a) & np.isfinite(b)
    if not there.any():
        do = "Check gaps, masks and period of the result."
        raise BadConfig(need("values in the result where the truth has some", "none", do))
    a, b = np.where(there, a, np.nan), np.where(there, b, np.nan)
    error = a - b
    cell_bias = np.nanmean(error, 0)
    figures = {
        "rmse": float(np.sqrt(np.nanmean(error**2))),
        "bias": float(np.nanmean(error)),
        "rmse_without_bias": float(np.sqrt(np.nanmean((error - cell_bias) ** 2))),
        "correlation": float(np.corrcoef(a[there], b[there])[0, 1]),
    }
    for q in QUANTILES:
        difference = np.nanpercentile(a, q, axis=0) - np.nanpercentile(b, q, axis=0)
        figures[f"p{q}"] = float(np.mean(difference))
    figures["spectrum"] = spectrum_distance(made, truth)
    figures["values"] = float(there.sum())
    return figures


def radial_spectrum(fields: Floats) -> Floats:
    """Mean power of fields [steps, rows, columns] by wave number, cells without values set to 0.

    Fields are their deviations from the mean of each step over its cells, under a Hann window.
    """
    there = np.isfinite(fields)
    count = np.maximum(there.sum((1, 2), keepdims=True), 1)
    mean = np.where(there, fields, 0).sum((1, 2), keepdims=True) / count
    plain = np.where(there, fields - mean, 0)
    height, width = plain.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = (np.abs(np.fft.rfft2(plain * window)) ** 2).mean(0)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    radius = np.hypot(rows, columns)
    steps = max(2, min(height, width) // 2)
    ring = np.minimum((radius / 0.5 * steps).astype(int), steps)
    counts = np.bincount(ring.ravel(), minlength=steps + 1)[1:steps]
    power_in = np.bincount(ring.ravel(), power.ravel(), minlength=steps + 1)[1:steps]
    made: Floats = power_in / np.maximum(counts, 1)
    return made


def spectrum_distance(made: Floats, truth: Floats) -> float:
    """Mean absolute difference of log10 spectra over wave numbers, cells of both alone."""
    both = np.isfinite(made) & np.isfinite(truth)
    steps = both.any((1, 2))
    spectra = [radial_spectrum(np.where(both, one, np.nan)[steps]) for one in (made, truth)]
    least = 1e-12 * max(float(spectra[1].max()), 1e-300)
    logs = [np.log10(np.maximum(one, least)) for one in spectra]
    return float(np.abs(logs[0] - logs[1]).mean())


def conservation_error(fine: Floats, grid: Grid, coarse: Floats, other: Grid) -> float:
    """Largest relative difference between coarse cells and the area means of their fine cells."""
    means = interpolate(fine, grid, other, conservative=True)
    there = np.isfinite(means) & np.isfinite(coarse)
    if not there.any():
        return float("nan")
    return float(np.abs(means - coarse)[there].max() / np.abs(coarse[there]).max())


def _conservation(made: Any, grid: Grid, coarse: Any) -> float:
    coarse, other = aligned(coarse)
    axes = [time_axis(one.to_dataset(name="x")) for one in (made, coarse)]
    at = common([axis.keys for axis in axes])
    fine, low = (_values(one, i) for one, i in zip((made, coarse), at, strict=True))
    if "units" in made.attrs and "units" in coarse.attrs:
        factor, offset = conversion(coarse.attrs["units"], made.attrs["units"])
        low = low * factor + offset
    return conservation_error(fine, grid, low, other)


def _values(field: Any, at: NDArray[np.int64]) -> Floats:
    return np.asarray(field.isel(time=at).transpose("time", ...).values, np.float64)
