# SPDX-License-Identifier: Apache-2.0
"""Borders put around images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ternary_ops.compiler.call import Call
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.step import Step
from ternary_ops.compiler.unsupported import Unsupported
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
        at = call.arguments(free=("pad",))
        mode, ends, value = at["mode"], at["pad"], at["value"] or 0.0
    x = call.input(4)
    if not isinstance(ends, Sequence) or len(ends) not in (2, 4):
        raise Unsupported(f"borders of rows and columns are supported, not {ends}")
    found = [set(call.number(end)) for end in ends]
    if any(len(sizes) > 1 or min(sizes) < 0 for sizes in found):
        raise Unsupported("its borders are negative or depend on the size of the image")
    return padded(x, [*(sizes.pop() for sizes in found), 0, 0][:4], mode, float(value))


ROWS = {torch_ops.PAD: Row(_pad)}
