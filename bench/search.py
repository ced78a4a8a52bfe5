# SPDX-License-Identifier: Apache-2.0
"""Targets of a search, asked and measured: is the network that comes out as fast as was asked?

    python bench/search.py [--network resnet20] [--isa avx2] --folder FOLDER

Targets are drawn between 0.3 and 0.9 of the time of the dense 8-bit network before any search. Each
is searched for, and the network that was found is pruned at once, without training, compiled and
saved. A fresh process then times the files and the dense network in rounds; a round is the fastest
of many calls, as in the search: `call_ms`. Written to bench/results/search.csv.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from _cifar import load_cifar10
from _measure import RESULTS, command_line, interleave, read_rows, write_csv
from equal_time import INT8, network, shuffled
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.budget import Found
from ternary_ops.program.layer_costs import call_ms
from ternary_ops.prune.targets import can_prune

TABLE = "search.csv"
COUNT, LOW, HIGH = 5, 0.3, 0.9


def compiled(model: nn.Module, data: list[Tensor]) -> runtime.Program:
    """A quantized network with its zeros at once."""
    if can_prune(model):
        tops.prune.Pruner(model, "one_shot", total_steps=1).step()
    tops.calibrate(model, data)
    return tops.compile(model, data[0][:1])


def measured(files: list[Path], isa: str, rounds: int) -> dict[str, float]:
    """Medians over rounds in which the files take turns."""
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()
    with runtime.force_isa(isa), runtime.num_threads(1):
        programs = {file.stem: runtime.load(file) for file in files}
        timers = {name: partial(call_ms, partial(run, x)) for name, run in programs.items()}
        times = interleave(timers, rounds, warmup=1)
    return {name: statistics.median(values) for name, values in times.items()}


def write(
    options: argparse.Namespace,
    found: Mapping[str, tuple[Found, float]],
    times: Mapping[str, float],
) -> None:
    """The rows of the table."""
    rows = [
        {
            **{"network": options.network, "isa": options.isa, "asked_ms": float(target)},
            "search_ms": round(result.cost, 4),
            "measured_ms": round(times[target], 4),
            "off": round(times[target] / float(target) - 1, 4),
            "of_dense": round(times[target] / times["dense"], 3),
            "filters_left": round(result.own.filters, 3),
            "units_empty": round(result.own.units, 3),
            "int8_layers": round(result.own.int8, 3),
            "seconds": round(seconds),
        }
        for target, (result, seconds) in found.items()
    ]
    for row in rows:
        print(row)
    key = (options.network, options.isa)
    others = [r for r in read_rows(RESULTS / TABLE) if (r["network"], r["isa"]) != key]
    print("written:", write_csv(TABLE, [*others, *rows]))


def main() -> int:
    """Draw, search, measure, write."""
    parser = command_line(__doc__, rounds=5, threads=1)
    parser.add_argument("--network", default="resnet20", choices=("resnet20", "resnet56"))
    parser.add_argument("--isa", default="avx2")
    parser.add_argument("--seed", type=int, default=0, help="of the targets")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.files:
        print(json.dumps(measured(options.files, options.isa, options.rounds)))
        return 0
    options.folder.mkdir(exist_ok=True, parents=True)
    depth = int(options.network.removeprefix("resnet"))
    split = shuffled(load_cifar10())
    data = [split.x_train[:64]]
    dense = network(depth)
    tops.quantize_(dense, tops.plan(dense, INT8, example=data[0][:1]))
    files = [options.folder / "dense.safetensors"]
    compiled(dense, data).save(files[0])
    with runtime.force_isa(options.isa), runtime.num_threads(1):
        ms = call_ms(partial(runtime.load(files[0]), data[0][:1].numpy()))
        draw = random.Random(options.seed)
        targets = sorted(round(draw.uniform(LOW, HIGH) * ms, 4) for _ in range(COUNT))
        print(f"dense {ms:.4f} ms, targets {targets}", flush=True)
        found = {}
        for target in targets:
            start = time.monotonic()
            state = options.folder / "state.json"
            result = tops.search(network(depth), data[0][:1], data, target_ms=target, state=state)
            found[f"{target:g}"] = result, time.monotonic() - start
            print(result.front_table(), flush=True)
            model = network(depth)
            result.apply_(model)
            files.append(options.folder / f"{target:g}.safetensors")
            compiled(model, data).save(files[-1])
    command = [sys.executable, __file__, "--folder", str(options.folder), "--isa", options.isa]
    command += ["--rounds", str(options.rounds), "--files", *map(str, files)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    times = json.loads(output)
    write(options, found, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
