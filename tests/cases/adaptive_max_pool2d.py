# SPDX-License-Identifier: Apache-2.0
"""Cases of the program operator adaptive_max_pool2d."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cases import ProgramCase


def build(b: Any) -> None:
    """More windows than pixels and fewer, of floats and codes."""
    q = b("conv2d", b("quantize", 0, y=b.params()), w=b.weight("int8", 9, 5), y=b.params())
    q = b("adaptive_max_pool2d", q, size=(4, 7))
    x = b("conv2d", 0, w=b.weight("float", 9, 5, 3, 3), padding=(1, 1))
    x = b("adaptive_max_pool2d", x, size=(21, 5))
    x = b("adaptive_max_pool2d", b("add", x, x), size=(4, 7))
    b("add", x, b("dequantize", b("adaptive_max_pool2d", q, size=(1, 1))))


def by_torch(at: dict[str, Any], weight: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """PyTorch's own."""
    return F.adaptive_max_pool2d(x[0], at["size"])


def module(at: dict[str, Any], weight: Any) -> nn.Module:
    """nn.AdaptiveMaxPool2d."""
    return nn.AdaptiveMaxPool2d(at["size"])


def draw(d: Any, x: Any) -> Any:
    """To any size."""
    size = d.number(1, 9), d.number(1, 9)
    made = d.b("adaptive_max_pool2d", x.id, size=size)
    return replace(x, id=made, level=d.level(x, "max to", size))


CASE = ProgramCase("adaptive_max_pool2d", 5, build, by_torch, module, draw, {"size": [(0, 1)]})
