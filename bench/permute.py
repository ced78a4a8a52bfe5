# SPDX-License-Identifier: Apache-2.0
"""What the channel permutation gains: occupied quads and time, before and after, in one run.

    python bench/permute.py [--weights resnet20.npz ...] [--zeros 0.9] [--csv permute.csv]

Networks are pruned element by element in one shot, by magnitude. ResNet-18 is not trained, so its
zeros are random, the worst case; "hidden blocks" gives its zeros a structure that a shuffle of the
channels hides, the best case. --weights takes state dicts of CIFAR ResNets (layer1.0.conv1.weight,
..., linear.weight) as .npz; their parameter-free shortcuts become 1x1 convolutions. No speed is
printed unless both programs give the same bits.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _cifar import load_resnet
from _measure import command_line, conclude, headline, interleave, ratio, spread, stopwatch
from torch import nn

import ternary_ops as tops
from ternary_ops import models, runtime
from ternary_ops.nn import TernaryLayer
from ternary_ops.program.permute import permute

Case = tuple[str, nn.Module, torch.Tensor, str, Callable[[nn.Module], None]]


def by_magnitude(model: nn.Module) -> None:
    """The masks that the plan asks for, in one shot."""
    tops.prune.Pruner(model, "one_shot", total_steps=1).step()


def by_hidden_blocks(model: nn.Module) -> None:
    """Quads of shuffled channels are empty or full, as many as the plan asks for."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, TernaryLayer) and layer.config.weights == "ternary":
            o, i, *taps = layer.weight.shape
            keep = torch.rand(o, i // 4, *taps, generator=generator) > layer.config.zeros
            order = torch.randperm(i, generator=generator)
            layer.mask = keep.repeat_interleave(4, dim=1)[:, order]


def cases(paths: list[Path]) -> Iterator[Case]:
    """Networks, an input, the scope and how they are pruned."""
    torch.manual_seed(0)
    image, small = torch.randn(1, 3, 224, 224), torch.randn(1, 3, 32, 32)
    for path in paths:
        for scope in ("global", "layer"):
            yield f"{path.stem}, {scope}", load_resnet(path), small, scope, by_magnitude
    yield "resnet18, random zeros", models.resnet18(), image, "layer", by_magnitude
    yield "resnet18, hidden blocks", models.resnet18(), image, "layer", by_hidden_blocks


def measure(case: Case, zeros: float, rounds: int) -> dict[str, Any]:
    """One row: both programs, the seconds the search took."""
    name, model, x, scope, prune = case
    config = tops.TernaryConfig(zeros=zeros, pattern="element", scope=scope)
    tops.quantize_(model.eval(), config)
    prune(model)
    tops.calibrate(model, [x, torch.randn_like(x)])
    plain = tops.compile(model, x)
    start = time.perf_counter()
    graph, report = permute(plain.graph, plain.sample)
    seconds = time.perf_counter() - start
    moved = runtime.Program(graph, plain.sample)
    array = x.numpy()
    match = np.array_equal(plain(array), moved(array))
    timers = {
        "plain": stopwatch(lambda: plain(array)),
        "permuted": stopwatch(lambda: moved(array)),
    }
    times = interleave(timers, rounds)
    work = sum(row.quads * row.pixels for row in report.rows)
    return {
        "network": name,
        "zeros": zeros,
        "match": match,
        "quads_before": round(report.before / work, 4),
        "quads_after": round(report.after / work, 4),
        "ms_plain": round(spread(times["plain"])[0], 3) if match else "",
        "ms_permuted": round(spread(times["permuted"])[0], 3) if match else "",
        "speedup": round(ratio(times["plain"], times["permuted"]), 3) if match else "",
        "search_s": round(seconds, 2),
        "isa": runtime.isa(),
    }


def main() -> int:
    """Print the table; write it where asked."""
    parser = command_line(__doc__, rounds=21, csv=True)
    parser.add_argument("--weights", type=Path, nargs="*", default=[])
    parser.add_argument("--zeros", type=float, default=0.9)
    options = parser.parse_args()
    headline()
    torch.set_num_threads(1)
    rows = []
    with runtime.num_threads(1):
        for case in cases(options.weights):
            row = measure(case, options.zeros, options.rounds)
            rows.append(row)
            print(
                f"{row['network']:26} quads {row['quads_before']:.1%} -> {row['quads_after']:.1%}"
                f"  match {row['match']}  {row['ms_plain']} -> {row['ms_permuted']} ms"
                f"  {row['speedup']}x  search {row['search_s']} s",
                flush=True,
            )
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())
