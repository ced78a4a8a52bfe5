# SPDX-License-Identifier: Apache-2.0
"""PyTorch operators; each name loads PyTorch when used.

torch.ops.ternary_ops.* is there once such a name was used, after `register()`, or at once when
PyTorch was imported before this package.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ternary_ops import _moved
from ternary_ops.errors import check_age

if TYPE_CHECKING:
    from ternary_ops.ops import blocks
    from ternary_ops.ops._attention import esa, hf_attention
    from ternary_ops.ops._block_sparse_conv2d import block_sparse_conv2d
    from ternary_ops.ops._conv2d import conv2d
    from ternary_ops.ops._linear import linear
    from ternary_ops.ops._precision import precision_filter, precision_update
    from ternary_ops.ops._prepack import prepack
    from ternary_ops.ops._sparse_conv2d import sparse_conv2d
    from ternary_ops.ops._sr_gate import sr_gate
    from ternary_ops.ops._tokens import attention, layer_norm_codes

_OPS = {
    "attention": "_tokens",
    "block_sparse_conv2d": "_block_sparse_conv2d",
    "conv2d": "_conv2d",
    "esa": "_attention",
    "hf_attention": "_attention",
    "layer_norm_codes": "_tokens",
    "linear": "_linear",
    "precision_filter": "_precision",
    "precision_update": "_precision",
    "prepack": "_prepack",
    "sparse_conv2d": "_sparse_conv2d",
    "sr_gate": "_sr_gate",
}
_MODULES = ("blocks",)

__all__ = [
    "attention",
    "block_sparse_conv2d",
    "blocks",
    "conv2d",
    "esa",
    "hf_attention",
    "layer_norm_codes",
    "linear",
    "precision_filter",
    "precision_update",
    "prepack",
    "register",
    "sparse_conv2d",
    "sr_gate",
]


def register() -> None:
    """Define torch.ops.ternary_ops.* (does nothing the second time).

    Needs PyTorch; MissingExtra where it is too old.
    """
    check_age("torch", "operators and networks", "pip install --upgrade 'ternary-ops[train]'")
    for op, module in _OPS.items():
        globals()[op] = getattr(importlib.import_module(f"ternary_ops.ops.{module}"), op)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ternary_ops.ops.{name}")
    if name not in _OPS:
        return _moved.attribute(__name__, name)
    register()
    return globals()[name]


if sys.modules.get("torch") is not None:  # None: an import of torch is forbidden
    register()
