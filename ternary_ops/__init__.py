# SPDX-License-Identifier: Apache-2.0
"""Ternary, pruned neural networks: compress with PyTorch, run with NumPy alone.

Importing this package imports nothing else, but for the operators when torch is already there;
each public name loads its module at first use, so that `ternary_ops.runtime` works without torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ternary_ops import _moved
from ternary_ops._version import __version__

if TYPE_CHECKING:
    from ternary_ops import (
        errors,
        interchange,
        io,
        models,
        nn,
        ops,
        prune,
        quantize,
        runtime,
        sr,
    )
    from ternary_ops.compiler import compile  # noqa: A004
    from ternary_ops.quantize import TernaryConfig, fallback_, load, pack_, quantize_, save
    from ternary_ops.quantize.calibration import calibrate
    from ternary_ops.quantize.layer_sensitivity import sensitivity
    from ternary_ops.quantize.plans import plan
    from ternary_ops.reporting import report
    from ternary_ops.runtime import Program

__all__ = [
    "Program",
    "TernaryConfig",
    "__version__",
    "calibrate",
    "compile",
    "errors",
    "fallback_",
    "interchange",
    "io",
    "load",
    "models",
    "nn",
    "ops",
    "pack_",
    "plan",
    "prune",
    "quantize",
    "quantize_",
    "report",
    "runtime",
    "save",
    "sensitivity",
    "sr",
]

_MODULES = frozenset(
    {"errors", "interchange", "io", "models", "nn", "ops"} | {"prune", "quantize", "runtime", "sr"}
)
_HOME = {
    "Program": "runtime",
    "TernaryConfig": "quantize",
    "calibrate": "quantize",
    "compile": "compiler",
    "fallback_": "quantize",
    "load": "quantize",
    "pack_": "quantize",
    "plan": "quantize",
    "quantize_": "quantize",
    "report": "reporting",
    "save": "quantize",
    "sensitivity": "quantize",
}


def __getattr__(name: str) -> Any:
    """Load a public name at first use; MissingExtra when it needs torch and torch is absent."""
    if name not in _MODULES and name not in _HOME:
        raise AttributeError(f"module 'ternary_ops' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"ternary_ops.{_HOME.get(name, name)}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from ternary_ops.errors import MissingExtra, need

        raise MissingExtra(
            need(
                f"ternary_ops.{name} needs PyTorch",
                "none installed",
                "pip install 'ternary-ops[train]'",
            )
        ) from error
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)


_moved.install()
if "torch" in sys.modules:
    importlib.import_module("ternary_ops.ops")  # defines torch.ops.ternary_ops.*
