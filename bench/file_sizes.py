# SPDX-License-Identifier: Apache-2.0
"""What a network's file holds: float32, 2-bit codes, gzip, xz, the entropy bound, and the file.

    python bench/file_sizes.py [--zeros 0.9]

resnet18 has torchvision's layout, every convolution but the first and the classifier ternary, and
random weights and BatchNorm: no structure that a coder could use, so that a trained network's file
is smaller still. The other rows are the trained networks of bench/accuracy.py. Every tensor
that inference needs is in every column. coded and of_bound: the ternary and 8-bit weights
alone, as the file's coder stores them, and that against their entropy bound. Writes file_sizes.csv.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import NETWORKS, command_line, write_csv
from torch import nn

import ternary_ops as tops
from ternary_ops import models, reporting
from ternary_ops._native import core
from ternary_ops.io.sizes import lowest_bound


def random_resnet18(pattern: str, zeros: float) -> nn.Module:
    """Quantized, pruned and calibrated; the scales and biases of trained networks' sizes."""
    torch.manual_seed(0)
    model = models.resnet18().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in (
            *((norm.weight, 0.1, 1.0), (norm.bias, -0.5, 0.5)),
            *((norm.running_mean, -0.5, 0.5), (norm.running_var, 0.5, 2.0)),
        ):
            nn.init.uniform_(tensor, low, high)
    config = tops.TernaryConfig(zeros=zeros, pattern=pattern)
    tops.quantize_(model, tops.plan(model, config, rules={"fc": config}))
    tops.prune.Pruner(model, "one_shot", 1).step()
    tops.calibrate(model, [torch.randn(2, 3, 64, 64)])
    return model


def programs(zeros: float, folder: Path) -> Iterator[tuple[str, Path]]:
    """A name and a program file for every row."""
    for pattern in ("1x4", "element"):
        file = folder / f"{pattern}.safetensors"
        model = random_resnet18(pattern, zeros)
        tops.compile(model, torch.randn(1, 3, 64, 64)).save(file)
        yield f"resnet18, {pattern}, {zeros:.0%}, random", file
    for file in sorted(NETWORKS.glob("*.safetensors")):
        yield file.stem, file


def row(name: str, file: Path) -> dict[str, Any]:
    """All sizes of one file, in bytes."""
    program = tops.runtime.load(file)
    x = np.random.default_rng(0).standard_normal(program.sample).astype(np.float32)
    report = reporting.of_program(program, x, file.stat().st_size)
    banks = program.graph.weights
    vectors = sum(v.nbytes for w in banks for v in (w.scale, w.bias) if v is not None)
    coded = core().codec_encode([(w.kind, w.array.reshape(-1, w.array.shape[-1])) for w in banks])
    bound = sum(lowest_bound(w.kind, w.array) for w in banks) / 8
    return {
        "network": name,
        "weights": int(report.total("weights")),
        "fp32": int(report.total("fp32")),
        "two_bit": int(report.total("packed")),
        **report.compressors,
        "bound": round(bound + vectors),
        "file": report.file,
        "smaller": round(report.total("fp32") / report.file, 1),
        "coded": len(coded),
        "of_bound": round(len(coded) / bound, 4),
        "empty_quads": round(report.zeros("quads"), 2),
        "zero_weights": round(report.zeros("weights"), 2),
    }


def main() -> int:
    """Print and save the table."""
    parser = command_line(__doc__)
    parser.add_argument("--zeros", type=float, default=0.9)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file in programs(options.zeros, Path(folder)):
            rows.append(row(name, file))
            print(*(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    write_csv("file_sizes.csv", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
