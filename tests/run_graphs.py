# SPDX-License-Identifier: Apache-2.0
"""Random networks by the thousand: call == trace == NumPy == PyTorch.

python tests/run_graphs.py --seeds 0:20000 --log bench/results/random_graphs.txt
python tests/run_graphs.py --seeds 0:500 --topologies pan unet --natural

compiler/test_random_graphs.py runs some of them in CI. Ends with 1 and prints the smallest network
found when two ways differ. The log says which seeds ran and what they covered.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

from engine_access import available_isas  # noqa: E402
from graph_checks import Tally, run_seed  # noqa: E402
from topologies import TOPOLOGIES  # noqa: E402

_BLOCK = 250


def run_block(
    begin: int, end: int, names: tuple[str, ...], natural: bool | None
) -> tuple[Tally, list[str]]:
    """Seeds [begin, end): what they covered and what failed."""
    torch.set_num_threads(1)
    tally, failures = Tally(), []
    for seed in range(begin, end):
        try:
            run_seed(seed, tally, names, natural)
        except AssertionError as error:
            failures.append(str(error))
    return tally, failures


def main() -> int:
    """A line a block; the histogram at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0:1000", help="first:end")
    parser.add_argument("--topologies", nargs="*", default=[], choices=sorted(TOPOLOGIES))
    parser.add_argument("--natural", action="store_true", help="widths and sizes as people use")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    first, end = (int(v) for v in options.seeds.split(":"))
    blocks = [(b, min(b + _BLOCK, end)) for b in range(first, end, _BLOCK)]
    total, failures, start = Tally(), [], time.monotonic()
    names, natural = tuple(options.topologies), True if options.natural else None
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        made = [pool.submit(run_block, a, b, names, natural) for a, b in blocks]
        for (a, b), future in zip(blocks, made, strict=True):
            tally, wrong = future.result()
            total += tally
            failures += wrong
            seconds = time.monotonic() - start
            found = f"{tally.graphs} graphs, {len(wrong)} differences"
            print(f"seeds {a}..{b - 1}: {found}, {seconds:.0f} s", flush=True)
            for text in wrong:
                print(text, flush=True)
    lines = [
        f"python tests/run_graphs.py --seeds {options.seeds}"
        + (f" --topologies {' '.join(names)}" if names else "")
        + (" --natural" if options.natural else ""),
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, instruction sets {' '.join(available_isas())}",
        f"differences {len(failures)}",
        *total.lines(),
    ]
    print(*lines, sep="\n")
    if options.log:
        with options.log.open("a") as log:
            print(*lines, "", sep="\n", file=log)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
