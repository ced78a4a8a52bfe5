# SPDX-License-Identifier: Apache-2.0
"""Cases of the program operator group_norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cases import ProgramCase


def build(b: Any) -> None:
    """All channels in one group, groups of several, a channel each; behind floats and codes."""
    y = b("conv2d", b("quantize", 0, y=b.params()), w=b.weight("ternary", 18, 12, zeros=0.0))
    x = b("group_norm", 0, w=b.weight("float", 12, 1, zeros=0.0), groups=1, eps=1e-5)
    x = b("conv2d", x, w=b.weight("float", 18, 12, 3, 3, zeros=0.0), padding=(1, 1))
    x = b("group_norm", x, w=b.weight("float", 18, 1, zeros=0.0), groups=6, eps=1e-3)
    b("add", x, b("group_norm", y, w=b.weight("float", 18, 1, bias=False), groups=18, eps=0.1))


def by_torch(at: dict[str, Any], weight: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """In float64."""
    factor = torch.from_numpy(weight.array.ravel().astype(np.float64))
    bias = None if weight.bias is None else torch.from_numpy(weight.bias.astype(np.float64))
    return F.group_norm(x[0].double(), at["groups"], factor, bias, at["eps"]).float()


def module(at: dict[str, Any], weight: Any) -> torch.nn.Module:
    """nn.GroupNorm."""
    layer = torch.nn.GroupNorm(at["groups"], weight.shape[0], at["eps"])
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.array.ravel().copy()))
        if weight.bias is not None:
            layer.bias.copy_(torch.from_numpy(weight.bias.copy()))
    return layer


def draw(d: Any, x: Any) -> Any:
    """Over any number of groups."""
    real = d.real(x)
    groups = d.pick(*(g for g in range(1, real.channels + 1) if real.channels % g == 0))
    w = d.b.weight("float", real.channels, 1, zeros=0.0)
    made = d.b("group_norm", real.id, w=w, groups=groups, eps=1e-3)
    return type(real)(made, real.channels, real.level, True)


CASE = ProgramCase("group_norm", 12, build, by_torch, module, draw)
