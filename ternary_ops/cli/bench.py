# SPDX-License-Identifier: Apache-2.0
"""Time a pruned ternary network or layer on this machine against other engines.

The weights are random, every layer pruned to --zeros at one stroke: time depends on how many quads
are left, not on what they hold. "match" says whether the program gave, bit for bit, what its NumPy
reference gives (on a corner of the images); a time without a match is not printed.

example: ternary-ops bench --model resnet18 --zeros 0.9 --against torch
example: ternary-ops bench --op conv2d --shape 64,56,56,64,3 --csv layer.csv
"""

from __future__ import annotations

import argparse
import importlib.util
import json

from ternary_ops.errors import BadConfig, MissingExtra, need
from ternary_ops.table import Table, write_csv

MODELS = {
    "resnet18": (3, 224, 224),
    "resnet50": (3, 224, 224),
    "cifar_resnet": (3, 32, 32),
    "digits_resnet": (1, 8, 8),
}
RIVALS = ("torch", "openvino", "onnxruntime")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to time, and against what."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", choices=MODELS, default="resnet18", help="default resnet18")
    what.add_argument("--op", choices=("conv2d", "linear"), help="one layer in place of a network")
    parser.add_argument("--shape", help="conv2d: C,H,W,O,K (K x K filter); linear: K,N")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default 1)")
    parser.add_argument("--zeros", type=float, default=0.9, help="share of empty quads")
    parser.add_argument("--threads", type=int, default=1, help="default 1")
    parser.add_argument("--against", default="torch", help=f"of {','.join(RIVALS)}")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring (default 3)")
    parser.add_argument("--csv", metavar="OUT.csv", help="save the table")
    parser.add_argument("--plot", metavar="OUT.png", help="save a chart")


def run(arguments: argparse.Namespace) -> int:
    """Print one row per engine; 0, or 1 where the results do not match."""
    against = [name for name in arguments.against.split(",") if name]
    if unknown := sorted(set(against) - set(RIVALS)):
        what = f"--against takes {', '.join(RIVALS)}"
        raise BadConfig(need(what, unknown[0], "Separate them by commas."))
    if min(arguments.batch, arguments.threads) < 1:
        what = "--batch and --threads are at least 1"
        raise BadConfig(need(what, min(arguments.batch, arguments.threads), "Use 1."))
    if importlib.util.find_spec("torch") is None:
        do = "pip install 'ternary-ops[train]'"
        raise MissingExtra(need("bench builds networks with PyTorch", "none installed", do))
    from ternary_ops.study import benchmark

    if arguments.op:
        model, shape = benchmark.one_layer(arguments.op, _sizes(arguments))
    else:
        model, shape = benchmark.network(arguments.model), MODELS[arguments.model]
    case = benchmark.Case(
        model, (arguments.batch, *shape), arguments.zeros, arguments.threads, arguments.seconds
    )
    rows = benchmark.measure(case, against, prune_all=bool(arguments.op))
    if arguments.csv:
        write_csv(arguments.csv, rows)
    if arguments.plot:
        benchmark.plot(rows, arguments.plot)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        cells = [[_text(value) for value in row.values()] for row in rows]
        Table(list(rows[0]), cells).show()
    return 0 if all(row["match"] in ("yes", "-") for row in rows) else 1


def _sizes(arguments: argparse.Namespace) -> tuple[int, ...]:
    names = ("C", "H", "W", "O", "K") if arguments.op == "conv2d" else ("K", "N")
    try:
        sizes = tuple(int(part) for part in (arguments.shape or "").split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != len(names) or min(sizes) < 1:
        what = f"--op {arguments.op} needs --shape {','.join(names)}"
        raise BadConfig(need(what, arguments.shape, "Write --shape 64,56,56,64,3 or 4096,4096."))
    return sizes


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
