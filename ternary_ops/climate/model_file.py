# SPDX-License-Identifier: Apache-2.0
"""Downscaling models as files: kind "downscaler" of `ternary_ops.io.container`.

The index is that of the program with one more entry, "downscaler"; arrays of that entry are weights
whose names begin with "downscaler.". Grids, means and deviations are stored exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.climate.grid import Grid
from ternary_ops.climate.samples import Features, Variable
from ternary_ops.errors import FormatError, TernaryOpsError, need
from ternary_ops.io import container
from ternary_ops.io.safetensors import DAMAGED
from ternary_ops.program import program_file
from ternary_ops.program.program import Program

KIND = program_file.DOWNSCALER
KINDS = ("local", "domain")
_TEXT = (str, int, float, bool, type(None))


@dataclass(frozen=True, eq=False)
class Input:
    """A predictor: where it comes from, in which units and on which grid, and its normalisation.

    mean, deviation: one number for each cell of the network's grid (domain), or for all (local).
    """

    source: str
    name: str
    units: str
    grid: Grid
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def write(path: Path, model: Any) -> None:
    """Write a Downscaler, atomically."""
    index, entries = program_file.contents(model.program.graph, model.program.sample)
    arrays: dict[str, Any] = {
        "target.mean": model.mean,
        "cells": model.cells,
        **_grid_arrays("target", model.target.grid),
        **_grid_arrays("network", model.grid),
    }
    for i, one in enumerate(model.inputs):
        arrays |= {f"{i}.mean": one.mean, f"{i}.deviation": one.deviation}
        arrays |= _grid_arrays(str(i), one.grid)
    about = {
        "kind": model.kind,
        "inputs": [[one.source, one.name, one.units] for one in model.inputs],
        "target": [model.target.source, model.target.name, model.target.units],
        "attrs": {k: v for k, v in model.target.attrs.items() if isinstance(v, _TEXT)},
        "deviation": model.deviation,
        "conserve": model.conserve,
        "season": model.features.season,
        "trend": model.features.trend,
        "previous": model.features.previous,
        "gap": model.features.gap,
        "dates": list(model.dates),
    }
    more = [
        container.WeightEntry(f"{KIND}.{name}", "raw", np.asarray(values))
        for name, values in arrays.items()
    ]
    container.write(path, KIND, {**index, KIND: about}, [*entries, *more])


def read(path: Path) -> dict[str, Any]:
    """The fields of the Downscaler that was written; raises FormatError for any other file."""
    document = container.read(path)
    if document.kind != KIND:
        do = "Load programs with ternary_ops.runtime.load."
        raise FormatError(need(f"a downscaling model in {path}", f"kind {document.kind!r}", do))
    program = Program(*program_file.from_document(path, document))
    arrays = {
        name.removeprefix(f"{KIND}."): entry.array
        for name, entry in document.weights.items()
        if name.startswith(f"{KIND}.")
    }
    try:
        return _model(program, document.index[KIND], arrays)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, TernaryOpsError):
            raise
        got = f"{type(error).__name__}: {error}"
        raise FormatError(need(f"the parts of a model in {path}", got, DAMAGED)) from None


def _model(program: Program, about: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    if about["kind"] not in KINDS:
        raise FormatError(need(f"a model of kind {' or '.join(KINDS)}", about["kind"], DAMAGED))
    inputs = tuple(
        Input(
            str(source),
            str(name),
            str(units),
            _grid(arrays, str(i)),
            arrays[f"{i}.mean"],
            arrays[f"{i}.deviation"],
        )
        for i, (source, name, units) in enumerate(about["inputs"])
    )
    source, name, units = map(str, about["target"])
    return dict(
        kind=about["kind"],
        program=program,
        features=Features(
            target=source,
            variable=name,
            inputs=tuple((one.source, one.name) for one in inputs),
            season=bool(about["season"]),
            trend=bool(about["trend"]),
            previous=bool(about["previous"]),
            gap=str(about["gap"]),
        ),
        inputs=inputs,
        target=Variable(source, name, None, _grid(arrays, "target"), units, dict(about["attrs"])),
        mean=arrays["target.mean"],
        deviation=float(about["deviation"]),
        grid=_grid(arrays, "network"),
        dates=tuple(map(str, about["dates"])),
        cells=arrays["cells"],
        conserve=bool(about["conserve"]),
    )


def _grid_arrays(name: str, grid: Grid) -> dict[str, Any]:
    return {f"{name}.lat": grid.lat, f"{name}.lon": grid.lon}


def _grid(arrays: dict[str, Any], name: str) -> Grid:
    return Grid(arrays[f"{name}.lat"], arrays[f"{name}.lon"])
