# SPDX-License-Identifier: Apache-2.0
"""Instructions that the engine needs for six programs: a count that no other process disturbs.

    python bench/instructions.py [--write FILE] [--against instructions.csv] [--isa avx2]

Each program file runs in one process under valgrind's callgrind (Debian: valgrind), one thread, one
call to warm up and then a few that are counted: callgrind writes its counters down where the
process calls getsid, which nothing else does. A call of Program in Python is counted with them, the
process itself and building the program are not. AVX2 by default: valgrind knows no AVX-512.

Figures of one compiler and its flags compare with each other alone. --against fails where one has
grown by more than 1 %, and names what shrank by as much. --make writes the two files of
bench/programs with PyTorch; the others were trained (bench/accuracy.py, bench/sr_train.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from _measure import NETWORKS, RESULTS, command_line, commit, read_rows, write_csv

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(__file__).resolve().parent / "programs"
WARMUP = 1  # a program is built and planned at its first call
MOST = 0.01  # relative growth

# Runs in the counted process, which imports no torch.
_CHILD = """
import json, os, sys
import numpy as np
from ternary_ops import runtime
warmup, cases = json.loads(sys.argv[1])
rng = np.random.default_rng(0)
with runtime.num_threads(1):
    for file, shape, calls in cases:
        program = runtime.load(file)
        x = rng.random(shape, np.float32)
        for _ in range(warmup):
            program(x)
        os.getsid(0)
        for _ in range(calls):
            program(x)
        os.getsid(0)
assert "torch" not in sys.modules
"""


class Case(NamedTuple):
    """A program file, the shape of its input and how many calls are counted."""

    name: str
    file: Path
    shape: tuple[int, ...]
    calls: int


CASES = (
    Case("dense int8", NETWORKS / "resnet20-width12.safetensors", (1, 3, 32, 32), 4),
    Case("quads 90 %", NETWORKS / "resnet20-quads90.safetensors", (1, 3, 32, 32), 8),
    Case("float", PROGRAMS / "float.safetensors", (1, 3, 40, 36), 4),
    Case("SR", RESULTS / "sr" / "efdn-x4-int8-fine.safetensors", (1, 3, 72, 80), 1),
    Case("batch 8", NETWORKS / "resnet20-quads90.safetensors", (8, 3, 32, 32), 2),
    Case("matvec", PROGRAMS / "matvec.safetensors", (1, 1024), 16),
)


def make() -> None:
    """Write bench/programs."""
    import torch
    from torch import nn

    import ternary_ops as tops

    torch.manual_seed(0)
    sparse = nn.Conv2d(32, 32, 3, padding=1)
    with torch.no_grad():
        sparse.weight *= (
            (torch.rand(8, 1, 32, 3, 3) < 0.15).repeat(1, 4, 1, 1, 1).view(32, 32, 3, 3)
        )
    floats = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), sparse, nn.LeakyReLU(0.1),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    PROGRAMS.mkdir(exist_ok=True)
    tops.compile(floats.eval(), torch.randn(1, 3, 40, 36)).save(PROGRAMS / "float.safetensors")
    rows = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(3)))
    with torch.no_grad():
        for layer in rows:  # a small file; rows are multiplied whole
            layer.weight *= torch.rand(1024, 1024) < 0.05
    tops.quantize_(rows, tops.plan(rows, tops.TernaryConfig(zeros=0.0, pattern="element")))
    for module in rows:
        module.phase = "frozen"  # type: ignore[assignment]
    x = torch.rand(16, 1024)
    tops.calibrate(rows, [x])
    tops.compile(rows.eval(), x).save(PROGRAMS / "matvec.safetensors")


def count(isa: str) -> list[dict[str, Any]]:
    """A row a case."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SystemExit("instructions.py needs valgrind: apt-get install valgrind")
    work = json.dumps([WARMUP, [(str(case.file), case.shape, case.calls) for case in CASES]])
    environment = {**os.environ, "TERNARY_OPS_ISA": isa, "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}"]
        command += ["--dump-before=getsid", sys.executable, "-c", _CHILD, work]
        # Elsewhere, so that the package that runs is the installed one.
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        if done.returncode:
            raise SystemExit(done.stderr)
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [_total(path) for path in dumps]
    if len(totals) < 2 * len(CASES):
        raise SystemExit(f"expected {2 * len(CASES)} dumps of callgrind, got {len(totals)}")
    counted = totals[1 : 2 * len(CASES) : 2]
    return [
        {"network": case.name, "file": case.file.relative_to(ROOT), "shape": list(case.shape),
         "isa": isa, "instructions": total // case.calls}
        for case, total in zip(CASES, counted, strict=True)
    ]  # fmt: skip


def _total(dump: Path) -> int:
    found = re.search(r"^(?:summary|totals): (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"callgrind wrote no total to {dump.name}")
    return int(found[1])


def compiler() -> str:
    """The compiler that setup.py takes, and its version."""
    sys.path.insert(0, str(ROOT / "csrc"))
    import native_build

    command = [*native_build.compiler(), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def compare(rows: list[dict[str, Any]], name: str) -> int:
    """Print each count beside the stored one; 1 where one has grown too much."""
    stored = {row["network"]: int(row["instructions"]) for row in read_rows(RESULTS / name)}
    grown = 0
    for row in rows:
        before, now = stored[row["network"]], row["instructions"]
        grown += now > before * (1 + MOST)
        print(f"{row['network']:12s} {before:12,d} -> {now:12,d}  {now / before - 1:+8.3%}")
    return 1 if grown else 0


def main() -> int:
    """Count, write, compare."""
    parser = command_line(__doc__)
    parser.add_argument("--write", metavar="FILE", help="file name under bench/results")
    parser.add_argument("--against", metavar="FILE", help="file name under bench/results")
    parser.add_argument("--isa", default="avx2")
    parser.add_argument("--make", action="store_true", help="write bench/programs anew")
    options = parser.parse_args()
    if options.make:
        make()
    about = {"compiler": compiler(), "commit": commit()}
    rows = [{**row, **about} for row in count(options.isa)]
    for row in rows:
        print(f"{row['network']:12s} {row['instructions']:12,d}")
    if options.write:
        print("written:", write_csv(options.write, rows))
    return compare(rows, options.against) if options.against else 0


if __name__ == "__main__":
    sys.exit(main())
