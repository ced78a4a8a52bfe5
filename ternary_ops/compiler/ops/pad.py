# SPDX-License-Identifier: Apache-2.0
"""Borders put around images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ternary_ops.compiler.call import Call, Unsupported
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.step import Step
from ternary_ops.graph import torch_ops

_MODES: dict[type[nn.Module], str] = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.CircularPad2d: "circular",
}


def padded(x: Step, ends: Sequence[int], mode: str, value: float = 0.0) -> Step:
    """An image with borders; ends: left, right, top and bottom, as torch says them."""
    left, right, top, bottom = ends
    attrs: dict[str, Any] = {"before": (top, left), "after": (bottom, right), "mode": mode}
    return Step("pad", [x], {**attrs, "value": None if value == -float("inf") else value})


def _pad(call: Call) -> Step:
    module = call.module
    if module is not None:
        mode, ends = _MODES.get(type(module), "constant"), module.padding
        value = getattr(module, "value", 0.0)
    else:
        at = call.arguments()
        mode, ends, value = at["mode"], at["pad"], at["value"] or 0.0
    x = call.input(4)
    sizes = isinstance(ends, Sequence) and all(isinstance(end, int) for end in ends)
    if not sizes or len(ends) not in (2, 4) or min(ends) < 0:
        raise Unsupported(f"rows and columns of constant numbers are put around images: {ends}")
    return padded(x, [*ends, 0, 0][:4], mode, float(value))


ROWS = {torch_ops.PAD: Row(_pad)}
