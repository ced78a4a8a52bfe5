# SPDX-License-Identifier: Apache-2.0
"""Make climate fields finer with a downscaling model.

IN: NetCDF files or Zarr folders, FILE:GROUP for a group; NAME=FILE where the model reads several
data sets. OUT: a NetCDF file, or a Zarr folder where the name ends in .zarr; it appears whole or
not at all. --model is a file that `ternary-ops climate fit` wrote. Chunks are computed one after
the other, so that memory does not grow with the data. Needs pip install 'ternary-ops[climate]'.

example: ternary-ops downscale coarse.nc fine.nc --model iberia.safetensors --chunk 256
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ternary_ops.errors import BadConfig, need

_STEPS = 64  # of time in a chunk of a local model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments: data, output and options."""
    parser.add_argument("inputs", metavar="IN", nargs="+", help="FILE, or NAME=FILE of several")
    parser.add_argument("output", metavar="OUT", help="NAME.nc, or NAME.zarr")
    parser.add_argument("--model", metavar="FILE", required=True, help="a downscaling model")
    parser.add_argument("--variable", metavar="NAME", help="of IN, where its name is another one")
    parser.add_argument("--chunk", type=int, metavar="N", default=256, help="cells, or steps")
    parser.add_argument("--units", metavar="VARIABLE=UNITS", action="append", default=[])
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(arguments: argparse.Namespace) -> int:
    """Read, downscale, write."""
    from ternary_ops import climate
    from ternary_ops.climate import opening
    from ternary_ops.climate.progress import shown

    model = climate.Downscaler.load(arguments.model)
    data = opening.named(arguments.inputs, model.inputs[0].source)
    if arguments.variable is not None:
        data = _renamed(data, arguments.variable, model)
    units = opening.parse_units(arguments.units)
    chunks: Any = {"time": arguments.chunk}
    if model.kind == "local":
        chunks = {"time": _STEPS, "lat": arguments.chunk, "lon": arguments.chunk}
    fine = climate.downscale(data, model, chunks, units)
    with shown(fine, "downscale", arguments.quiet or arguments.json):
        climate.write(fine, arguments.output, arguments.overwrite)
    about = {"output": arguments.output, "shape": list(fine.shape), "variable": fine.name}
    if arguments.json:
        print(json.dumps(about))
    elif not arguments.quiet:
        print(f"{arguments.output}: {fine.name} {' x '.join(map(str, fine.shape))}")
    return 0


def _renamed(data: dict[str, Any], name: str, model: Any) -> dict[str, Any]:
    """Data in which the model's own field has the name that the model knows."""
    own = model.target.name
    holders = [source for source, one in data.items() if name in one.data_vars]
    if len(holders) != 1:
        got = f"{len(holders)} data sets with {name!r}"
        raise BadConfig(need(f"one data set with a variable {name!r}", got, "Check --variable."))
    if name == own:
        return data
    one = data[holders[0]].drop_vars(own, errors="ignore").rename({name: own})
    return {**data, holders[0]: one}
