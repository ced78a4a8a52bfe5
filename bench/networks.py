# SPDX-License-Identifier: Apache-2.0
"""Whole networks against OpenVINO, ONNX Runtime and torch, 8-bit and float32, in one run.

    python bench/networks.py --models resnet18 --zeros 0.9 --threads 1,2 --out networks.csv

One row an engine. A case is a network with a share of empty units over all convolutions but the
first (that one, depthwise ones and the classifier are dense, 8 bits); weights are random, ranges
and BatchNorm come from the images. Rivals get the float32 network of the same weights and quantize
it themselves. Engines take turns in one process that may use as many cores as it has threads; a
ratio is the median over rounds. `match`: the same outputs on --images images, up to 8-bit rounding
(ternary_ops/benchmark/agreement.py); ours also equals the NumPy reference bit for bit on a corner.
Without a match on both sides no ratio is printed. Rows that --out holds already are not measured
again: an interrupted run goes on where it was. --patterns: 1x4, element and element+permute are
ternary, int8+1x4 has 8-bit weights in quads, int8 is dense at 8 bits whatever --zeros says, and
fastest, smallest and safe are recipes with that share of zeros (fastest: the stem in 8-bit quads).
TERNARY_OPS_ISA=avx2 is for ours alone; ONEDNN_MAX_CPU_ISA=AVX2 asks OpenVINO for the same.
--clock cpu counts the processor time of the process, for a machine that others use at the same
time; it is for one thread only.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
)


class Case(NamedTuple):
    """What is measured in one process."""

    model: str
    size: int
    batch: int
    threads: int
    pattern: str
    zeros: float
    scope: str

    def key(self) -> tuple[str, ...]:
        """As the fields stand in a CSV."""
        return tuple(str(value) for value in self)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__, rounds=21)
    parser.add_argument("--models", default="resnet18", help="comma-separated")
    parser.add_argument("--patterns", default="1x4", help="see above")
    parser.add_argument("--zeros", default="0.9", help="shares, comma-separated")
    parser.add_argument("--size", default="", help="sides of the image (default: the network's)")
    parser.add_argument("--batch", default="1", help="images at once, comma-separated")
    parser.add_argument("--threads", default="1", help="comma-separated")
    parser.add_argument("--against", default="openvino,onnxruntime,torch")
    parser.add_argument("--scope", default="layer", choices=("layer", "global", "time"))
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--samples", type=int, default=16, help="images to calibrate on")
    parser.add_argument("--images", type=int, default=16, help="images to compare outputs on")
    parser.add_argument("--out", default="networks.csv", help="file name under bench/results")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All combinations; density does not matter to pattern int8, which comes once."""
    from ternary_ops.benchmark.pruned_networks import shape_of
    from ternary_ops.quantize.recipes import RECIPES

    grids = (options.models, options.patterns, options.zeros, options.batch, options.threads)
    lists = [[part for part in text.split(",") if part] for text in grids]
    seen = set()
    for model, pattern, zeros, batch, threads in itertools.product(*lists):
        sizes = [int(s) for s in options.size.split(",") if s] or [shape_of(model)[1]]
        for size in sizes:
            share = 0.0 if pattern == "int8" else float(zeros)
            recipe = RECIPES.get(pattern)
            scope = options.scope if recipe is None else recipe.config.scope
            case = Case(model, size, int(batch), int(threads), pattern, share, scope)
            if case not in seen:
                seen.add(case)
                yield case


