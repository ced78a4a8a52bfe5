# SPDX-License-Identifier: Apache-2.0
"""Every pattern x zeros on one network: milliseconds in the engine and bytes of the file.

    python bench/patterns.py --isas avx2,avx512vnni --csv patterns.csv

Convolutions but the first are ternary with that share of zero units, the same in every layer, by
magnitude at one stroke; the rest is dense at 8 bits. resnet20 is the CIFAR network of
bench/accuracy.py with its trained weights, others have random ones. An N:M pattern has at least
1 - N/M zeros, so that its rows begin there. Programs are made once, saved, and loaded for each
instruction set; all of them take turns, processor time of one thread. `vs_dense` is the median over
rounds of the time of the dense ternary program over this one's. `match`: the program equals the
NumPy reference bit for bit on that instruction set; without it no time is printed. `empty_quads`
and `zero_weights` are counted in the pruned layers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _measure import (
    CLOCKS,
    RESULTS,
    commit,
    conclude,
    interleave,
    ratio,
    read_rows,
    setup,
    spread,
    stopwatch,
)
from accuracy import trained
from torch import nn

from ternary_ops import runtime
from ternary_ops._native import core
from ternary_ops.benchmark import pruned_networks
from ternary_ops.benchmark.runner import exact
from ternary_ops.nn.patterns import get_pattern
from ternary_ops.program.program import Program

ZEROS = (0.5, 0.75, 0.9, 0.95)
PATTERNS = (
    *("element", "2:4", "1:4", "strided:8"),
    *("1x4", "1x4@1:2", "1x4@1:4", "1x4@strided:4"),
    *("1x16", "4x4", "filter"),
)
DENSE = ("dense", 0.0)
MARKERS = ("<!-- patterns -->\n", "<!-- /patterns -->\n")
IMAGES, SAMPLES = 8, 32


def more(parser: argparse.ArgumentParser) -> None:
    """Options of this bench."""
    parser.add_argument("--model", default="resnet20", help="or a name of SHAPES")
    parser.add_argument("--isas", default="", help="instruction sets, comma-separated")
    parser.add_argument("--page", help="only write the table of --csv into this page")


def empty(program: Program) -> tuple[float, float]:
    """Shares of empty quads and of zero weights in the ternary layers."""
    banks = [w for w in program.graph.weights if w.kind == "ternary"]
    sizes = [w.array.size for w in banks]
    quads = sum((1 - w.density) * n for w, n in zip(banks, sizes, strict=True)) / sum(sizes)
    return quads, sum(int((w.array == 0).sum()) for w in banks) / sum(sizes)


def make(model: str, pattern: str, zeros: float, file: Path) -> dict[str, Any]:
    """Build a case, save its program, and say what it is."""
    unit = "1x4" if pattern == DENSE[0] else pattern
    build: Callable[[], nn.Module] = partial(pruned_networks.network, model)
    channels, side = 3, 32
    if model == "resnet20":
        build = partial(trained, model)
    else:
        channels, side = pruned_networks.shape_of(model)
    x, sample = (pruned_networks.images(n, channels, side, start=n) for n in (IMAGES, SAMPLES))
    case = pruned_networks.pruned(build, x, sample, zeros, unit)
    case.program.save(file)
    quads, weights = empty(case.program)
    print(f"made {pattern} {zeros:.0%}", flush=True)
    return {
        **{"model": model, "pattern": pattern, "zeros": zeros},
        **{"bytes": file.stat().st_size, "empty_quads": round(quads, 4)},
        "zero_weights": round(weights, 4),
    }


def timed(cases: list[tuple[dict[str, Any], Path]], isa: str, rounds: int) -> list[dict[str, Any]]:
    """Rows of one instruction set."""
    core().set_isa(isa)
    timers: dict[Any, Any] = {}
    match: dict[Any, bool] = {}
    for row, file in cases:
        program = runtime.load(file)
        x = np.random.default_rng(0).random((1, *program.sample[1:]), np.float32)
        key = row["pattern"], row["zeros"]
        match[key] = exact(program, x)
        timers[key] = stopwatch(partial(program, x), CLOCKS["cpu"])
    times = interleave(timers, rounds)
    rows = []
    for row, _ in cases:
        key = row["pattern"], row["zeros"]
        own = times[key]
        ms, low, high = (round(v, 3) for v in spread(own))
        figures = {"ms": ms, "ms_p20": low, "ms_p80": high}
        figures["vs_dense"] = round(ratio(times[DENSE], own), 2)
        rows.append(
            {**row, "isa": core().isa(), "rounds": rounds, "clock": "cpu", "match": match[key]}
            | (figures if match[key] else dict.fromkeys(figures, ""))
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/methods/patterns.md: a row a pattern and share, a column an ISA."""
    isas = list(dict.fromkeys(row["isa"] for row in rows))
    cases: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["pattern"], row["zeros"]), {})[row["isa"]] = row
    columns = ("pattern", "zeros", "empty quads", "bytes", *(f"{isa}: ms" for isa in isas))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for (pattern, zeros), own in cases.items():
        row = own[isas[0]]
        times = [f"{float(own[i]['ms']):.3f}, {float(own[i]['vs_dense']):.2f}x" for i in isas]
        cells = (f"`{pattern}`" if pattern != DENSE[0] else pattern, f"{float(zeros):.0%}")
        about = (f"{float(row['empty_quads']):.1%}", f"{int(row['bytes']):,}")
        lines.append("| " + " | ".join((*cells, *about, *times)) + " |")
    where = rows[0]
    lines.append(f"\n{where['machine']}, torch {where['torch']}, commit {where['commit']}.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=21, more=more)
    if options.page:
        page, (begin, end) = Path(options.page), MARKERS
        before, rest = page.read_text(encoding="utf-8").split(begin)
        table = markdown(read_rows(RESULTS / (options.csv or "patterns.csv")))
        page.write_text(before + begin + table + end + rest.split(end)[1], encoding="utf-8")
        return 0
    grid = [(p, z) for p in PATTERNS for z in ZEROS if z >= get_pattern(p).least_zeros]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.safetensors") for number in range(len(grid) + 1)]
        cases = [
            (make(options.model, *case, file), file)
            for case, file in zip([DENSE, *grid], files, strict=True)
        ]
        for isa in filter(None, (options.isas or core().isa()).split(",")):
            rows += timed(cases, isa, options.rounds)
    for row in rows:
        print(
            f"{row['isa']:>11} {row['pattern']:>14} {row['zeros']:>5.0%} {row['ms']:>8} ms "
            f"{row['vs_dense']:>5}x {row['bytes']:>9,} bytes, {row['empty_quads']:.1%} empty quads"
        )
    about = {**about, "commit": commit()}
    return conclude([{**about, **row} for row in rows], options.csv)


if __name__ == "__main__":
    sys.exit(main())
