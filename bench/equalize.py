# SPDX-License-Identifier: Apache-2.0
"""Quantized to 8 bits after training, by calibration alone: as published, after `equalize_`, and
then with eleven bits for what the last layer or the last two read.

    python bench/equalize.py --threads 1

Published super-resolution networks, samples from the training images; PSNR on luma, of programs.
`expected` is the mean squared error of the output, in gray levels, that `equalize_` foresees;
`last_time` and `last_two_time` are times over that of the equalized program for 57,600 pixels.
Writes bench/results/equalize.csv.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from _measure import command_line, interleave, ratio, stopwatch, write_csv
from _sr import SETS, by_arrays, pairs
from sr_train import RUNS, published, samples

import ternary_ops as tops
from ternary_ops import runtime, sr
from ternary_ops._native import core
from ternary_ops.sr.training.trainer import validate

NETWORKS = ("fmen-s-x4-int8", "efdn-x4-int8", "efdn-x2-int8")
FINE = tops.TernaryConfig("int8", activations="uint11")


def quantized(
    network: sr.SRNetwork, batches: list[torch.Tensor], fine: Sequence[str] = ()
) -> runtime.Program:
    """Its program of dense 8-bit layers, of which some read eleven bits."""
    network = copy.deepcopy(network)
    plan = tops.plan(network, tops.TernaryConfig("int8"), rules=dict.fromkeys(fine, FINE))
    tops.quantize_(network, plan)
    tops.calibrate(network, batches)
    return sr.to_program(network)


def times(programs: dict[str, runtime.Program]) -> dict[str, float]:
    """Of the last two, for one image, over the equalized one's; taken in turn."""
    x = np.random.default_rng(0).random((1, 3, 180, 320), dtype=np.float32)
    kinds = ("equalized", "last", "last_two")
    found = interleave({kind: stopwatch(partial(programs[kind], x)) for kind in kinds}, 21)
    return {f"{k}_time": round(ratio(found[k], found["equalized"]), 3) for k in kinds[1:]}


def main() -> int:
    """Measure and write."""
    parser = command_line(__doc__, threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    core().set_num_threads(options.threads)
    rows = []
    for name in NETWORKS:
        network = published(RUNS[name]).eval()
        batches = samples(network)
        equalized = copy.deepcopy(network)
        found = tops.quantize.equalize_(equalized, batches)
        before_last = "lr_conv" if isinstance(network, sr.FMEN) else "local_fuse.2"
        gray = (255 / network.input_range) ** 2
        row: dict[str, Any] = {"network": name.removesuffix("-int8")}
        row |= {"expected": round(found.before * gray, 2)}
        row |= {"expected_equalized": round(found.after * gray, 2)}
        programs = {
            "float": sr.to_program(network),
            "int8": quantized(network, batches),
            "equalized": quantized(equalized, batches),
            "last": quantized(equalized, batches, ["tail.0"]),
            "last_two": quantized(equalized, batches, [before_last, "tail.0"]),
        }
        row |= times(programs)
        for images in SETS:
            for kind, program in programs.items():
                pictures = list(pairs(images, network.scale))
                psnr, _ = validate(by_arrays(program, 1.0), pictures, network.scale)
                row[f"{images}_{kind}"] = round(psnr, 3)
        rows.append(row)
        print(row, flush=True)
    write_csv("equalize.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
