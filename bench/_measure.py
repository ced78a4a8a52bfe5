# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing: every contender once a round, so that a slow moment of the machine hits all.

A ratio is the median over rounds of ratios taken within one round, never a ratio of medians of
different moments.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ternary_ops
from ternary_ops._native import core

# Threads of the engine before spin for a while, on cores that this one needs; then its own must be
# awake, each on its core, and caches hold what they would in a loop.
_PAUSE_SECONDS, _WARM_SECONDS = 0.01, 0.03
RESULTS = Path(__file__).resolve().parent / "results"
NETWORKS = RESULTS / "networks"  # program files that bench/accuracy.py trained
PARENTS = RESULTS / "parents"  # dense networks that it starts from, float16

Timer = Callable[[], float]

# "cpu": processor time of the process, which other users of the machine hardly change; for calls of
# one thread only.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def warm(run: Callable[[], object]) -> None:
    """Let other threads settle, then call run for some milliseconds, untimed."""
    time.sleep(_PAUSE_SECONDS)
    end = time.perf_counter() + _WARM_SECONDS
    while time.perf_counter() < end:
        run()


def stopwatch(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> Timer:
    """A timer of one call, in milliseconds, after warming up."""

    def once() -> float:
        warm(run)
        start = clock()
        run()
        return (clock() - start) * 1e3

    return once


def interleave(timers: Mapping[str, Timer], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Milliseconds of every timer in every round."""
    for _ in range(warmup):
        for timer in timers.values():
            timer()
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer())
    return times


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of numerator / denominator."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    ordered = sorted(values)
    return (
        statistics.median(ordered),
        ordered[int(0.2 * (len(ordered) - 1))],
        ordered[int(0.8 * (len(ordered) - 1))],
    )


def machine() -> dict[str, str]:
    """What a reader needs to know about where figures come from."""
    model = "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        model = f"{fields.get('model name', model)} (model {fields.get('model', '?')})"
    return {
        "machine": f"{model}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "command": "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }


def commit() -> str:
    """The short name of the commit that the package in use was checked out from."""
    folder = Path(ternary_ops.__file__).parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()


def command_line(
    doc: str | None, rounds: int | None = None, threads: int | None = None, csv: bool = False
) -> argparse.ArgumentParser:
    """The parser of a bench: its docstring, and those of the common options that it has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds)
    if csv:
        parser.add_argument("--csv", help="file name under bench/results")
    return parser


def headline(about: Mapping[str, object] | None = None) -> None:
    """Print the machine, the command and what else a reader of the figures needs."""
    print(*(f"{key}: {value}" for key, value in {**machine(), **(about or {})}.items()), sep="\n")


def setup(
    doc: str | None, rounds: int, more: Callable[[argparse.ArgumentParser], None] = lambda _: None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parse the options every kernel bench has, and what `more` adds; apply them here and in torch,
    print the setting."""
    parser = command_line(doc, rounds, threads=1, csv=True)
    parser.add_argument("--isa", default="", help="force an instruction set")
    more(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    core().set_num_threads(options.threads)
    core().set_isa(options.isa)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    if limit:  # the other engine does not obey
        torch.backends.quantized.engine = "onednn"
    about = {
        "isa": core().isa(),
        "ternary_ops": core().version,
        "torch": torch.__version__,
        "torch_engine": torch.backends.quantized.engine,
        "onednn_max_cpu_isa": limit,
    }
    headline(about)
    return options, about


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(name: str, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows to bench/results/<name>, with the machine in every row."""
    RESULTS.mkdir(exist_ok=True)
    about = machine()
    # A row that was read back keeps the machine that measured it.
    full = [{**row, **about, **row} for row in rows]
    path = RESULTS / name
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(full[0]))
        writer.writeheader()
        writer.writerows(full)
    os.replace(temporary, path)
    return path


def conclude(rows: Sequence[Mapping[str, object]], name: str | None) -> int:
    """Write the rows where asked; the exit status, 0 where all that have a `match` do."""
    if name:
        print("written:", write_csv(name, rows))
    return 0 if all(row.get("match", True) for row in rows) else 1
