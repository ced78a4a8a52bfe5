# SPDX-License-Identifier: Apache-2.0
"""The default recipe against OpenVINO int8: ResNet-18, one core, a column an instruction set.

    python bench/fastest.py                 # measures, and writes README
    python bench/fastest.py --clock cpu     # on a machine that others use at the same time
    python bench/fastest.py --report        # README from the files that are there

Calls bench/networks.py for AVX2 and for the best instruction set of this machine: the recipe
"fastest" at 90 % (pattern fastest), and the same without quads in the stem (pattern 1x4, scope
time). For AVX2 OpenVINO is asked to keep to it as well (ONEDNN_MAX_CPU_ISA). The sentence between
the marks <!-- fastest --> of README.md is made from bench/results/fastest_ISA.csv.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from _measure import CLOCKS, RESULTS, command_line, read_rows

from ternary_ops import runtime

README = Path(__file__).resolve().parent.parent / "README.md"
_MARKS = "<!-- fastest -->", "<!-- /fastest -->"
_NAMES = {"avx2": "AVX2", "avxvnni": "AVX-VNNI", "avx512vnni": "AVX-512 VNNI"}


def out(isa: str) -> Path:
    """Where the rows of an instruction set are."""
    return RESULTS / f"fastest_{isa}.csv"


def measure(isa: str, options: Any) -> int:
    """Rows of one instruction set, anew; 1 where outputs do not match."""
    out(isa).unlink(missing_ok=True)
    env = {**os.environ, "TERNARY_OPS_ISA": isa}
    if isa == "avx2":
        env["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    call = [sys.executable, str(Path(__file__).with_name("networks.py")), "--models", "resnet18"]
    call += ["--patterns", "fastest,1x4", "--scope", "time", "--zeros", "0.9"]
    call += ["--against", "openvino", "--clock", options.clock, "--rounds", str(options.rounds)]
    return subprocess.run([*call, "--out", out(isa).name], env=env).returncode


def sentence() -> str:
    """What README says, from the files."""
    parts, machine = [], ""
    for isa, name in _NAMES.items():
        rows = read_rows(out(isa))
        ms = {row["pattern"]: float(row["ms"]) for row in rows if row["engine"] == "ternary-ops"}
        times = {r["pattern"]: r["times_ours"] for r in rows if r["engine"] == "openvino int8"}
        if not {"fastest", "1x4"} <= ms.keys() or not all(times.get(p) for p in ("fastest", "1x4")):
            continue
        machine = rows[0]["machine"]
        each = [f"{ms[p]:.1f} ms, {float(times[p]):.1f}x" for p in ("fastest", "1x4")]
        parts.append(f"{name} {each[0]} ({each[1]} with a dense stem)")
    return (
        "The recipe `fastest`, `compress`'s default, takes ResNet-18 to (224x224, one core, "
        f"{machine}; against OpenVINO int8 of the same instruction set): {'; '.join(parts)}."
    )


def main() -> int:
    """Measure, unless only the report is wanted, and write README."""
    parser = command_line(__doc__, rounds=21)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    isas = [isa for isa in dict.fromkeys(("avx2", runtime.available_isas()[-1])) if isa in _NAMES]
    failed = 0 if options.report else sum(measure(isa, options) for isa in isas)
    text = README.read_text(encoding="utf-8")
    (before, _, rest), said = text.partition(_MARKS[0]), sentence()
    after = rest.partition(_MARKS[1])[2]
    README.write_text(f"{before}{_MARKS[0]}{said}{_MARKS[1]}{after}", encoding="utf-8")
    print(said)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
