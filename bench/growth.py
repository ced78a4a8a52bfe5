# SPDX-License-Identifier: Apache-2.0
"""How time grows with density and with the image, beside the fastest dense 8-bit engine.

    python bench/growth.py [--model resnet18] [--against openvino] [--name growth]
    python bench/growth.py --plot-only

Writes bench/results/<name>.csv and, from that file alone, <name>.svg: milliseconds against the
share of occupied quads (0.02 to 1) at the network's own image size, and against the side of the
image (64 to 512) at --zeros. The rival is measured in the same rounds. Where the two lines cross is
the break-even, found by interpolation and marked; a point counts only where outputs match. Points
that the CSV holds already are not measured again: remove it, or their rows, to do so.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from _measure import (
    CLOCKS,
    RESULTS,
    command_line,
    interleave,
    machine,
    ratio,
    read_rows,
    spread,
    stopwatch,
    write_csv,
)

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
SIZES = (64, 96, 128, 224, 320, 512)


def measure(axis: str, density: float, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """One point: ours and the rival's 8-bit engine on one network."""
    import numpy as np
    import torch

    from ternary_ops import runtime
    from ternary_ops.benchmark import baselines, pruned_networks, runner
    from ternary_ops.benchmark.agreement import agreement
    from ternary_ops.benchmark.timing import torch_threads

    zeros = min(1 - density, 0.999)
    net = pruned_networks.by_name(options.model, zeros, size=size, samples=options.samples)
    sample = pruned_networks.images(options.samples, net.x.shape[1], size)
    seen = pruned_networks.images(8, net.x.shape[1], size, start=options.samples)
    x = np.ascontiguousarray(net.x.numpy())
    with torch_threads(1), runtime.num_threads(1), torch.inference_mode():
        found = baselines.engines([options.against], net.dense, net.x, sample, 1)
        (rival,) = [engine for engine in found if engine.name.endswith("int8")]
        ours = baselines.Engine("ternary-ops", net.program, "")
        wanted = net.dense(seen).numpy()
        agrees = [agreement(e.in_batches(seen.numpy(), 1), wanted).match for e in (ours, rival)]
        match = all(agrees) and runner.exact(net.program, x)
        timers = {
            e.name: stopwatch(partial(e.run, x), CLOCKS[options.clock]) for e in (ours, rival)
        }
        times = interleave(timers, options.rounds)
    own, other = times["ternary-ops"], times[rival.name]
    return {
        **{"axis": axis, "model": options.model, "density": density, "size": size},
        **{"match": match, "ms": round(spread(own)[0], 3), "rival": rival.name},
        "rival_ms": round(spread(other)[0], 3),
        "times_ours": round(ratio(other, own), 3) if match else "",
        **{"isa": runtime.isa(), "rounds": options.rounds, "note": rival.note},
        "clock": options.clock,
    }


def crossings(x: list[float], ratios: list[float]) -> list[float]:
    """Where the rival takes exactly as long, by linear interpolation between points."""
    found = []
    for (a, r), (b, s) in itertools.pairwise(zip(x, ratios, strict=True)):
        if (r - 1) * (s - 1) < 0:
            found.append(a + (b - a) * (1 - r) / (s - r))
    return found


def plot(source: Path, target: Path) -> None:
    """Draw the CSV, nothing else."""
    from ternary_ops.charts import new_figure, save_figure

    rows = read_rows(source)
    figure, panels = new_figure(2)
    for axes, axis in zip(panels, ("density", "size"), strict=True):
        points = sorted(
            (row for row in rows if row["axis"] == axis and row["match"] == "True"),
            key=lambda row: float(row[axis]),
        )
        x = [float(row[axis]) for row in points]
        axes.plot(
            x, [float(row["ms"]) for row in points], "o-", color="#2a6f97", label="this package"
        )
        rival = [float(row["rival_ms"]) for row in points]
        axes.plot(x, rival, "s--", color="#bc6c25", label=points[0]["rival"] if points else "")
        even = crossings(x, [float(row["times_ours"]) for row in points])
        for place in even:
            axes.axvline(place, color="gray", linewidth=0.8)
            axes.annotate(f"break-even {place:.3g}", (place, axes.get_ylim()[1] * 0.95), fontsize=7)
        axes.set_xlabel("share of occupied quads" if axis == "density" else "side of the image")
        axes.set_ylabel("ms, one core")
        axes.set_ylim(bottom=0)
        title = f"{len(even)} break-even" if even else "no break-even in this range"
        axes.set_title(title, fontsize=8)
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{rows[0]['model']}, {rows[0]['machine']}, {rows[0]['isa']}", fontsize=8)
    save_figure(figure, target)


def main() -> int:
    """Measure, write, draw."""
    parser = command_line(__doc__, rounds=21)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--against", default="openvino")
    parser.add_argument("--zeros", type=float, default=0.9, help="for the sizes")
    parser.add_argument("--samples", type=int, default=32, help="images to calibrate on")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: see networks.py")
    parser.add_argument("--name", default="growth", help="of the files in bench/results")
    parser.add_argument("--plot-only", action="store_true", help="draw the CSV again")
    options = parser.parse_args()
    table, chart = (RESULTS / f"{options.name}.{suffix}" for suffix in ("csv", "svg"))
    if not options.plot_only:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(*machine().values(), sep="\n")
        from ternary_ops.benchmark.pruned_networks import shape_of

        side = shape_of(options.model)[1]
        points = [("density", density, side) for density in DENSITIES]
        points += [("size", round(1 - options.zeros, 4), size) for size in SIZES]
        rows = read_rows(table)
        if others := {row["model"] for row in rows} - {options.model}:
            sys.exit(f"{table} holds {', '.join(others)}. Pass --name, or remove it.")
        known = {(row["axis"], float(row["density"]), int(row["size"])) for row in rows}
        for point in points:
            if point in known:
                continue
            rows.append(measure(*point, options))
            shown = ("axis", "density", "size", "match", "ms", "rival_ms", "times_ours")
            print(*(f"{name} {rows[-1][name]}" for name in shown), sep="  ", flush=True)
            write_csv(table.name, rows)
    plot(table, chart)
    print("written:", table, chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
