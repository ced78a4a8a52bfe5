# SPDX-License-Identifier: Apache-2.0
"""Time a pruned ternary network or layer on this machine, node by node and against other engines.

A network by name gets random weights, every layer pruned to --zeros at one stroke: time depends on
how many quads are left, not on what they hold. "match" says whether an engine computes the same
network up to 8-bit rounding, and the program also, bit for bit, what its NumPy reference gives (on
a corner of the images); a time without a match is not printed. A ceiling is what this processor
multiplies from registers, and is passed where zeros are left out.

example: ternary-ops bench --model resnet18 --zeros 0.9 --against torch,openvino --plot bench.png
example: ternary-ops bench --model net.safetensors
example: ternary-ops bench --op conv2d --shape 64,56,56,64,3 --csv layer.csv
example: ternary-ops bench --static --csv kernels.csv
example: ternary-ops bench --list
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from ternary_ops.errors import BadConfig, MissingExtra, need
from ternary_ops.table import Table, write_csv

_STATIC = (
    *("case", "target", "device", "registers", "spill_bytes", "tensor_core", "widest_load"),
    *("kernel_per_unit", "per_unit", "of_least_bytes", "predicted_us", "of_roofline", "note"),
)
BASELINES = ("torch", "openvino", "onnxruntime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments: the network or layer to time, and the baselines."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--model", default="resnet18", metavar="FILE|NAME", help="a program or a network of models"
    )
    what.add_argument(
        "--static", action="store_true", help="GPU kernels: their machine code, no GPU needed"
    )
    what.add_argument(
        "--list", action="store_true", help="every benchmark of the project and its question"
    )
    what.add_argument("--op", choices=("conv2d", "linear"), help="one layer in place of a network")
    parser.add_argument("--shape", help="conv2d: C,H,W,O,K (K x K filter); linear: K,N")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default 1)")
    parser.add_argument("--zeros", type=float, default=0.9, help="share of empty quads")
    parser.add_argument("--size", type=int, help="side of the images (default: the network's)")
    parser.add_argument(
        "--pattern",
        default="1x4",
        help="1x4, element, int8 (dense, 8 bits), int8+1x4, element+permute",
    )
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument("--against", help=f"of {','.join(BASELINES)} (default torch; a FILE: none)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring (default 3)")
    parser.add_argument("--csv", metavar="OUT.csv", help="save the table")
    parser.add_argument("--plot", metavar="OUT.png", help="save a chart")


def run(arguments: argparse.Namespace) -> int:
    """Print a row per engine and per node; 0, or 1 where results do not match."""
    if arguments.list:
        return _list(arguments)
    if arguments.static:
        return _static(arguments)
    file = not arguments.op and Path(arguments.model).is_file()
    given = arguments.against
    default = "" if file else "torch"
    against = [name for name in (default if given is None else given).split(",") if name]
    _check(arguments, against, file)
    if importlib.util.find_spec("torch") is None:
        do = "pip install 'ternary-ops[train]'"
        raise MissingExtra(need("PyTorch for the networks of bench", "none installed", do))
    from ternary_ops.benchmark import runner

    settings = runner.Settings(
        arguments.batch, arguments.zeros, arguments.threads, arguments.seconds
    )
    if arguments.op:
        result = runner.of_layer(arguments.op, _sizes(arguments), settings, against)
    elif file:
        result = runner.of_file(arguments.model, arguments.size, settings)
    else:
        name, size = arguments.model, arguments.size
        result = runner.of_network(name, size, settings, against, arguments.pattern)
    if arguments.csv:
        write_csv(arguments.csv, result.rows())
    if arguments.plot:
        runner.plot(result, arguments.plot)
    if arguments.json:
        print(json.dumps({"engines": result.engines, "nodes": result.nodes}, indent=2))
    else:
        _show(result.nodes, ("op", "layer", "shape"))
        print()
        _show(result.engines, ("match", "note"))
    return 0 if result.match else 1


def _list(arguments: argparse.Namespace) -> int:
    """The registry; only `ternary-ops bench` itself runs without a checkout of the repository."""
    from ternary_ops.benchmark.bench_table import COLUMNS
    from ternary_ops.benchmark.registry import BENCHES

    rows = [bench.cells() for bench in BENCHES]
    if arguments.json:
        print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=2))
    else:
        notes = ["python bench/...: in a checkout of the repository; results: in bench/results"]
        Table(COLUMNS, rows, notes=notes, words=COLUMNS).show()
    return 0


def _static(arguments: argparse.Namespace) -> int:
    """The report card of ternary_ops.gpu; 1 where a kernel spills or is a trap."""
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("torch") is None:
        do = "pip install 'ternary-ops[gpu]'"
        raise MissingExtra(need("Triton for bench --static", "none installed", do))
    from ternary_ops.gpu import cases, devices, report
    from ternary_ops.progress import progress_bars

    every = [(target, case) for target in devices.TARGETS for case in cases.all_cases()]
    rows: list[dict[str, Any]] = []
    with progress_bars() as bars, bars.stage("compiling", len(every)) as step:
        for target, case in every:
            rows += report.rows(case, target)
            step()
    names = list(dict.fromkeys(name for row in rows for name in row))
    full = [{name: row.get(name) for name in names} for row in rows]
    if arguments.csv:
        write_csv(arguments.csv, full)
    if arguments.json:
        print(json.dumps(full, indent=2))
    else:
        kept = [name for name in names if name in _STATIC]
        words = ("case", "target", "device", "tensor_core", "bound", "note")
        _show([{name: row[name] for name in kept} for row in full], words)
    return 1 if any(report.check(row, None) for row in rows) else 0


def _check(arguments: argparse.Namespace, against: list[str], file: bool) -> None:
    if unknown := sorted(set(against) - set(BASELINES)):
        what = f"as --against one of {', '.join(BASELINES)}"
        raise BadConfig(need(what, unknown[0], "Separate them by commas."))
    if file and against:
        what = "a network by name for --against: a program holds no float weights"
        raise BadConfig(need(what, arguments.model, "Leave it out, or name a network."))
    numbers = (arguments.batch, arguments.threads, 1 if arguments.size is None else arguments.size)
    if min(numbers) < 1:
        what = "--batch, --threads and --size of at least 1"
        raise BadConfig(need(what, min(numbers), "Use 1."))


def _show(rows: list[dict[str, Any]], words: tuple[str, ...]) -> None:
    cells = [[_text(value) for value in row.values()] for row in rows]
    Table(list(rows[0]), cells, words=words).show()


def _sizes(arguments: argparse.Namespace) -> tuple[int, ...]:
    names = ("C", "H", "W", "O", "K") if arguments.op == "conv2d" else ("K", "N")
    try:
        sizes = tuple(int(part) for part in (arguments.shape or "").split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != len(names) or min(sizes) < 1:
        what = f"--shape {','.join(names)} for --op {arguments.op}"
        raise BadConfig(need(what, arguments.shape, "Write --shape 64,56,56,64,3 or 4096,4096."))
    return sizes


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
