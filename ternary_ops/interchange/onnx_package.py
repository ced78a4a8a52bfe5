# SPDX-License-Identifier: Apache-2.0
"""The onnx package, which reads, checks and writes the files."""

from __future__ import annotations

import importlib
from typing import Any

from ternary_ops.errors import MissingExtra, need


class Unsupported(Exception):
    """A node that cannot be read: what it needs, what it has; the caller adds name and advice."""

    def __init__(self, what: str, got: object) -> None:
        super().__init__(f"needs {what}, got {got}")


class UnknownInput(Exception):
    """A node reads an output of a refused node: not reported itself."""


def onnx_library() -> Any:
    """The package with its helper, numpy_helper and checker; MissingExtra without it."""
    try:
        library = importlib.import_module("onnx")
    except ImportError as error:
        do = "pip install 'ternary-ops[onnx]'"
        raise MissingExtra(need("the package onnx for ONNX files", "none installed", do)) from error
    for part in ("defs", "helper", "numpy_helper", "checker", "shape_inference"):
        importlib.import_module(f"onnx.{part}")
    return library
