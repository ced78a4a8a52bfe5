# SPDX-License-Identifier: Apache-2.0
"""The processor: instruction sets and threads that programs use, chosen by thread."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ternary_ops import _native
from ternary_ops._version import __version__
from ternary_ops.errors import BadConfig, UnsupportedDevice, need

_MOST_THREADS = 256  # of the core's own pool
_overrides = threading.local()


def isa() -> str:
    """The instruction set in use: the best this processor has, unless forced."""
    name: str = _native.core().isa()
    return name


def available_isas() -> list[str]:
    """Instruction sets that work here, slowest first; "scalar" is always one."""
    return list(_native.core().available_isas())


@contextmanager
def force_isa(name: str) -> Iterator[None]:
    """Use one instruction set in this thread. Raises UnsupportedDevice for one that is not there.

    The environment variable TERNARY_OPS_ISA does the same for a whole process.
    """
    core = _native.core()
    if name not in core.available_isas():
        why = core.isa_report().get(name, "unknown")
        raise UnsupportedDevice(
            need(
                f"for force_isa one of {', '.join(core.available_isas())}",
                f"{name!r} ({why})",
                "Leave it out to use the best one.",
            )
        )
    with _override("isa", core.set_isa, name, ""):
        yield


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use n threads for calls from this thread; results do not change."""
    if type(n) is not int or not 1 <= n <= _MOST_THREADS:
        what = f"for num_threads an integer in 1..{_MOST_THREADS}"
        raise BadConfig(need(what, repr(n), "One per core is best."))
    core = _native.core()
    with _override("threads", core.set_num_threads, n, 0):
        yield


def processor() -> str:
    """The model of this processor, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def info() -> dict[str, Any]:
    """Versions, the instruction set chosen, why others were not, threads, environment variables."""
    core = _native.core()
    return {
        "version": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "isa": core.isa(),
        "available_isas": list(core.available_isas()),
        "isa_report": dict(core.isa_report()),
        "num_threads": core.num_threads(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("TERNARY_OPS_")},
    }


@contextmanager
def _override(what: str, set_value: Callable[[Any], Any], value: Any, none: Any) -> Iterator[None]:
    """Set a thread's override and restore the one before, so that blocks nest."""
    before = getattr(_overrides, what, none)
    set_value(value)
    setattr(_overrides, what, value)
    try:
        yield
    finally:
        set_value(before)
        setattr(_overrides, what, before)
