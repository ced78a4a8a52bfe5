# SPDX-License-Identifier: Apache-2.0
"""The entropy coder of weight files: bytes against the bound and the usual compressors, and speed.

    python bench/codec.py [--weights 2359296] [--rounds 7] [--csv codec.csv]

One ternary tensor a row: "1x4" has whole quads empty, "element" single weights. One core; a time is
the CPU time of the calling thread, so that a busy machine counts less. xz and zstd get the 2-bit
codes. constriction, where installed, gets the quads as two static models, occupied or not and which
of the 80, whose tables it would have to store besides. `match` says that the decoded tensor is the
encoded one.
"""

from __future__ import annotations

import lzma
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard
from _measure import Timer, command_line, conclude, headline, interleave
from numpy.typing import NDArray

from ternary_ops._native import core
from ternary_ops.io.sizes import entropy_bound
from ternary_ops.layout.codes import pack_codes

DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
WIDTH = 256
COLUMNS = (
    *("pattern", "density", "match", "bound", "ours", "of_bound", "xz", "zstd", "constriction"),
    *("encode_mw_s", "decode_mw_s", "constriction_decode_mw_s"),
)

Codes = NDArray[np.int8]


def tensor(pattern: str, density: float, weights: int) -> Codes:
    """Random codes [rows, WIDTH]; density is the share of occupied quads, or of nonzero weights."""
    rng = np.random.default_rng(1)
    if pattern == "element":
        shares = [density / 2, 1 - density, density / 2]
        return rng.choice([-1, 0, 1], (weights // WIDTH, WIDTH), p=shares).astype(np.int8)
    quads = rng.choice([-1, 0, 1], (weights // 4, 4)).astype(np.int8)
    quads[(quads == 0).all(1), 0] = 1
    quads[rng.random(len(quads)) >= density] = 0
    return quads.reshape(-1, WIDTH)


def cpu_clock(run: Callable[[], object]) -> Timer:
    """A timer of one call, in milliseconds of this thread."""

    def once() -> float:
        start = time.thread_time()
        run()
        return (time.thread_time() - start) * 1e3

    return once


def constriction_coder(codes: Codes) -> tuple[int, Callable[[], Any]] | None:
    """Bytes of two static models, and a call that decodes; None where it is not installed."""
    try:
        import constriction
    except ImportError:
        return None
    model, stack = constriction.stream.model, constriction.stream.stack
    digits = np.where(codes < 0, 2, codes).reshape(-1, 4)
    numbers = (digits @ np.array([1, 3, 9, 27])).astype(np.int32)
    occupied = (numbers > 0).astype(np.int32)
    kept = numbers[numbers > 0] - 1
    shares = np.bincount(kept, minlength=80) + 1e-9
    symbol = model.Categorical(shares / shares.sum(), perfect=False)
    is_occupied = model.Categorical(
        np.bincount(occupied, minlength=2) / len(occupied) * 0.999 + 0.0005, perfect=False
    )
    coder = stack.AnsCoder()
    coder.encode_reverse(kept, symbol)
    coder.encode_reverse(occupied, is_occupied)
    words = coder.get_compressed()

    def decode() -> object:
        decoder = stack.AnsCoder(words)
        return decoder.decode(is_occupied, len(occupied)), decoder.decode(symbol, len(kept))

    return words.nbytes, decode


def measure(pattern: str, density: float, weights: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    codes = tensor(pattern, density, weights)
    spec = [("ternary", *codes.shape)]
    payload = core().codec_encode([("ternary", codes)])
    timers = {
        "encode": cpu_clock(lambda: core().codec_encode([("ternary", codes)])),
        "decode": cpu_clock(lambda: core().codec_decode(payload, spec)),
    }
    rival = constriction_coder(codes)
    if rival is not None:
        timers["rival"] = cpu_clock(rival[1])
    times = interleave(timers, rounds, warmup=1)
    speed = {name: round(codes.size / 1e3 / statistics.median(t)) for name, t in times.items()}
    two_bit = pack_codes(codes).tobytes()
    bound = entropy_bound(codes, pattern) / 8
    values = (
        *(pattern, density, bool(np.array_equal(core().codec_decode(payload, spec)[0], codes))),
        *(round(bound), payload.size, round(payload.size / bound, 4)),
        len(lzma.compress(two_bit, preset=9 | lzma.PRESET_EXTREME)),
        len(zstandard.ZstdCompressor(level=19).compress(two_bit)),
        "" if rival is None else rival[0],
        *(speed["encode"], speed["decode"], speed.get("rival", "")),
    )
    return dict(zip(COLUMNS, values, strict=True))


def main() -> int:
    parser = command_line(__doc__, rounds=7, csv=True)
    parser.add_argument("--weights", type=int, default=9 * 512 * 512, help="of each tensor")
    options = parser.parse_args()
    about = {
        "weights": options.weights,
        "ternary_ops": core().version,
        "numpy": np.__version__,
        "zstandard": zstandard.__version__,
    }
    headline(about)
    print("bytes of one tensor; speeds in million weights a second, median of", options.rounds)
    print(*(f"{name:>{max(8, len(name))}}" for name in COLUMNS), sep="  ")
    rows = []
    for pattern in ("1x4", "element"):
        for density in DENSITIES:
            row = measure(pattern, density, options.weights, options.rounds)
            print(*(f"{row[name]!s:>{max(8, len(name))}}" for name in COLUMNS), sep="  ")
            rows.append({**row, **about})
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())
