# SPDX-License-Identifier: Apache-2.0
"""Batch-1 linear layers: 2-bit codes against the read bandwidth of the same run and torch int8.

    python bench/matvec.py [--threads 1] [--rounds 101] [--isa NAME] [--csv matvec.csv]

At M = 1 every weight is used once, so the ceiling is reading its bytes: `of_read` divides by the
time of a plain read of as many bytes, from a buffer of the codes' size. The activations are u8, the
output float32. torch int8 is its dynamic quantized linear (fp32 in and out, activations quantized
inside). `match`: equal to the NumPy reference bit for bit.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from _measure import interleave, ratio, setup, spread, stopwatch, write_csv

from ternary_ops._native import core
from ternary_ops.ops import codes, reference

SHAPES = ((4096, 4096), (11008, 4096), (512, 4608), (1000, 512))  # N, K
X_SCALE, X_ZERO = 0.02, 128


def measure(n: int, k: int, rounds: int, threads: int) -> dict[str, object]:
    """One row."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-1, 2, (n, k)).astype(np.int8)
    # torch aligns to 64 bytes, which a large NumPy array is not.
    packed_codes = torch.from_numpy(codes.pack_codes(weights)).clone().numpy()
    scale = rng.uniform(0.001, 0.01, n).astype(np.float32)
    x = rng.integers(0, 256, (1, k), dtype=np.uint8)
    y = np.full((1, n), np.nan, np.float32)
    packed = core().prepack("dense", "ternary", packed_codes.ctypes.data, n, 1, 1, k, 1)

    def ours() -> None:
        core().linear(
            x.ctypes.data, "u8", X_ZERO, 1, k, packed_codes.ctypes.data, "ternary", n,
            packed.ctypes.data, packed.nbytes, scale.ctypes.data, 0, y.ctypes.data, "f32", 1.0, 0,
        )  # fmt: skip

    ours()
    acc = reference.linear_acc(x, X_ZERO, weights)
    match = bool(
        np.array_equal(y, reference.epilogue(acc, scale, None, None, -np.inf, np.inf, None))
    )
    plain = torch.randint(0, 256, (packed_codes.size,), dtype=torch.uint8).numpy()
    dense = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False))
    int8 = torch.ao.quantization.quantize_dynamic(dense, {torch.nn.Linear}, torch.qint8)
    fx = torch.randn(1, k)
    timers = {
        "ours": stopwatch(ours),
        "read": stopwatch(lambda: core().read_burst(plain)),
        "torch int8": stopwatch(lambda: int8(fx)),
    }
    with torch.inference_mode():
        times = interleave(timers, rounds, warmup=10)
    own, low, high = spread(times["ours"])
    shown = {
        "us": round(own * 1e3, 1),
        "us_p20": round(low * 1e3, 1),
        "us_p80": round(high * 1e3, 1),
        "gweights_s": round(n * k / own / 1e6),
        "of_read": round(ratio(times["read"], times["ours"]), 2),
        "vs_torch_int8": round(ratio(times["torch int8"], times["ours"]), 2),
    }
    return {
        "shape": f"1 x ({n}, {k})",
        "match": match,
        **(shown if match else dict.fromkeys(shown, "")),
        "read_us": round(spread(times["read"])[0] * 1e3, 1),
        "read_gb_s": round(plain.nbytes / spread(times["read"])[0] / 1e6, 1),
        "torch_int8_us": round(spread(times["torch int8"])[0] * 1e3, 1),
        "threads": threads,
    }


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=101)
    rows = []
    for n, k in SHAPES:
        row = measure(n, k, options.rounds, options.threads)
        rows.append({**row, **about})
        print(
            f"{row['shape']:18} match {row['match']}  {row['us']} us"
            f" = {row['gweights_s']} Gweights/s, {row['of_read']} of reading"
            f" ({row['read_us']} us, {row['read_gb_s']} GB/s),"
            f" {row['vs_torch_int8']}x torch int8 ({row['torch_int8_us']} us)"
        )
    if options.csv:
        print("written:", write_csv(options.csv, rows))
    return 0 if all(row["match"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
