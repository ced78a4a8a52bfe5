# SPDX-License-Identifier: Apache-2.0
"""Show size, zeros, bits and time per layer of saved programs, without torch.

The sample that is timed is random, of the size --sample names; agreement with --against is on it
too, unless --input gives real data (.npy).

example: ternary-ops report digits-ternary.safetensors --sample 1,1,8,8 --plot report.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.cli.run import read_npy
from ternary_ops.errors import BadConfig, need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The programs and the sample."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="programs")
    parser.add_argument("--against", metavar="FILE", help="another program of the same task")
    parser.add_argument(
        "--sample",
        metavar="N,C,H,W",
        help="size of the timed input (default: the one it was compiled with)",
    )
    parser.add_argument("--input", metavar="FILE.npy", help="real data in place of random")
    parser.add_argument("--csv", metavar="OUT.csv", help="save the layer table (one FILE only)")
    parser.add_argument("--plot", metavar="OUT.png", help="save a chart (one FILE only)")


def run(arguments: argparse.Namespace) -> int:
    """Print a report per file; 0."""
    from ternary_ops import runtime
    from ternary_ops.reporting import of_program

    if len(arguments.files) > 1 and (arguments.plot or arguments.csv):
        raise BadConfig(need("one FILE for --plot and --csv", len(arguments.files), "Split them."))
    other = runtime.load(arguments.against) if arguments.against else None
    reports = {}
    for file in arguments.files:
        program = runtime.load(file)
        x = _sample(program, arguments)
        reports[file] = of_program(program, x, Path(file).stat().st_size, other)
    if arguments.json:
        print(json.dumps({file: r.to_dict() for file, r in reports.items()}, indent=2))
    for file, report in reports.items():
        if not arguments.json:
            print(f"{file}\n")
            for table in report.tables():
                table.show()
                print()
        if arguments.csv:
            report.to_csv(arguments.csv)
        if arguments.plot:
            report.plot(arguments.plot)
    return 0


def _sample(program: Any, arguments: argparse.Namespace) -> NDArray[np.float32]:
    channels, rank = program.channels, program.rank
    if arguments.input:
        return read_npy(Path(arguments.input), rank)
    try:
        given = tuple(int(part) for part in (arguments.sample or "").split(",") if part)
    except ValueError:
        given = (0,)
    shape = given or program.sample
    if len(shape) != rank or shape[1] != channels or min(shape) < 1:
        what = f"--sample of {rank} sizes with C = {channels}"
        raise BadConfig(need(what, arguments.sample, "Write --sample 1,3,224,224."))
    return np.random.default_rng(0).random(shape, np.float32)