def done(rows: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Keys of the cases that are in these rows."""
    return {tuple(row[name] for name in Case._fields) for row in rows}


class Work(NamedTuple):
    """Multiply-adds of the dense network, and the peaks of one core they are held against."""

    macs: int
    threads: int
    peaks: Any

    def speed(self, times: Sequence[float], in_floats: bool) -> dict[str, float]:
        """Columns of one engine's milliseconds."""
        ms, low, high = spread(times)
        peak = self.peaks.float_gmac_s if in_floats else self.peaks.int8_gmac_s
        made = self.macs / ms / 1e6
        columns = {"ms": round(ms, 3), "ms_p20": round(low, 3), "ms_p80": round(high, 3)}
        return columns | {
            "gmac_s": round(made, 1),
            "of_ceiling": round(made / peak / self.threads, 3),
        }


def measure(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row an engine."""
    import numpy as np
    import torch

    from ternary_ops import runtime
    from ternary_ops.benchmark import baselines, pruned_networks, runner
    from ternary_ops.benchmark.agreement import agreement
    from ternary_ops.benchmark.timing import torch_threads
    from ternary_ops.program import peak
    from ternary_ops.program.shapes import infer, macs

    with runtime.num_threads(case.threads):  # of scope time's costs too
        wanted = (case.model, case.zeros, case.pattern, case.batch, case.size, case.scope)
        net = pruned_networks.by_name(*wanted, samples=options.samples)
    images = partial(pruned_networks.images, channels=net.x.shape[1], size=case.size)
    sample, seen = images(options.samples), images(options.images, start=options.samples)
    array, program = np.ascontiguousarray(net.x.numpy()), net.program
    exact = runner.exact(program, array)
    with torch_threads(case.threads), runtime.num_threads(case.threads), torch.inference_mode():
        families = [name for name in options.against.split(",") if name]
        found = baselines.engines(families, net.dense, net.x, sample, case.threads)
        ours = baselines.Engine("ternary-ops", program, f"isa {runtime.isa()}, exact {exact}")
        answers = net.dense(seen).numpy()
        fake = agreement(program(seen.numpy()), net.trained(seen).numpy())
        engines = (ours, *found)
        agrees = {
            e.name: agreement(e.in_batches(seen.numpy(), case.batch), answers) for e in engines
        }
        matches = {name: a.match for name, a in agrees.items()}
        matches["ternary-ops"] &= exact
        timers = {e.name: stopwatch(partial(e.run, array), CLOCKS[options.clock]) for e in engines}
        times = interleave(timers, options.rounds)
        peaks = peak.measure()
    shapes = infer(program.graph, case.batch, *array.shape[2:])
    always = {
        **{name: round(value, 1) for name, value in vars(peaks).items()},
        **{"images": options.images, "rounds": options.rounds, "clock": options.clock},
        "real_images": pruned_networks.data_folder() is not None,
        "load": round(os.getloadavg()[0], 2),
    }
    work = Work(sum(macs(program.graph, shapes)), case.threads, peaks)
    rows = []
    for engine in engines:
        name = engine.name
        proven = matches[name] and matches["ternary-ops"]
        faster = round(ratio(times[name], times["ternary-ops"]), 3) if proven else ""
        rows.append(
            {
                **case._asdict(),
                **{"engine": name, "match": matches[name], "times_ours": faster},
                **work.speed(times[name], name.endswith("fp32")),
                **{key: round(value, 4) for key, value in vars(agrees[name]).items()},
                "top1_fake_quant": round(fake.top1, 4) if engine is ours else "",
                **always,
                "note": engine.note,
            }
        )
    return rows


def commit() -> str:
    """The commit of the checkout, with a + when files differ from it."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py", "*.inl", "*.cpp"])
    except OSError:
        return "unknown"
    return (head.stdout.strip() or "unknown") + ("+" if dirty.returncode else "")


def worker(options: argparse.Namespace) -> int:
    """Measure one case here, print it, add its rows to the CSV."""
    from ternary_ops import __version__
    from ternary_ops.table import write_csv

    model, size, batch, threads, pattern, zeros, scope = options.case.split(",")
    case = Case(model, int(size), int(batch), int(threads), pattern, float(zeros), scope)
    about = {**machine(), "ternary_ops": __version__, "commit": commit()}
    about["command"] = os.environ["BENCH_COMMAND"]
    rows = [{**row, **about} for row in measure(case, options)]
    for row in rows:
        text = f"{row['times_ours']:.2f}x" if row["times_ours"] else "-"
        print(
            f"  {row['engine']:18} {row['ms']:9.3f} ms  {text:>8}  match {row['match']!s:5}"
            f"  error {row['error']:.3f}  top-1 {row['top1']:.2f}  {row['of_ceiling']:5.2f} of peak"
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / options.out
    write_csv(path, [*read_rows(path), *rows])
    return 0 if all(row["match"] for row in rows) else 1


def main() -> int:
    """A process a case, pinned to as many cores as it has threads."""
    options = arguments()
    if options.case:
        return worker(options)
    cores = sorted(os.sched_getaffinity(0))
    about = machine()
    print(about["machine"], about["command"], sep="\n")
    failed = 0
    for case in cases(options):
        if case.key() in done(read_rows(RESULTS / options.out)):
            continue
        if options.clock == "cpu" and case.threads > 1:
            sys.exit(f"--clock cpu needs --threads 1, got {case.threads}. Use --clock wall.")
        if case.threads > len(cores):
            sys.exit(f"--threads {case.threads} needs as many cores, got {len(cores)}. Use fewer.")
        print(", ".join(f"{k} {v}" for k, v in case._asdict().items()), flush=True)
        env = {
            **os.environ,
            "OMP_NUM_THREADS": str(case.threads),
            "BENCH_COMMAND": about["command"],
        }
        pinned = partial(os.sched_setaffinity, 0, cores[-case.threads :])
        call = [sys.executable, *sys.argv, "--case", ",".join(case.key())]
        failed += subprocess.run(call, env=env, preexec_fn=pinned).returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
