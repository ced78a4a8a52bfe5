# SPDX-License-Identifier: Apache-2.0
"""Linear layers of integer weights whose inputs stay float, against torch's float products.

    python bench/weight_only.py [--threads 1] [--rounds 21] [--isa NAME] [--csv weight_only.csv]

`float32` and `bfloat16` are torch.ops.ternary_ops.linear of such rows, with the type's name before
`torch` the dense product of the same numbers. `of_read` divides the time of a plain read of the
weights' bytes by ours, `of_floats` our products by those that float32 makes from registers.
`match`: both results are within their bound of the float64 reference: half a unit of float32 for
every sum, and one of bfloat16 for the result.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from _measure import conclude, interleave, ratio, setup, spread, stopwatch

import ternary_ops as tops
from ternary_ops import reference
from ternary_ops._native import core
from ternary_ops.layout import codes

SHAPES = ((1000, 512), (4096, 4096))  # N, K
ROWS = (1, 8, 32, 128)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def floats_per_ms(rounds: int = 200_000) -> float:
    """Float32 products a millisecond from registers, one core."""
    core().float_burst(rounds)
    start = time.perf_counter()
    made = core().float_burst(rounds)
    return float(made) / ((time.perf_counter() - start) * 1e3)


def integers(kind: str, n: int, k: int) -> tuple[np.ndarray, torch.Tensor]:
    """Random weights int8 [N, K], and as the operator takes them."""
    rng = np.random.default_rng(0)
    if kind == "ternary":
        w = rng.integers(-1, 2, (n, k)).astype(np.int8)
        return w, torch.from_numpy(codes.pack_codes(w))
    w = rng.integers(-127, 128, (n, k)).astype(np.int8)
    return w, torch.from_numpy(w)


def measure(kind: str, n: int, k: int, m: int, rounds: int, threads: int) -> dict[str, object]:
    """One row of the table."""
    w, held = integers(kind, n, k)
    rng = np.random.default_rng(m)
    scale = rng.uniform(0.001, 0.01, n).astype(np.float32)
    scales, rows = torch.from_numpy(scale), torch.from_numpy(rng.standard_normal((m, k)))
    dense = torch.from_numpy(w * scale[:, None])
    packed = tops.ops.prepack(held, "dense", k, 1, True)
    timers, match = {}, True
    for name, dtype in TYPES.items():
        x, weight = rows.to(dtype), dense.to(dtype)
        wide = x.float().numpy()
        timers[name] = stopwatch(lambda x=x: tops.ops.linear(x, held, scales, packed=packed))
        timers[f"{name} torch"] = stopwatch(
            lambda x=x, weight=weight: torch.nn.functional.linear(x, weight)
        )
        exact = reference.linear(wide, w, scale)
        bound = (k + 4) * 2.0**-24 * (np.abs(wide) @ np.abs(w).T.astype(np.float64) * scale)
        bound += np.abs(exact) * torch.finfo(dtype).eps
        y = tops.ops.linear(x, held, scales, packed=packed).float().numpy()
        match &= bool((np.abs(y - exact) <= bound).all())
    plain = np.random.default_rng(1).integers(0, 256, held.numel(), dtype=np.uint8)
    timers["read"] = stopwatch(lambda: core().read_burst(plain))
    with torch.inference_mode():
        times = interleave(timers, rounds)
    row: dict[str, object] = {"weights": kind, "n": n, "k": k, "m": m, "threads": threads}
    row |= {"match": match, "read_us": round(spread(times["read"])[0] * 1e3, 1)}
    for name in TYPES:
        own = spread(times[name])[0]
        row[f"{name}_us"] = round(own * 1e3, 1)
        row[f"{name}_torch_us"] = round(spread(times[f"{name} torch"])[0] * 1e3, 1)
        row[f"{name} vs torch"] = round(ratio(times[f"{name} torch"], times[name]), 2)
        row[f"{name} of_read"] = round(ratio(times["read"], times[name]), 2)
        row[f"{name} of_floats"] = round(n * k * m / own / floats_per_ms() / threads, 2)
    return row


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=21)
    rows = []
    for kind in ("ternary", "int8"):
        for n, k in SHAPES:
            for m in ROWS:
                rows.append(measure(kind, n, k, m, options.rounds, options.threads) | about)
                shown = {key: value for key, value in rows[-1].items() if key not in about}
                print(*(f"{key} {value}," for key, value in shown.items()), flush=True)
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())
