# SPDX-License-Identifier: Apache-2.0
"""Programs to ONNX, ONNX networks to PyTorch modules. Needs the extra `onnx`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ternary_ops.interchange.exporter import save_onnx
    from ternary_ops.interchange.importer import load_onnx

__all__ = ["load_onnx", "save_onnx"]

_HOME = {"load_onnx": "importer", "save_onnx": "exporter"}


def __getattr__(name: str) -> Any:
    """Load a public name at first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'ternary_ops.interchange' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ternary_ops.interchange.{_HOME[name]}"), name)
