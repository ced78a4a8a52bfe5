# SPDX-License-Identifier: Apache-2.0
"""What the model predicts for whole networks on GPUs, by machine code, no GPU needed.

    pip install '.[gpu]'
    python bench/gpu_networks.py                  # writes bench/results/gpu_networks.csv

FMEN-S x4 to 1280 x 720, float16; ResNet-18 for 32 images of 224 x 224, int8 and float16. Sums over
the launches of every convolution and attention block; assumed: one after the other, each from
memory, nothing between them, no time for launching, residual sums and ReLU within the convolutions;
left out: the pools, the last linear layer, the pixel shuffle. `roofline_us`: of each part, the
longer of its least bytes and its multiplications at the device's peak. The model ranks, with errors
of up to 30 %: ternary_ops/gpu/perf_model.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version

import torch
from _measure import write_csv

from ternary_ops.gpu import report
from ternary_ops.gpu.cases import Case, conv2d, hf_attention
from ternary_ops.gpu.devices import DEVICES

Parts = list[tuple[int, Case]]
HALF, CODES = torch.float16, torch.uint8


def fmen_s() -> Parts:
    """50 channels, four attention blocks of 16 and one of 12 with two layers more."""
    h, w = 180, 320
    return [
        (1, conv2d(1, 3, h, 50, 3, HALF, w=w)),
        # One to warm up, eight in blocks, one before the sum.
        (10, conv2d(1, 50, h, 50, 3, HALF, w=w)),
        (1, conv2d(1, 50, h, 48, 3, HALF, w=w)),
        (4, hf_attention(50, 16, h, w)),
        (1, hf_attention(50, 12, h, w, layers=6)),
    ]


def resnet18(dtype: torch.dtype) -> Parts:
    """Four stages of two blocks."""
    parts: Parts = [(1, conv2d(32, 3, 224, 64, 7, dtype, stride=2))]
    parts.append((4, conv2d(32, 64, 56, 64, 3, dtype)))
    for c in (128, 256, 512):
        side = 3584 // c
        parts.append((1, conv2d(32, c // 2, 2 * side, c, 3, dtype, stride=2)))
        parts.append((1, conv2d(32, c // 2, 2 * side, c, 1, dtype, stride=2)))
        parts.append((3, conv2d(32, c, side, c, 3, dtype)))
    return parts


NETWORKS = {
    "FMEN-S x4, 320x180 to 1280x720, fp16": fmen_s,
    "ResNet-18, 32 x 224x224, int8": lambda: resnet18(CODES),
    "ResNet-18, 32 x 224x224, fp16": lambda: resnet18(HALF),
}


def rows(target: str) -> Iterator[dict[str, object]]:
    """One for each network and device of a target."""
    for name, parts_of in NETWORKS.items():
        made = [(count, report.rows(case, target)) for count, case in parts_of()]
        for i, device in enumerate(found["device"] for found in made[0][1]):
            chosen = [(count, found[i]) for count, found in made]
            notes = {str(row["note"]) for _, row in chosen if "note" in row}
            row = {"network": name, "target": target, "device": device}
            if notes:
                yield row | {"note": "; ".join(sorted(notes))}
                continue
            total = {
                key: sum(count * float(part[key]) for count, part in chosen)
                for key in ("launches", "predicted_us", "roofline_us")
            }
            yield row | {
                "launches": int(total["launches"]),
                "predicted_us": round(total["predicted_us"], 1),
                "roofline_us": round(total["roofline_us"], 1),
                "of_roofline": round(total["roofline_us"] / total["predicted_us"], 3),
                "triton": version("triton"),
            }


def main() -> int:
    """Compile, print, write."""
    made = []
    for target in dict.fromkeys(device.target.name for device in DEVICES.values()):
        for row in rows(target):
            print(*(f"{key}={value}" for key, value in row.items()), flush=True)
            made.append(row)
    names = dict.fromkeys(name for row in made for name in row)
    print(
        "written:", write_csv("gpu_networks.csv", [{n: r.get(n, "") for n in names} for r in made])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
