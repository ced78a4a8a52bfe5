# SPDX-License-Identifier: Apache-2.0
"""Operators. `reference` and `codes` need NumPy alone; every other name loads PyTorch when used.

torch.ops.ternary_ops.* is there once such a name was used, after `register()`, or at once when
PyTorch was imported before this package.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ternary_ops.ops import blocks, codes, reference
    from ternary_ops.ops._block_sparse_conv2d import block_sparse_conv2d
    from ternary_ops.ops._conv2d import conv2d
    from ternary_ops.ops._linear import linear
    from ternary_ops.ops._prepack import prepack
    from ternary_ops.ops._sparse_conv2d import sparse_conv2d

_OPS = ("block_sparse_conv2d", "conv2d", "linear", "prepack", "sparse_conv2d")
_MODULES = ("blocks", "codes", "reference")

__all__ = [
    "block_sparse_conv2d",
    "blocks",
    "codes",
    "conv2d",
    "linear",
    "prepack",
    "reference",
    "register",
    "sparse_conv2d",
]


def register() -> None:
    """Define torch.ops.ternary_ops.* (needs PyTorch; does nothing the second time)."""
    for op in _OPS:
        globals()[op] = getattr(importlib.import_module(f"ternary_ops.ops._{op}"), op)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ternary_ops.ops.{name}")
    if name not in _OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return globals()[name]


if sys.modules.get("torch") is not None:  # None: an import of torch is forbidden
    register()
