# SPDX-License-Identifier: Apache-2.0
"""Cases of the program operator crop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from cases import ProgramCase


def build(b: Any) -> None:
    """Of codes and floats, images and tokens, with steps and without; joined again along rows,
    columns and tokens.
    """
    q = b("quantize", 0, y=b.params())
    x = b("crop", q, begin=(1, 0), end=(0, 2))
    y = b("conv2d", b("crop", x, begin=(0, 1), end=(1, 0)), w=b.weight("int8", 6, 6), y=b.params())
    x = b("concat", x, b("pad", y, before=(0, 1), after=(1, 2)), axis=3, y=b.params())
    y = b("crop", x, begin=(1, 0), end=(0, 0), step=(2, 1))
    x = b("concat", y, x, y, axis=2, y=b.nodes[x].attrs["y"])
    x = b("crop", b("dequantize", x), begin=(0, 1), end=(2, 0), step=(3, 2))
    x = b("concat", x, b("crop", x, begin=(1, 0), end=(0, 0)), axis=2)
    x = b("concat", b("crop", x, begin=(0, 0), end=(0, 1)), x, axis=3)
    tokens = b("rearrange", q, split=((-1,),) * 3, order=(0, 1, 2), axes=(1, 2), rank=3)
    first = b("crop", tokens, begin=0, end=5)
    tokens = b("concat", first, tokens, first, axis=2, y=b.params())
    tokens = b("crop", b("dequantize", tokens), begin=3, end=1, step=2)
    tokens = b("concat", tokens, b("slice", b("concat", tokens, tokens), begin=6, end=12), axis=2)
    flat = b("rearrange", tokens, split=((-1,),) * 2, order=(1, 0), axes=(2,), rank=2)
    b("concat", b("flatten", x), flat)


class _Crop(nn.Module):
    def __init__(self, at: dict[str, Any]) -> None:
        super().__init__()
        self.begin, self.end, self.step = at["begin"], at["end"], at["step"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = 1 if x.dim() == 3 else 2
        for i, (begin, end) in enumerate(zip(self.begin, self.end, strict=True)):
            axis = first + i
            x = x.narrow(axis, begin, x.shape[axis] - begin - end)
            if self.step:
                x = x[(slice(None),) * axis + (slice(None, None, self.step[i]),)]
        return x


def by_torch(at: dict[str, Any], weight: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """Tokens are [N, L, C]."""
    made: torch.Tensor = _Crop(at)(x[0])
    return made


def module(at: dict[str, Any], weight: Any) -> nn.Module:
    """narrow and slices with steps."""
    return _Crop(at)


def draw(d: Any, x: Any) -> Any:
    """A few rows and columns less."""
    x = d.resize(x, size=(d.number(4, 12), d.number(4, 12))) if d.chance(0.3) else x
    begin, end = ((d.number(0, 1), d.number(0, 1)) for _ in range(2))
    step = d.pick(None, None, (1, 2), (2, 1), (2, 3))
    made = d.b("crop", x.id, begin=begin, end=end, step=step)
    return replace(x, id=made, level=d.level(x, "crop", begin, end, step))


_NOT_ENDS: list[Any] = [[-1, 0], [0, 2**25], [0, 0, 0], -1, None, "1", [0.5, 0], [], True]
CASE = ProgramCase(
    "crop",
    6,
    build,
    by_torch,
    module,
    draw,
    {
        "begin": _NOT_ENDS,
        "end": _NOT_ENDS,
        "step": [[0, 1], [1, 5000], [1, 1, 1], 0, "1", [1.0, 1], [], False],
    },
)
