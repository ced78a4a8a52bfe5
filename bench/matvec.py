# SPDX-License-Identifier: Apache-2.0
"""Ternary linear layers of few rows against other engines and the machine's ceilings.

    python bench/matvec.py [--threads 1] [--rounds 41] [--isa NAME] [--csv linear.csv]

All take float32 rows and give float32 rows; quantizing the activations is part of every time.
`op` is torch.ops.ternary_ops.linear, `program` the compiled one-layer network. At one row every
weight is used once, so the ceiling is reading its bytes: `of_read` divides the time of a plain read
of as many bytes by ours; at many rows it is multiplying: `of_dots` divides by dot products from
registers. `match`: ours equals the NumPy reference bit for bit. A rival's time is divided by ours,
and the ratio shown only where its result is within 3 % (of the largest value) of float64: that is
what quantizing activations may cost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _linear_rivals import rivals
from _measure import conclude, interleave, ratio, setup, spread, stopwatch

import ternary_ops as tops
from ternary_ops import reference
from ternary_ops._native import core
from ternary_ops.layout import codes
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Weight
from ternary_ops.runtime import Program

SHAPES = ((512, 4608), (1000, 512), (4096, 4096), (11008, 4096))  # N, K
ROWS = (1, 8, 32, 128)
CLOSE = 0.03
# The largest products take long enough for a few rounds to tell.
FEW_ROUNDS, MANY_PRODUCTS = 7, 5e8


def program(weights: np.ndarray[Any, Any], scale: np.ndarray[Any, Any], params: Any) -> Program:
    """The layer as a network."""
    n, k = weights.shape
    nodes = (
        Node("input", (), {"c": k, "rank": 2}),
        Node("quantize", (0,), {"y": params}),
        Node("linear", (1,), {"w": 0}),
    )
    graph = Graph(nodes, (Weight("fc", "ternary", weights.reshape(n, 1, 1, k), scale),))
    return Program(graph, (1, k))


def dots_per_ms(rounds: int = 200_000) -> float:
    """Byte products a millisecond from registers, one core."""
    core().dot_burst(rounds)
    start = time.perf_counter()
    made = core().dot_burst(rounds)
    return float(made) / ((time.perf_counter() - start) * 1e3)


def measure(n: int, k: int, m: int, rounds: int, threads: int) -> dict[str, object]:
    """One row of the table."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-1, 2, (n, k)).astype(np.int8)
    scale = rng.uniform(0.001, 0.01, n).astype(np.float32)
    x = rng.standard_normal((m, k)).astype(np.float32)
    params = reference.affine_params(float(x.min()), float(x.max()))
    x_scale, zero_point = float(params[0]), params[1]
    acc = reference.linear_acc(reference.quantize(x, *params), zero_point, weights)
    want = reference.epilogue(acc, scale * params[0])
    exact = x.astype(np.float64) @ (weights * scale[:, None].astype(np.float64)).T

    held = torch.from_numpy(codes.pack_codes(weights))
    packed = tops.ops.prepack(held, "dense", k)
    tensor, scales = torch.from_numpy(x), torch.from_numpy(scale)
    network = program(weights, scale, (x_scale, zero_point))

    def op() -> np.ndarray[Any, Any]:
        y = tops.ops.linear(
            tensor, held, scales, x_scale=x_scale, x_zero_point=zero_point, packed=packed
        )
        return y.numpy()  # type: ignore[no-any-return]

    with torch.inference_mode():
        match = all(np.array_equal(y, want) for y in (op(), network(x)))
        contenders: dict[str, Callable[[], object]] = {"op": op, "program": lambda: network(x)}
        close = {}
        for name, make in rivals().items():
            run = make(weights, scale, m, threads)
            error = float(np.abs(run(x) - exact).max() / np.abs(exact).max())
            close[name] = error < CLOSE
            contenders[name] = lambda run=run: run(x)  # type: ignore[misc]
        plain = np.random.default_rng(1).integers(0, 256, n * k // 4, dtype=np.uint8)
        contenders["read"] = lambda: core().read_burst(plain)
        used = FEW_ROUNDS if float(n) * k * m > MANY_PRODUCTS else rounds
        times = interleave({name: stopwatch(run) for name, run in contenders.items()}, used)
    own = spread(times["op"])[0]
    row: dict[str, object] = {"n": n, "k": k, "m": m, "threads": threads, "match": match}
    row["op_us"] = round(own * 1e3, 1)
    row["program_us"] = round(spread(times["program"])[0] * 1e3, 1)
    row["read_us"] = round(spread(times["read"])[0] * 1e3, 1)
    row["of_read"] = round(ratio(times["read"], times["op"]), 2)
    row["of_dots"] = round(n * k * m / own / dots_per_ms() / threads, 2)
    for name in close:
        row[f"{name}, us"] = round(spread(times[name])[0] * 1e3, 1)
        for own_name in ("op", "program"):
            gain = round(ratio(times[name], times[own_name]), 2)
            row[f"{own_name} vs {name}"] = gain if match and close[name] else ""
    return row


def main() -> int:
    """Print the table; write it where asked."""
    options, about = setup(__doc__, rounds=41)
    rows: list[dict[str, object]] = []
    for n, k in SHAPES:
        for m in ROWS:
            row = measure(n, k, m, options.rounds, options.threads)
            rows.append({**row, **about})
            shown = ", ".join(f"{name} {value}" for name, value in row.items() if "us" not in name)
            print(f"{shown}: {row['op_us']} us, program {row['program_us']} us", flush=True)
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())
