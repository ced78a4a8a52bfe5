# SPDX-License-Identifier: Apache-2.0
"""The cost table of the engine beside whole networks with other zeros, kinds and widths.

    python bench/layer_costs.py --models resnet18,mobilenet_v2,regnet_x_400mf

One row a network and draw. The table (`program.layer_costs`) is measured once a network. Then each
convolution but depthwise ones draws ternary or 8-bit weights and 0 to 97 % empty quads, and the
program with random codes of that kind is timed as a whole; the table's programs and these take
turns. `widths`: a CIFAR ResNet of that share of its channels, dense and at 90 %, made as such,
beside the table of the full one. One thread; processor time of the fastest call. `match` is within
a tenth. TERNARY_OPS_ISA=avx2 gives another instruction set.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from _measure import RESULTS, command_line, commit, machine, read_rows, write_csv

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops.benchmark import pruned_networks
from ternary_ops.program.layer_costs import KINDS, MOST_EMPTY, CostTable, call_ms, measure
from ternary_ops.program.random_codes import Emptied
from ternary_ops.program.width_costs import with_widths
from ternary_ops.quantize.engine_costs import eight_bits
from ternary_ops.runtime import Program

TABLE = "layer_costs.csv"
_TURNS = 3
_WIDTH, _NARROW = 32, (8, 16, 24)  # channels of the CIFAR ResNet's first stage


def eight(model: torch.nn.Module, x: torch.Tensor) -> Program:
    """The network at 8 bits, one program."""
    made = eight_bits(model, x, tops.plan(model))
    if not isinstance(made, Program):
        raise TypeError("it has islands")
    return made


def pruned_names(program: Program) -> list[str]:
    """Layers that may be pruned: not depthwise."""
    rows = [node for node in program.graph.nodes if "w" in node.attrs]
    return [
        program.graph.weight(node).name
        for node in rows
        if node.attrs.get("groups", 1) == 1 and program.graph.weight(node).shape[3] > 3
    ]


def fastest(programs: dict[Any, Program], x: np.ndarray[Any, Any]) -> dict[Any, float]:
    """Milliseconds of each, in turns."""
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(_TURNS):
        for key, program in programs.items():
            best[key] = min(best[key], call_ms(partial(program, x)))
    return best


def row(model: str, case: str, table: CostTable, predicted: float, ms: float) -> dict[str, Any]:
    """As it stands in the CSV."""
    return {
        **{"model": model, "case": case, "isa": table.isa, "threads": table.threads},
        **{"predicted_ms": round(predicted, 4), "measured_ms": round(ms, 4)},
        **{"ratio": round(predicted / ms, 3), "match": 0.9 <= predicted / ms <= 1.1},
    }


def drawn(name: str, draws: int) -> Iterator[dict[str, Any]]:
    """Zeros and kinds at random, layer by layer."""
    model = pruned_networks.network(name)
    x = pruned_networks.images(1, *pruned_networks.shape_of(name))
    program = eight(model, x)
    names = pruned_names(program)
    table, emptied = measure(program, names), Emptied(program.graph, names)
    rng = np.random.default_rng(0)
    choices = {}
    for number in range(draws):
        zeros, kinds = rng.uniform(0, MOST_EMPTY, len(names)), rng.choice(KINDS, len(names))
        choices[number] = {
            n: (str(k), float(z)) for n, k, z in zip(names, kinds, zeros, strict=True)
        }
    programs = {
        number: Program(emptied.chosen(choice), program.sample)
        for number, choice in choices.items()
    }
    for number, ms in fastest(programs, x.numpy()).items():
        yield row(name, f"draw {number}", table, table.total(choices[number]), ms)


def narrowed() -> Iterator[dict[str, Any]]:
    """Fewer channels in all layers but the first's input and the last's output."""
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = eight(models.cifar_resnet(20, width=_WIDTH).eval(), x)
    names = pruned_names(whole)
    table = with_widths(measure(whole, names, [("ternary", z) for z in (0.0, 0.75, 0.9)]), whole)
    programs, predicted = {}, {}
    for width in (*_NARROW, _WIDTH):
        program = eight(models.cifar_resnet(20, width=width).eval(), x)
        for zeros in (0.0, 0.9):
            share = width / _WIDTH
            programs[width, zeros] = Program(
                Emptied(program.graph, names).at(zeros), program.sample
            )
            ends = {n: (share, 1.0 if n == "fc" else share) for n in names}
            layers = (table.ms(n, "ternary", zeros, *ends[n]) for n in names)
            predicted[width, zeros] = share * table.others + sum(layers)
    for key, ms in fastest(programs, x.numpy()).items():
        case = "width {}, {:.0%} empty".format(*key)
        yield row(f"resnet20 of width {_WIDTH}", case, table, predicted[key], ms)


def main() -> int:
    """Rows of this instruction set take the place of former ones."""
    parser = command_line(__doc__)
    parser.add_argument("--models", default="resnet18,mobilenet_v2,regnet_x_400mf,cifar_resnet")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--out", default=TABLE, help="file name under bench/results")
    options = parser.parse_args()
    kept = [r for r in read_rows(RESULTS / options.out) if r["isa"] != runtime.isa()]
    about, made = {"commit": commit(), **machine()}, []
    with runtime.num_threads(1):
        sources = [
            partial(drawn, name, options.draws) for name in options.models.split(",") if name
        ]
        for source in (*sources, narrowed):
            for found in source():
                made.append({**found, **about})
                print(made[-1], flush=True)
                write_csv(options.out, [*kept, *made])
    return int(not all(r["match"] for r in made))


if __name__ == "__main__":
    sys.exit(main())
