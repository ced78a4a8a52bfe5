# SPDX-License-Identifier: Apache-2.0
"""One wheel for each Python: built, installed where there is no compiler and no torch, and run.

    python bench/install.py python3.10 python3.11 python3.12 python3.13 [--csv install.csv]

Each interpreter builds the wheel in an isolated environment (no torch there), then a fresh virtual
environment installs it with PATH holding nothing but that environment, from wheels alone. `verify`
runs every kernel of every instruction set against its reference; `import_ms` is what importing
ternary_ops.runtime adds to a process that has NumPy, the median of --runs processes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from _measure import command_line, conclude

ROOT = Path(__file__).resolve().parents[1]
IMPORT = """
import time, numpy
start = time.perf_counter()
import ternary_ops.runtime
print((time.perf_counter() - start) * 1e3)
import sys
assert "torch" not in sys.modules
"""
INSTALLED = """
import sys, numpy, ternary_ops
from importlib.util import find_spec
print("%d.%d.%d" % sys.version_info[:3], numpy.__version__, find_spec("torch") is None)
"""


def output(*command: str | Path, path: str | None = None) -> str:
    """What a command prints; its own complaint where it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if path is not None:
        environment["PATH"] = path
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment, cwd="/"
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def measure(python: str, runs: int, folder: Path) -> dict[str, Any]:
    """The row of one interpreter."""
    wheels, venv = folder / "wheels", folder / "venv"
    output(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, ROOT)
    (wheel,) = wheels.glob("*.whl")
    output(python, "-m", "venv", venv)
    own, alone = venv / "bin" / "python", str(venv / "bin")
    install = ("-m", "pip", "install", "-q", "--only-binary", ":all:", wheel)
    output(own, *install, path=alone)
    version, numpy, bare = output(own, "-c", INSTALLED, path=alone).split()
    verified = output(venv / "bin" / "ternary-ops", "verify", path=alone).splitlines()[-1]
    times = [float(output(own, "-c", IMPORT, path=alone)) for _ in range(runs)]
    names = zipfile.ZipFile(wheel).namelist()
    core = next(name for name in names if name.startswith("ternary_ops/_core."))
    return {
        "version": version,
        "numpy": numpy,
        "torch_absent": bare,
        "verify": verified,
        "import_ms": round(statistics.median(times), 1),
        "wheel_bytes": wheel.stat().st_size,
        "files": len(names),
        "modules": sum(name.endswith(".py") for name in names),
        "core": core,
        "core_bytes": zipfile.ZipFile(wheel).getinfo(core).file_size,
    }


def main() -> int:
    """Print the matrix; write it where asked."""
    parser = command_line(__doc__, csv=True)
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="interpreters")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    rows = []
    for python in options.pythons:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(python, options.runs, Path(folder)))
        print(*(f"{key}: {value}" for key, value in rows[-1].items()), sep="  ")
    return conclude(rows, options.csv)


if __name__ == "__main__":
    sys.exit(main())
