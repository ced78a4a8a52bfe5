# SPDX-License-Identifier: Apache-2.0
"""Attention of super-resolution networks, one operator against PyTorch's own, in one run.

    python bench/sr_attention.py [--threads 1] [--rounds 21] [--isa NAME] [--csv sr_attention.csv]

ESA of EFDN (48 channels, 12 inside) and RLFN (52, 16), HFAB of FMEN-S (50, 16, one block) and its
warm-up (50, 12, two), and the gate of SPAN (48), on float32 maps of 180 x 320. Rival: the same from
F.conv2d and its neighbors, channels_last or not, whichever is faster in each round; and in the
plain layout, which networks run in unless told otherwise. The floor is the larger of two:
multiply-adds at the speed of registers, and x read and y written at that of a plain read. `match`:
within 1e-5 of a float64 reference (of a crop of the map).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _measure import conclude, interleave, ratio, setup, spread, stopwatch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from cases import esa, gate_layers, hf_attention, sr_gate

from ternary_ops import ops, reference
from ternary_ops._native import core
from ternary_ops.ops._attention import composed_esa, composed_hf
from ternary_ops.ops._sr_gate import composed

HEIGHT, WIDTH = 180, 320
CROP = 32


class Case(NamedTuple):
    """Three functions of one map, and multiply-adds a pixel."""

    channels: int
    products: float
    ours: Callable[[Tensor], Tensor]
    eager: Callable[[Tensor], Tensor]
    wanted: Callable[[Any], Any]


def tensors(arrays: list[Any]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def of_esa(shape: esa.EsaShape) -> Case:
    """One block of EFDN or RLFN."""
    arrays = gate_layers.layers(shape.layers)
    weights, biases = map(tensors, arrays)
    return Case(
        *(shape.channels, shape.products),
        lambda x: ops.esa(x, weights, biases),
        lambda x: composed_esa(x, weights, biases),
        lambda x: reference.esa(x, *arrays),
    )


def of_hf_attention(shape: hf_attention.HfShape) -> Case:
    """One block of FMEN."""
    arrays = gate_layers.layers(shape.layers)
    weights, biases = map(tensors, arrays)
    return Case(
        *(shape.chain[0], shape.products),
        lambda x: ops.hf_attention(x, weights, biases, shape.slopes),
        lambda x: composed_hf(x, weights, biases, shape.slopes),
        lambda x: reference.hf_attention(x, *arrays, shape.slopes),
    )


def of_sr_gate(shape: sr_gate.GateShape) -> Case:
    """The sum is another map, as for SPAN it is the convolution before it."""
    gate = torch.from_numpy(shape.operands()[1])

    def part(x: Any) -> Tensor:
        return gate[..., : x.shape[2], : x.shape[3]].contiguous()

    return Case(
        *(shape.x[1], shape.products),
        lambda x: ops.sr_gate(x, part(x), **shape.options),
        lambda x: composed(x, part(x), **shape.options),
        lambda x: reference.sr_gate(x, part(x).numpy(), **shape.options),
    )


CASES = {
    **{name: of_esa(shape) for name, shape in esa.CASE.bench},
    **{name: of_hf_attention(shape) for name, shape in hf_attention.CASE.bench},
    **{name: of_sr_gate(shape) for name, shape in sr_gate.CASE.bench},
}


def speeds() -> tuple[float, float]:
    """Float multiply-adds and bytes a millisecond of one core."""
    data = np.ones(1 << 27, np.uint8)
    rounds = 200_000
    products = core().float_burst(rounds)
    times = interleave(
        {
            "products": stopwatch(lambda: core().float_burst(rounds)),
            "bytes": stopwatch(lambda: core().read_burst(data)),
        },
        7,
    )
    return products / min(times["products"]), data.nbytes / min(times["bytes"])


def main() -> int:
    """Measure all cases."""
    options, about = setup(__doc__, rounds=21)
    per_ms, bytes_ms = speeds()
    rows = []
    for name, case in CASES.items():
        x = torch.randn(1, case.channels, HEIGHT, WIDTH)
        last = x.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            crop = x[..., :CROP, :CROP].contiguous()
            wanted = case.wanted(crop.numpy())
            off = np.abs(case.ours(crop).numpy() - wanted).max() / np.abs(wanted).max()
            times = interleave(
                {
                    "ours": stopwatch(lambda c=case, x=x: c.ours(x)),
                    "eager": stopwatch(lambda c=case, x=x: c.eager(x)),
                    "eager_last": stopwatch(lambda c=case, x=last: c.eager(x)),
                },
                options.rounds,
            )
        best = [min(pair) for pair in zip(times["eager"], times["eager_last"], strict=True)]
        pixels = HEIGHT * WIDTH
        maps = 2 if case.products else 3
        floor = max(
            case.products * pixels / per_ms / options.threads,
            maps * 4 * case.channels * pixels / bytes_ms,
        )
        ms, low, high = spread(times["ours"])
        rows.append(
            {
                "case": name,
                "ms": round(ms, 2),
                "p20": round(low, 2),
                "p80": round(high, 2),
                "eager_ms": round(spread(best)[0], 2),
                "times_eager": round(ratio(best, times["ours"]), 2),
                "times_eager_nchw": round(ratio(times["eager"], times["ours"]), 2),
                "floor_ms": round(floor, 2),
                "of_floor": round(floor / ms, 2),
                "off": f"{off:.1e}",
                "match": bool(off <= 1e-5),
                "threads": options.threads,
                **about,
            }
        )
        print({k: v for k, v in rows[-1].items() if k not in about}, flush=True)
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())
