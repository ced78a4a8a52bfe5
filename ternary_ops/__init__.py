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
from ternary_ops.errors import needs_package, too_old

if TYPE_CHECKING:
    from ternary_ops import (
        benchmark,
        budget,
        climate,
        errors,
        gpu,
        interchange,
        io,
        models,
        monitor,
        nn,
        ops,
        program,
        prune,
        quantize,
        reference,
        runtime,
        sr,
        study,
        train,
    )
    from ternary_ops.budget import Budget, reorder_channels_, search
    from ternary_ops.checking import check
    from ternary_ops.compiler import compile  # noqa: A004
    from ternary_ops.quantize import (
        TernaryConfig,
        calibrate,
        correct_bias_,
        equalize_,
        fallback_,
        fold_batchnorm_,
        get_recipe,
        load,
        pack_,
        plan,
        quantize_,
        recalibrate_batchnorm_,
        save,
        sensitivity,
    )
    from ternary_ops.reporting import report
    from ternary_ops.runtime import Program

__all__ = [
    "Budget",
    "Program",
    "TernaryConfig",
    "__version__",
    "benchmark",
    "budget",
    "calibrate",
    "check",
    "climate",
    "compile",
    "correct_bias_",
    "equalize_",
    "errors",
    "fallback_",
    "fold_batchnorm_",
    "get_recipe",
    "gpu",
    "interchange",
    "io",
    "load",
    "models",
    "monitor",
    "nn",
    "ops",
    "pack_",
    "plan",
    "program",
    "prune",
    "quantize",
    "quantize_",
    "recalibrate_batchnorm_",
    "reference",
    "reorder_channels_",
    "report",
    "runtime",
    "save",
    "search",
    "sensitivity",
    "sr",
    "study",
    "train",
]

_MODULES = frozenset(
    {
        "benchmark",
        "budget",
        "climate",
        "errors",
        "gpu",
        "interchange",
        "io",
        "models",
        "monitor",
        "nn",
        "ops",
        "program",
        "prune",
        "quantize",
        "reference",
        "runtime",
        "sr",
        "study",
        "train",
    }
)
_HOME = {
    "Budget": "budget",
    "Program": "runtime",
    "TernaryConfig": "quantize",
    "calibrate": "quantize",
    "check": "checking",
    "compile": "compiler",
    "correct_bias_": "quantize",
    "equalize_": "quantize",
    "fallback_": "quantize",
    "fold_batchnorm_": "quantize",
    "get_recipe": "quantize",
    "load": "quantize",
    "pack_": "quantize",
    "plan": "quantize",
    "quantize_": "quantize",
    "recalibrate_batchnorm_": "quantize",
    "reorder_channels_": "budget",
    "report": "reporting",
    "save": "quantize",
    "search": "budget",
    "sensitivity": "quantize",
}


def __getattr__(name: str) -> Any:
    """Load a public name at first use; MissingExtra when it needs torch and torch is absent."""
    if name not in _MODULES and name not in _HOME:
        return _moved.attribute(__name__, name)
    with needs_package("torch", f"ternary_ops.{name}", "pip install 'ternary-ops[train]'"):
        module = importlib.import_module(f"ternary_ops.{_HOME.get(name, name)}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)


_moved.install()
if "torch" in sys.modules and not too_old("torch"):  # an old one must not break the runtime
    importlib.import_module("ternary_ops.ops")  # defines torch.ops.ternary_ops.*
