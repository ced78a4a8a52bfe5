# SPDX-License-Identifier: Apache-2.0
"""Pruned at one stroke, without training: by magnitude against `prune.reconstruct_`.

    python bench/reconstruct.py --threads 1

Quads of published FMEN-S and EFDN x4 (all layers but head and tail), float weights, samples from
the training images; Set5 PSNR on luma. Writes bench/results/reconstruct.csv.
"""

from __future__ import annotations

import copy
import sys
import time

import torch
from _measure import command_line, write_csv
from _sr import by_arrays, pairs
from sr_train import RUNS, published, reconstruct

import ternary_ops as tops
from ternary_ops import sr
from ternary_ops.sr.training.trainer import validate

NETWORKS = ("fmen-s-x4-int8", "efdn-x4-int8")
EDGES = ["head", "tail.0"]


def psnr(network: sr.SRNetwork) -> float:
    """Of Set5."""

    def run(x: object) -> object:
        with torch.no_grad():
            return network(torch.as_tensor(x)).numpy()

    images = list(pairs("Set5", network.scale))
    return validate(by_arrays(run, network.input_range), images, network.scale)[0]


def main() -> int:
    """Measure and write."""
    parser = command_line(__doc__, threads=1)
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in NETWORKS:
        network = published(RUNS[name]).eval()
        for zeros in options.zeros:
            by_size, ours = copy.deepcopy(network), copy.deepcopy(network)
            tops.prune.Pruner(by_size, "one_shot", 1, zeros, "1x4", skip=EDGES).step()
            start = time.monotonic()
            reconstruct(ours, zeros=zeros, pattern="1x4", skip=EDGES)
            row = {"network": name.removesuffix("-int8"), "zeros": zeros}
            row |= {"dense_psnr": round(psnr(network), 3), "magnitude": round(psnr(by_size), 3)}
            row |= {"reconstructed": round(psnr(ours), 3)}
            rows.append(row | {"seconds": round(time.monotonic() - start)})
            print(rows[-1], flush=True)
    write_csv("reconstruct.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
