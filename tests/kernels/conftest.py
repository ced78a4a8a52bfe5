# SPDX-License-Identifier: Apache-2.0
"""Kernels run under the interpreter of interpreter.py, in a process of their own.

Triton decides when it is imported whether kernels are interpreted, and for the whole process; the
other tests shall see it as users do. Hence two runs: `pytest tests`, which skips this folder, and
`TRITON_INTERPRET=1 pytest tests/kernels`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def _why_not() -> str | None:
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:  # a folder of that name is no Triton
        return "Triton is not installed: pip install ternary-ops[gpu]"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "run with TRITON_INTERPRET=1"
    return None


_REASON = _why_not()

if _REASON is None:
    # The default will change; results shall not.
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    import interpreter

    try:
        interpreter.install()
    except RuntimeError as error:
        raise pytest.UsageError(str(error)) from error


class _Skipped(pytest.Module):
    def collect(self) -> list[pytest.Item]:
        pytest.skip(str(_REASON), allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Skips whole files before they, and with them Triton, are imported."""
    return _Skipped.from_parent(parent, path=module_path) if _REASON else None
