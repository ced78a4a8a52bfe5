# SPDX-License-Identifier: Apache-2.0
"""Triton, imported when first needed."""

from __future__ import annotations

import importlib
from typing import Any

from ternary_ops.errors import MissingExtra, need


def triton_module(name: str = "triton") -> Any:
    """The module `name` of Triton; MissingExtra where Triton is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        do = "Install it with: pip install 'ternary-ops[gpu]'."
        raise MissingExtra(need("triton for GPU kernels", "none installed", do)) from error
