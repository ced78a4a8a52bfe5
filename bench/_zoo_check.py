# SPDX-License-Identifier: Apache-2.0
"""What `tops.check` predicts beside networks that were planned, pruned, calibrated and compiled."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _zoo_list import build
from _zoo_model import randomize_
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.benchmark import pruned_networks
from ternary_ops.program.layer_costs import call_ms

NETWORKS = (
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:regnet_x_400mf",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:squeezenet1_1",
    "torchvision:mnasnet0_5",
    "timm:resnet18d",
)
_SIDE, _SAMPLES = 224, 4
_TURNS = 3


def rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Three rows a network, one for each share of empty quads.

    Other users of a machine can slow it down for seconds: measured networks take turns, between two
    predictions, of which the lower one of each share counts.
    """
    for text in names:
        source, _, name = text.partition(":")
        torch.manual_seed(0)
        network = build(source, name)
        x = pruned_networks.images(_SAMPLES, 3, _SIDE)
        randomize_(network, x)  # a filter whose BatchNorm has gamma 0 would be empty
        start = time.process_time()
        found = tops.check(network, x[:1])
        cpu = time.process_time() - start
        shares = [predicted.zeros for predicted in found.predictions]
        measured = _measured(network, x, shares)
        again = tops.check(network, x[:1], shares)
        for first, second, (ms, size) in zip(
            found.predictions, again.predictions, measured, strict=True
        ):
            predicted = min(first.ms, second.ms)
            yield {
                **{"network": text, "size": _SIDE, "zeros": first.zeros},
                **{"predicted_ms": round(predicted, 3), "measured_ms": round(ms, 3)},
                "ms_ratio": round(predicted / ms, 3),
                **{"predicted_bytes": first.bytes, "measured_bytes": size},
                "bytes_ratio": round(first.bytes / size, 3),
                **{"check_seconds": found.seconds, "check_cpu_seconds": round(cpu, 2)},
                **{"isa": runtime.isa(), "match": 0.9 <= predicted / ms <= 1.1},
            }


def _measured(network: nn.Module, x: Tensor, shares: Sequence[float]) -> list[tuple[float, int]]:
    """Milliseconds and bytes of the network made as a user makes it, but for training."""
    programs = [_made(network, x, zeros) for zeros in shares]
    best = [float("inf")] * len(programs)
    sizes = []
    with runtime.num_threads(1), tempfile.TemporaryDirectory() as folder:
        for _ in range(_TURNS):
            for number, program in enumerate(programs):
                best[number] = min(best[number], call_ms(partial(program, x[:1].numpy())))
        for program in programs:
            path = Path(folder, "program.safetensors")
            program.save(path)
            sizes.append(path.stat().st_size)
    return list(zip(best, sizes, strict=True))


def _made(network: nn.Module, x: Tensor, zeros: float) -> runtime.Program:
    model = copy.deepcopy(network)
    config = tops.TernaryConfig(zeros=zeros, scope="layer")
    tops.quantize_(model, tops.plan(model, config))
    tops.prune.Pruner(model, schedule="one_cycle", total_steps=1).step()
    tops.recalibrate_batchnorm_(model, [x])
    tops.calibrate(model, [x], method="minmax")
    return tops.compile(model, x[:1])
