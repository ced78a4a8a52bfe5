# SPDX-License-Identifier: Apache-2.0
"""A program's outputs beside two independent computations of the same network, on real images.

    python bench/equality.py [--model resnet18] [--zeros 0.9] [--images 1000] [--csv equality.csv]

Nodes: on --nodes images every value of every node against the NumPy reference
(program/interpret.py); integer nodes must be the same bits, floats of integer layers too. On
all images, the program against itself as a fake-quantized PyTorch network (tests' fake_quant.py:
operators on integer-valued tensors, sums in float64); the first class must be the same on 99.9 %.
`layers_top1` compares, for information, with the trained module, whose skip connections stay float.
Needs real images: TERNARY_OPS_DATA names the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import command_line, headline, write_csv

from ternary_ops import runtime
from ternary_ops.benchmark import pruned_networks
from ternary_ops.program.interpret import simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import fake_quant  # noqa: E402  (lies beside the tests, which hold every operator to it)

_LEAST_TOP1 = 0.999
_BATCH = 10


def compare_nodes(program: runtime.Program, x: Any) -> tuple[int, int]:
    """Nodes that are the same bits as the reference's, and nodes."""
    got, wanted = program.trace(x), simulate(program.graph, x)
    same = [np.array_equal(a, b) for a, b in zip(got, wanted, strict=True)]
    for node, equal in enumerate(same):
        if not equal:
            print(f"node {node} ({program.graph.nodes[node].op}) differs")
    return sum(same), len(same)


def main() -> int:
    """Print and write one row; 0 when both conditions hold."""
    parser = command_line(__doc__, csv=True)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--zeros", type=float, default=0.9)
    parser.add_argument("--size", type=int, help="side of the images (default: the network's)")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=2, help="images whose every node is compared")
    options = parser.parse_args()
    if pruned_networks.data_folder() is None:
        sys.exit("equality needs real images, got none. Set TERNARY_OPS_DATA to the data folder.")
    net = pruned_networks.by_name(options.model, options.zeros, size=options.size)
    channels, side = net.x.shape[1:3]
    x = pruned_networks.images(options.images, channels, side)
    same, nodes = compare_nodes(net.program, x[: options.nodes].numpy())
    hits = layers = 0
    largest, exact = 0.0, 0
    with torch.inference_mode():
        for part in torch.split(x, _BATCH):
            ours = net.program(part.numpy())
            fake = fake_quant.run(net.program.graph, part.numpy())[-1].numpy()
            hits += int((ours.argmax(1) == fake.argmax(1)).sum())
            exact += int((ours == fake).all(1).sum())
            largest = max(largest, float(np.abs(ours - fake).max()))
            layers += int((ours.argmax(1) == net.trained(part).argmax(1).numpy()).sum())
    count = len(x)
    row = {
        **{"model": options.model, "zeros": options.zeros, "size": side, "images": count},
        **{"nodes_exact": same, "nodes": nodes, "top1": hits / count},
        **{"outputs_exact": exact / count, "max_difference": largest},
        **{"layers_top1": layers / count, "isa": runtime.isa(), "torch": torch.__version__},
    }
    headline(row)
    if options.csv:
        print("written:", write_csv(options.csv, [row]))
    return 0 if same == nodes and row["top1"] >= _LEAST_TOP1 else 1


if __name__ == "__main__":
    sys.exit(main())
