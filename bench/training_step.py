# SPDX-License-Identifier: Apache-2.0
"""What compressing adds to a training step: quantized layers, learned ranges, masks.

    python bench/training_step.py [--rounds 9] [--csv training_step.csv]

ResNet-20 on random 32x32 images, one thread, processor time; every variant takes one step a round,
in turns. `overhead` is the median over rounds of its time by that of the dense float network in the
same round. "Pruner alone" prunes the plain float network, at its default frequency of updates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _measure import interleave, ratio, setup, spread, write_csv

import ternary_ops as tops
from ternary_ops import models

BATCH, STEPS = 128, 1000


def stepper(change: Callable[[torch.nn.Module, Any], Any]) -> Callable[[], float]:
    """A timer of one step; `change` gets the model and the images, and returns a pruner's maker."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (BATCH,))
    model = models.cifar_resnet(20).to(memory_format=torch.channels_last).train()
    make = change(model, x)
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    pruner = make(optimizer) if make is not None else None

    def step() -> float:
        start = time.process_time()
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if pruner is not None:
            pruner.step()
        return (time.process_time() - start) * 1e3

    return step


def quantized(phase: str, ranges: bool, **options: Any) -> Callable[[torch.nn.Module, Any], Any]:
    """Layers of one phase, with float or uint8 activations; ranges: already calibrated."""
    times = {
        "float": {"ternary_at": 0.9, "freeze_at": 1.0},
        "ternary": {"ternary_at": 0.0, "freeze_at": 1.0},
        "frozen": {"ternary_at": 0.0, "freeze_at": 1 / STEPS},
    }[phase]

    def change(model: torch.nn.Module, x: Any) -> Any:
        tops.quantize_(model, tops.plan(model, tops.TernaryConfig(zeros=0.9, **options)))
        if ranges:
            tops.calibrate(model, [x])
        return lambda optimizer: tops.prune.Pruner(
            model, "one_cycle", STEPS, optimizer=optimizer, **times
        )

    return change


def pruned(pattern: str, schedule: str = "one_cycle") -> Callable[[torch.nn.Module, Any], Any]:
    """The plain float network and a Pruner."""
    return lambda model, x: (
        lambda optimizer: tops.prune.Pruner(
            model, schedule, STEPS, 0.9, pattern, optimizer=optimizer
        )
    )


VARIANTS: dict[str, Callable[[torch.nn.Module, Any], Any]] = {
    "dense float": lambda model, x: None,
    "Pruner alone, element": pruned("element"),
    "Pruner alone, quads": pruned("1x4"),
    "ptq, real-valued phase": quantized("float", False),
    "ptq, ternary phase": quantized("ternary", False),
    "ptq, ternary phase, learned ranges": quantized("ternary", True),
    "ptq, frozen, learned ranges": quantized("frozen", True),
    "ptq, element, ternary phase": quantized("ternary", False, pattern="element"),
    "twn, ternary phase": quantized("ternary", False, ternarizer="twn"),
    "ttq, ternary phase": quantized("ternary", False, ternarizer="ttq"),
}


def main() -> int:
    """Print and save the table."""
    options, about = setup(__doc__, rounds=9)
    timers = {name: stepper(change) for name, change in VARIANTS.items()}
    times = interleave(timers, options.rounds)
    rows = []
    for name, taken in times.items():
        row = {"variant": name, "batch": BATCH, "threads": options.threads}
        row |= {"ms": round(spread(taken)[0], 1)}
        row["overhead"] = round(ratio(taken, times["dense float"]), 3)
        print(*(f"{key} {value}" for key, value in row.items()), flush=True)
        rows.append({**row, **about})
    if options.csv:
        write_csv(options.csv, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
