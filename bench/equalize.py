# SPDX-License-Identifier: Apache-2.0
"""Quantized to 8 bits after training, by calibration alone: as published and after `equalize_`.

    python bench/equalize.py --threads 1

Published super-resolution networks, samples from the training images; PSNR on luma, of programs.
`expected` is the mean squared error of the output, in gray levels, that `equalize_` foresees.
Writes bench/results/equalize.csv.
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

import torch
from _measure import write_csv
from _sr import SETS, by_arrays, pairs
from sr_train import RUNS, published, samples

import ternary_ops as tops
from ternary_ops import runtime, sr
from ternary_ops.sr.training import validate

NETWORKS = ("fmen-s-x4-int8", "efdn-x4-int8", "efdn-x2-int8")


def quantized(network: sr.SRNetwork, batches: list[torch.Tensor]) -> runtime.Program:
    """Its program of dense 8-bit layers."""
    network = copy.deepcopy(network)
    tops.quantize_(network, tops.plan(network, tops.TernaryConfig("int8")))
    tops.calibrate(network, batches)
    return sr.to_program(network)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in NETWORKS:
        network = published(RUNS[name]).eval()
        batches = samples(network)
        equalized = copy.deepcopy(network)
        found = tops.quantize.equalize_(equalized, batches)
        gray = (255 / network.input_range) ** 2
        row: dict[str, Any] = {"network": name.removesuffix("-int8")}
        row |= {"expected": round(found.before * gray, 2)}
        row |= {"expected_equalized": round(found.after * gray, 2)}
        programs = {
            "float": sr.to_program(network),
            "int8": quantized(network, batches),
            "equalized": quantized(equalized, batches),
        }
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
