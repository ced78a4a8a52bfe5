# SPDX-License-Identifier: Apache-2.0
"""Operators. `reference`, `codes` and `blocks` need NumPy alone; any other name loads PyTorch.

torch.ops.ternary_ops.* exists once one of those other names was used, or after `register()`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ternary_ops.ops._block_sparse_conv2d import block_sparse_conv2d
    from ternary_ops.ops._conv2d import conv2d
    from ternary_ops.ops._linear import linear
    from ternary_ops.ops._prepack import prepack
    from ternary_ops.ops._sparse_conv2d import sparse_conv2d

__all__ = ["block_sparse_conv2d", "conv2d", "linear", "prepack", "register", "sparse_conv2d"]

_OPS = ("block_sparse_conv2d", "conv2d", "linear", "prepack", "sparse_conv2d")


def register() -> None:
    """Define torch.ops.ternary_ops.* (needs PyTorch; does nothing the second time)."""
    for op in _OPS:
        globals()[op] = getattr(importlib.import_module(f"ternary_ops.ops._{op}"), op)


def __getattr__(name: str) -> Any:
    if name not in _OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return globals()[name]
