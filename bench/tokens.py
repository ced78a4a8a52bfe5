# SPDX-License-Identifier: Apache-2.0
"""Where the time of a hybrid of convolution and attention goes, operator by operator, beside torch.

    python bench/tokens.py [--threads 1] [--rounds 15] [--isa NAME] [--csv tokens.csv]

hybrid_ms("XXS") at 224 x 224, batch 1, random weights: float32, all layers dense at 8 bits, and 8
bits with 90 % of the quads of every layer empty: random weights of different size would share them
out by fan-in. A row a precision: the program's time, the sum of each operator's
nodes (the least of the rounds for each node), and torch's float32 time from the same rounds.
`match`: the float program is within 1e-4 of torch, an integer one within a tenth of its
fake-quantized network (random weights: times mean something, accuracy does not).
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from _measure import CLOCKS, conclude, interleave, setup, spread, stopwatch
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import models
from ternary_ops.runtime import Program

KINDS = {"float32": None, "int8": 0.0, "int8, 90 % zero quads": 0.9}


def network() -> nn.Module:
    """The hybrid with weights that keep the size of what passes, none of them zero."""
    torch.manual_seed(0)
    made = models.hybrid_ms("XXS").eval()
    with torch.no_grad():
        for parameter in made.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return made


def compiled(zeros: float | None, x: Tensor) -> tuple[Program, bool]:
    """The program, and whether it computes what its network does."""
    model = network()
    if zeros is not None:
        config = tops.TernaryConfig("int8", zeros=zeros, scope="layer")
        tops.quantize_(model, tops.plan(model, config))
        if zeros:
            tops.prune.Pruner(model, schedule="one_cycle", total_steps=1).step()
        tops.calibrate(model, [x], method="minmax")
    program = tops.compile(model, x)
    with torch.no_grad():
        want = model(x)
    found = torch.from_numpy(program(x.numpy()))
    off = float((found - want).norm() / want.norm())
    return program, off < (1e-4 if zeros is None else 0.1)


def by_operator(program: Program, x: Tensor, rounds: int) -> dict[str, float]:
    """Milliseconds of all nodes of each operator."""
    least: dict[int, float] = {}
    for _ in range(rounds):
        rows = program.profile(x.numpy(), 1)
        least = {i: min(row["ms"], least.get(i, row["ms"])) for i, row in enumerate(rows)}
    sums: dict[str, float] = {}
    for i, row in enumerate(program.profile(x.numpy(), 1)):
        sums[row["op"]] = sums.get(row["op"], 0.0) + least[i]
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


def main() -> int:
    """A row for each precision."""
    options, about = setup(__doc__, 15)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    model = network()
    made = {name: compiled(zeros, x) for name, zeros in KINDS.items()}
    clock = CLOCKS["cpu" if options.threads == 1 else "wall"]
    runs = {name: partial(program, x.numpy()) for name, (program, _) in made.items()}
    timers = {name: stopwatch(run, clock) for name, run in runs.items()}
    with torch.no_grad():
        timers["torch"] = stopwatch(partial(model, x), clock)
        times = interleave(timers, options.rounds)
    rows: list[dict[str, Any]] = []
    for name, (program, match) in made.items():
        row = {"network": "hybrid_ms XXS", "precision": name, "match": match}
        row |= {"ms": round(spread(times[name])[0], 2)}
        row |= {"torch_ms": round(spread(times["torch"])[0], 2)}
        parts = by_operator(program, x, options.rounds)
        print(row, {op: round(ms, 2) for op, ms in parts.items()}, flush=True)
        rows += [{**row, "operator": op, "operator_ms": round(ms, 3)} for op, ms in parts.items()]
    return conclude([{**row, **about} for row in rows], options.csv)


if __name__ == "__main__":
    sys.exit(main())
