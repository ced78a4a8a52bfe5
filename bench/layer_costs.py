# SPDX-License-Identifier: Apache-2.0
"""The cost table of the engine beside whole networks with other zeros, kinds and widths.

    python bench/layer_costs.py --models resnet18,mobilenet_v2 --widths resnet20,resnet56

One row a network and draw. The table (`program.layer_costs`) is measured once a network. Then each
convolution but depthwise ones draws ternary or 8-bit weights and 0 to 97 % empty quads, and the
program with random codes of that kind is timed as a whole; the table's programs and these take
turns. --widths: networks whose filter groups draw widths as well, beside the costs over widths that
`tops.search` goes by (`budget.width_costs`), of the network narrowed to a few sets of widths. One
thread; processor time of the fastest call. `match` is within a tenth. TERNARY_OPS_ISA=avx2 gives
another instruction set.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from _measure import RESULTS, command_line, commit, machine, read_rows, write_csv
from torch import nn

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops.benchmark import pruned_networks
from ternary_ops.budget import searching
from ternary_ops.budget.problem import levels_of
from ternary_ops.budget.width_costs import fitted, measured, settings
from ternary_ops.program.layer_costs import KINDS, MOST_EMPTY, call_ms, measure
from ternary_ops.program.random_codes import Emptied
from ternary_ops.quantize.engine_costs import eight_bits
from ternary_ops.runtime import Program

TABLE = "layer_costs.csv"
_TURNS = 3


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


def row(model: str, case: str, isa: str, predicted: float, ms: float) -> dict[str, Any]:
    """As it stands in the CSV."""
    return {
        **{"model": model, "case": case, "isa": isa, "threads": 1},
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
        yield row(name, f"draw {number}", table.isa, table.total(choices[number]), ms)


def narrowed(name: str, draws: int) -> Iterator[dict[str, Any]]:
    """Widths of filter groups, zeros and kinds at random."""
    depth = name.removeprefix("resnet")
    small = depth in ("20", "56")
    model: nn.Module = models.cifar_resnet(int(depth)) if small else pruned_networks.network(name)
    x = pruned_networks.images(1, 3, 32 if small else 96)
    config = tops.TernaryConfig(scope="layer")
    problem = searching.posed(model.eval(), x, [x], tops.Budget(ms=1.0), config)
    start = time.process_time()
    costs = fitted(problem, measured(problem, settings(problem), lambda: None))
    print(f"{name}: {time.process_time() - start:.1f} s of processor time", flush=True)
    rng = np.random.default_rng(0)
    programs, predicted = {}, {}
    for number in range(draws):
        widths = {group.name: int(rng.choice(levels_of(group))) for group in problem.groups}
        network = problem.narrowed(widths)
        program = eight_bits(network, x, problem.replan(network))
        choices = {
            n: (str(rng.choice(KINDS)), float(rng.uniform(0, MOST_EMPTY))) for n in problem.free
        }
        emptied = Emptied(program.graph, list(choices))
        programs[number] = Program(emptied.chosen(choices), program.sample)
        for row_ in problem.planned:
            if row_.config is not None:
                choices.setdefault(row_.name, (row_.action, 0.0))
        layers = (costs.layer(n, *choice, widths) for n, choice in choices.items())
        predicted[number] = costs.others(widths) + sum(layers)
    for number, ms in fastest(programs, x.numpy()).items():
        case = f"widths, draw {number}"
        yield row(name, case, runtime.isa(), predicted[number], ms)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return row["model"], row["case"], row["isa"]


def main() -> int:
    """Rows take the place of former ones of the same network, case and instruction set."""
    parser = command_line(__doc__)
    parser.add_argument("--models", default="resnet18,mobilenet_v2,regnet_x_400mf,cifar_resnet")
    parser.add_argument("--widths", default="resnet20,resnet56,regnet_x_400mf")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--out", default=TABLE, help="file name under bench/results")
    options = parser.parse_args()
    former = read_rows(RESULTS / options.out)
    about, made = {"commit": commit(), **machine()}, []
    with runtime.num_threads(1):
        sources = [
            partial(source, name, options.draws)
            for source, names in ((drawn, options.models), (narrowed, options.widths))
            for name in names.split(",")
            if name
        ]
        for source in sources:
            for found in source():
                made.append({**found, **about})
                print(made[-1], flush=True)
                again = {_key(r) for r in made}
                write_csv(options.out, [*(r for r in former if _key(r) not in again), *made])
    return int(not all(r["match"] for r in made))


if __name__ == "__main__":
    sys.exit(main())
