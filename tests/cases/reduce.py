# SPDX-License-Identifier: Apache-2.0
"""Cases of the program operator reduce."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cases import ProgramCase


def build(b: Any) -> None:
    """Each function, along each axis and several, of floats and codes; beside what they reduce."""
    q = b("conv2d", b("quantize", 0, y=b.params()), w=b.weight("ternary", 10, 7), y=b.params(-9, 9))
    x = b("dequantize", q)
    y = b("mul", x, b("reduce", x, fn="mean", axes=(1,)))
    y = b("add", y, b("reduce", x, fn="sum", axes=(3,)), clamp=(-9.0, 9.0))
    y = b("add", y, b("reduce", x, fn="max", axes=(2, 3)))
    y = b("mul", y, b("reduce", x, fn="min", axes=(2,)))
    y = b("add", b("reduce", y, fn="mean", axes=(1, 2, 3)), y)
    most = b("concat", b("reduce", q, fn="max", axes=(1,)), q, y=b.params(-9, 9))
    least = b("add", most, b("reduce", q, fn="min", axes=(1, 3)), y=b.params(-9, 9))
    rows = b("mul", b("reduce", most, fn="min", axes=(2,)), b("reduce", least, fn="max", axes=(3,)))
    b("concat", y, rows, b("reduce", y, fn="mean", axes=(1,)))


def by_torch(at: dict[str, Any], weight: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """In float64; of tokens, the axes as PyTorch counts them."""
    of_tokens = {1: 2, 2: 1}
    axes = tuple(of_tokens[a] if x[0].dim() == 3 else a for a in at["axes"])
    functions = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}
    return functions[at["fn"]](x[0].double(), axes, keepdim=True).float()


class _Reduce(nn.Module):
    def __init__(self, fn: str, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.fn, self.axes = fn, axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        names = {"max": "amax", "min": "amin"}
        made: torch.Tensor = getattr(x, names.get(self.fn, self.fn))(self.axes, keepdim=True)
        return made


def module(at: dict[str, Any], weight: Any) -> nn.Module:
    """A method of tensors."""
    return _Reduce(at["fn"], at["axes"])


def draw(d: Any, x: Any) -> Any:
    """Along channels or columns, beside what is reduced."""
    fn = d.pick("sum", "mean", "max", "min")
    x = x if fn in ("max", "min") else d.real(x)
    made = replace(x, id=d.b("reduce", x.id, fn=fn, axes=d.pick((1,), (3,), (2, 3), (1, 2))))
    return d.mul(x, made)


CASE = ProgramCase("reduce", 7, build, by_torch, module, draw, {"axes": [(), (0,), (1, 1), (3, 2)]})
