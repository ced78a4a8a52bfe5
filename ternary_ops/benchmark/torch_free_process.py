# SPDX-License-Identifier: Apache-2.0
"""Runs a program file in a process of its own where torch cannot be imported."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import TernaryOpsError

# -I leaves out the working directory (in a checkout it would hide the installed package); the
# parent's search path is handed over instead. None in sys.modules makes `import torch` fail.
_SCRIPT = """
import sys
sys.path[:] = sys.argv[4:]
sys.modules["torch"] = None
import numpy as np
from ternary_ops import runtime
program = runtime.load(sys.argv[1])
np.save(sys.argv[3], program(np.load(sys.argv[2])))
"""


def run_without_torch(file: str | Path, x: NDArray[np.float32]) -> NDArray[Any]:
    """The program's output for x, computed by a fresh torch-free process.

    Raises TernaryOpsError with that process's last line when it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "x.npy"), Path(folder, "y.npy")
        np.save(given, x)
        command = [sys.executable, "-I", "-c", _SCRIPT, str(Path(file).resolve())]
        done = subprocess.run(
            [*command, str(given), str(made), *sys.path],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line and line[0] != " "]
            reason = lines[-1] if lines else f"exit code {done.returncode}"
            raise TernaryOpsError(f"the saved program does not run without torch: {reason}")
        result: NDArray[Any] = np.load(made)
        return result
