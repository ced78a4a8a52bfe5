# SPDX-License-Identifier: Apache-2.0
"""Statistical downscaling of climate fields, with xarray and dask.

Models run as programs, without torch; `fit` trains one and needs it. Each name loads its module at
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ternary_ops.errors import needs_package

if TYPE_CHECKING:
    from ternary_ops.climate import baselines
    from ternary_ops.climate.downscaler import Downscaler
    from ternary_ops.climate.downscaling import downscale
    from ternary_ops.climate.fitting import Recipe, fit, training_steps
    from ternary_ops.climate.output import write
    from ternary_ops.climate.samples import Features
    from ternary_ops.climate.scores import compare, score

_MODULES = frozenset({"baselines"})
_HOME = {
    "Downscaler": "downscaler",
    "Features": "samples",
    "Recipe": "fitting",
    "compare": "scores",
    "downscale": "downscaling",
    "fit": "fitting",
    "score": "scores",
    "training_steps": "fitting",
    "write": "output",
}

__all__ = [
    "Downscaler",
    "Features",
    "Recipe",
    "baselines",
    "compare",
    "downscale",
    "fit",
    "score",
    "training_steps",
    "write",
]


def __getattr__(name: str) -> Any:
    """Load a name at first use; MissingExtra when it needs a package that is absent."""
    if name not in _HOME and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs_package("torch", f"climate.{name}", "pip install 'ternary-ops[train]'"):
        module = importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value
