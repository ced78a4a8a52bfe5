# SPDX-License-Identifier: Apache-2.0
"""The report card of the GPU kernels: machine code for every target, no GPU needed.

    python bench/gpu_static.py                 # all rows; writes bench/results/gpu_static.csv, or
                                               # gpu_static_triton_X.csv for another Triton X
    python bench/gpu_static.py --check         # fails on spills, traps, lost tensor cores, growth;
                                               # writes the first card of another Triton
    python bench/gpu_static.py --targets sm_90 --cases linear

Columns: registers, spills, shared memory, tensor-core instruction, widest global load of the
longest kernel; thread instructions per unit, of that kernel and of all launches; bytes against the
least; predicted microseconds and their share of the roofline (a model that ranks, fitted on six
published times, with errors of up to 30 % outside of them: ternary_ops/gpu/perf_model.py).
"""

from __future__ import annotations

import sys
from importlib.metadata import version

from _measure import RESULTS, command_line, read_rows, write_csv

from ternary_ops.gpu import devices, report
from ternary_ops.gpu.cases import all_cases

REFERENCE = "3.7.1"  # what other releases of Triton make has a table of its own


def table() -> str:
    """Name of the card of this version of Triton."""
    found = version("triton")
    return "gpu_static.csv" if found == REFERENCE else f"gpu_static_triton_{found}.csv"


def committed() -> dict[tuple[str, str], report.Limits]:
    """What the card in the repository promises."""
    kept = [row for row in read_rows(RESULTS / table()) if row["per_unit"]]
    return {
        (row["case"], row["target"]): report.Limits(
            row["tensor_core"],
            *(float(row["per_unit"]), int(row["spill_bytes"]), int(row["stack_bytes"])),
        )
        for row in kept
    }


def main() -> int:
    """Compile, then write or check."""
    parser = command_line(__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--targets", nargs="+", default=list(devices.TARGETS))
    parser.add_argument("--cases", default="", help="those whose name holds this")
    options = parser.parse_args()
    first = options.check and not (RESULTS / table()).exists()
    cases = [case for case in all_cases() if options.cases in case.name]
    limits = committed() if options.check else {}
    wrong, rows = [], []
    for target in options.targets:
        for case in cases:
            for row in report.rows(case, target):
                wrong += report.check(row, limits.get((row["case"], row["target"])))
                rows.append(row | {"triton": version("triton")})
                shown = {k: v for k, v in row.items() if k not in ("unit", "bytes", "triton")}
                print(*(f"{k}={v}" for k, v in shown.items() if v != ""), flush=True)
    everything = not options.cases and options.targets == list(devices.TARGETS)
    if everything and (first or not options.check):
        names = dict.fromkeys(name for row in rows for name in row)
        print("written:", write_csv(table(), [{n: row.get(n, "") for n in names} for row in rows]))
    for line in sorted(set(wrong)):
        print("WRONG", line)
    print(f"machine code: {len(rows)} rows, {len(set(wrong))} worse than the card allows")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
