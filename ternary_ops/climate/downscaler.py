# SPDX-License-Identifier: Apache-2.0
"""Downscaler: a program with all that it takes to read fields into it and write its result.

One file holds the program, the normalisation, variables, units, grids, the mask, static fields and
the training dates. It runs with NumPy and the native core; PyTorch is not needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.climate import model_file
from ternary_ops.climate.grid import Grid, interpolate
from ternary_ops.climate.model_file import Input
from ternary_ops.climate.samples import (
    Features,
    Variable,
    in_memory,
    match,
    season,
    with_previous,
)
from ternary_ops.climate.time_axis import TimeAxis
from ternary_ops.errors import BadConfig, FormatError, need
from ternary_ops.program.program import Program
from ternary_ops.program.receptive_field import radius

Floats = NDArray[np.float64]
_BATCH = 256  # steps that a program takes at once


@dataclass(frozen=True, eq=False)
class Downscaler:
    """A trained downscaling model.

    kind       "local": any extent, in tiles with the halo of the program; "domain": its own grid
    features   what it sees
    inputs     the predictors, in the order of the program's channels
    target     name, units, attributes and grid of what it makes (of a local one, while training)
    cells      of a domain: which cells of the target's grid it makes; the others are missing
    mean       added to the program's numbers after `deviation` has multiplied them
    conserve   of a local one: area means over coarse cells are those of the input
    grid       of the program's input: predictors of a domain are interpolated to it
    dates      steps that it was trained on
    """

    kind: str
    program: Program
    features: Features
    inputs: tuple[Input, ...]
    target: Variable
    mean: Floats
    deviation: float
    grid: Grid
    dates: tuple[str, ...]
    cells: NDArray[np.bool_] = field(default_factory=lambda: np.ones((0, 0), np.bool_))
    conserve: bool = False

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file of kind "downscaler", atomically; `runtime.load` reads its program."""
        model_file.write(Path(path), self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Downscaler:
        """Read a file that `save` wrote; raises FormatError."""
        return Downscaler(**model_file.read(Path(path)))

    @cached_property
    def factor(self) -> int:
        """Of a local model: fine cells along each side of a coarse one."""
        shape = self.program.output_shape((1, self.program.channels, 16, 16))
        return int(shape[2]) // 16

    @cached_property
    def halo(self) -> int:
        """Of a local model: coarse cells that a fine one depends on, to each side."""
        found = radius(self.program.graph)
        if found is None:
            do = "Use a program of convolutions of stride 1; others are of kind 'domain'."
            raise FormatError(need("a program that sees a part of its input", "all of it", do))
        return found + found % 2  # rows of float layers go in pairs, from even ones on

    def images(self, fields: list[NDArray[Any]]) -> Floats:
        """Predictors [steps, rows, columns], in units and order of `inputs`, as channels."""
        if self.kind == "local":
            parts = [np.asarray(one, np.float64) for one in fields]
        else:
            grid = self.grid
            parts = [
                interpolate(one, of.grid, grid, conservative=False)
                for one, of in zip(fields, self.inputs, strict=True)
            ]
        scaled = [
            (part - of.mean) / of.deviation for part, of in zip(parts, self.inputs, strict=True)
        ]
        return np.stack(scaled, 1)

    def domain(self, fields: list[NDArray[Any]], times: TimeAxis, skip: int) -> NDArray[np.float32]:
        """Fields of these steps but the first `skip`, [steps, rows, columns].

        times: of these steps, which say where the step before is one step away (then it is here).
        A step with a missing predictor is missing.
        """
        x = domain_channels(self.images(fields), times, self.features)[skip:]
        made = np.full((len(x), *self.cells.shape), np.nan, np.float32)
        there = np.flatnonzero(np.isfinite(x).all((1, 2, 3)))
        for first in range(0, len(there), _BATCH):
            at = there[first : first + _BATCH]
            rows = self.program(x[at].astype(np.float32)) * self.deviation + self.mean
            one = np.full((len(at), *self.cells.shape), np.nan, np.float32)
            one[:, self.cells] = rows
            made[at] = one
        return made

    def local(self, fields: list[NDArray[Any]], area: Floats | None) -> NDArray[np.float32]:
        """Fields `factor` times as fine, [steps, rows, columns].

        area: relative area of each fine row, for conservation. Coarse cells that are missing are
        missing in the result; the network sees the mean in their place.
        """
        x = self.images(fields)
        missing = ~np.isfinite(x).all(1)
        x = np.where(np.isfinite(x), x, 0).astype(np.float32)
        parts = [self.program(x[i : i + 1])[0, 0] for i in range(len(x))]
        made = np.stack(parts).astype(np.float64) * self.deviation + self.mean
        if self.conserve:
            own = np.asarray(fields[self.own], np.float64)
            made = conserved(made, np.where(missing, 0, own), area, self.factor)
        blocks = missing.repeat(self.factor, 1).repeat(self.factor, 2)
        return np.where(blocks, np.nan, made).astype(np.float32)

    @cached_property
    def own(self) -> int:
        """Of a local model: which input is the coarse field of the target."""
        names = [one.name for one in self.inputs]
        if self.target.name not in names:
            do = "Give the coarse field of the target as a predictor."
            raise BadConfig(need(f"an input {self.target.name!r}", names, do))
        return names.index(self.target.name)

    def __repr__(self) -> str:
        names = ", ".join(f"{one.source}.{one.name}" for one in self.inputs)
        days = f"{self.dates[0]} to {self.dates[-1]}" if self.dates else "no dates"
        return f"Downscaler({self.kind}, {names} -> {self.target.name}, trained on {days})"

    def standardized_by(self, data: Any, units: Any = None) -> Downscaler:
        """A copy for predictors of another model: their grids, and their mean and deviation.

        data: the historical run of that model, data sets of the same names, as for `fit`. Each
        predictor is standardised by its own mean and deviation over these steps, as is usual
        where biases of a climate model must not be taken for weather. Domains alone; raises
        BadConfig.
        """
        if self.kind != "domain":
            raise BadConfig(need("a domain model", "a local one", "Pass its own predictors."))
        wanted = [one.units for one in self.inputs]
        features = replace(
            self.features, inputs=tuple((one.source, one.name) for one in self.inputs)
        )
        found = in_memory(match(data, features, units, False, wanted))
        inputs = []
        for one, of in zip(self.inputs, found.inputs, strict=True):
            part = interpolate(of.values, of.grid, self.grid, conservative=False)
            deviation = part.std(0)
            inputs.append(
                replace(
                    one,
                    grid=of.grid,
                    mean=part.mean(0),
                    deviation=np.where(deviation > 0, deviation, 1.0),
                )
            )
        return replace(self, inputs=tuple(inputs))


def domain_channels(x: Floats, times: TimeAxis, features: Features) -> Floats:
    """Scaled predictors [steps, channels, rows, columns] with the step before and the season."""
    parts = [x]
    if features.previous:
        parts.append(with_previous(x, times, features.gap))
    if features.season:
        parts.append(_everywhere(season(times.phase), x))
    if features.trend:
        parts.append(_everywhere(times.decade[:, None], x))
    return np.concatenate(parts, 1)


def _everywhere(numbers: Floats, x: Floats) -> Floats:
    """Numbers [steps, count] as constant channels of the size of x."""
    return np.broadcast_to(numbers[:, :, None, None], (*numbers.shape, *x.shape[2:]))


def conserved(fine: Floats, coarse: Floats, area: Floats | None, factor: int) -> Floats:
    """The fine field plus, in each coarse cell, one number: the mean becomes that of `coarse`.

    area: relative area of each fine row, None for equal ones. Sums run in one order whatever the
    memory layout, so that tiles give the bits of the whole.
    """
    rows = np.ones(fine.shape[1]) if area is None else area
    total, weight = np.zeros(coarse.shape), np.zeros(coarse.shape)
    for i in range(factor):
        row = rows[i::factor][:, None]
        for j in range(factor):
            total += row * fine[:, i::factor, j::factor]
            weight += row
    lacking = coarse - total / weight
    made: Floats = fine + lacking.repeat(factor, 1).repeat(factor, 2)
    return made
