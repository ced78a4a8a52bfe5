# SPDX-License-Identifier: Apache-2.0
"""Cases of the program operator constant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cases import ProgramCase
from cases.rearrange import sized


def build(b: Any) -> None:
    """A map of a size of its own, a number a channel, a row of columns, beside floats."""
    q = b("quantize", 0, y=b.params())
    x = b("conv2d", q, w=b.weight("int8", 6, 5, 3, 3), padding=(1, 1))
    x = b("mul", x, b("constant", 0, w=b.weight("float", 6, 1, bias=False, zeros=0.0)))
    wide = b("conv2d", sized(b, q, 5, (7, 9)), w=b.weight("int8", 6, 5, zeros=0.0))
    x = b("mul", wide, b("adaptive_avg_pool2d", x, size=(1, 1)))
    image = b.weight("float", 6, 1, 7, 9, bias=False, zeros=0.0)
    x = b("add", b("constant", x, w=image), x)
    columns = b("constant", 0, w=b.weight("float", 1, 1, 1, 9, bias=False, zeros=0.0))
    b("mul", columns, b("concat", x, b("constant", 0, w=image)), clamp=(-2.0, None))


def by_torch(at: dict[str, Any], weight: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """Expanded over the batch."""
    made = torch.from_numpy(weight.array[..., 0].copy())
    sizes = {4: made.shape, 3: (made.shape[2], made.shape[0]), 2: made.shape[:1]}
    made = made[:, 0].T if at["rank"] == 3 else made
    return made.reshape(sizes[at["rank"]]).expand(len(x[0]), *sizes[at["rank"]])


class _Constant(nn.Module):
    def __init__(self, made: torch.Tensor) -> None:
        super().__init__()
        self.made: torch.Tensor
        self.register_buffer("made", made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.made.expand(x.shape[0], *self.made.shape)


def module(at: dict[str, Any], weight: Any) -> nn.Module:
    """A buffer."""
    return _Constant(torch.from_numpy(weight.array[..., 0].copy()))


def draw(d: Any, x: Any) -> Any:
    """A number a channel, or one for all, added or multiplied on either side."""
    real = d.real(x)
    w = d.b.weight("float", d.pick(1, real.channels), 1, bias=False, zeros=0.0)
    pair = d.b("constant", d.pick(0, real.id), w=w), real.id
    made = d.b(d.pick("add", "mul"), *(pair if d.chance(0.5) else pair[::-1]))
    return replace(real, id=made)


CASE = ProgramCase("constant", 5, build, by_torch, module, draw)
