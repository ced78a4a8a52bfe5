# SPDX-License-Identifier: Apache-2.0
"""Cases of the program operator pad."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cases import ProgramCase

MODES = ("constant", "reflect", "replicate", "circular")


def build(b: Any) -> None:
    """Of codes and floats, images and tokens, in every mode and with every kind of value."""
    q = b("quantize", 0, y=b.params())
    x = b("pad", q, before=(2, 1), after=(0, 3))
    x = b("pad", x, before=(0, 2), after=(1, 0), value=1.25)
    x = b("max_pool2d", b("pad", x, before=(1, 0), after=(0, 1), value=None), kernel=(2, 2))
    x = b("conv2d", x, w=b.weight("int8", 9, 6, 3, 3), y=b.params())
    for mode in MODES[1:]:
        x = b("pad", x, before=(1, 2), after=(2, 0), mode=mode)
    tokens = b("rearrange", q, split=((-1,),) * 3, order=(0, 1, 2), axes=(1, 2), rank=3)
    tokens = b("dequantize", b("pad", tokens, before=3, after=1, mode="replicate"))
    tokens = b("pad", b("pad", tokens, before=0, after=2, value=-0.5), before=1, after=1)
    tokens = b("pad", tokens, before=2, after=4, mode="circular")
    x = b("conv2d", x, w=b.weight("ternary", 10, 9))
    for mode in MODES[1:]:
        x = b("pad", x, before=(0, 1), after=(1, 1), mode=mode)
    x = b("pad", b("pad", x, before=(1, 1), after=(0, 2), value=0.75), before=(1, 0), after=(0, 0))
    x = b("max_pool2d", b("pad", x, before=(1, 1), after=(1, 1), value=None), kernel=(3, 3))
    flat = b("rearrange", tokens, split=((-1,),) * 2, order=(1, 0), axes=(2,), rank=2)
    b("concat", b("flatten", x), flat)


class _Pad(nn.Module):
    def __init__(self, at: dict[str, Any]) -> None:
        super().__init__()
        ends = zip(at["before"], at["after"], strict=True)
        self.width = [end for axis in reversed(list(ends)) for end in axis]
        self.mode = at["mode"]
        self.value = -float("inf") if at["value"] is None else at["value"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.value if self.mode == "constant" else None
        inside = x.transpose(1, 2) if x.dim() == 3 else x
        made = F.pad(inside, self.width, self.mode, value)
        return made.transpose(1, 2) if x.dim() == 3 else made


def by_torch(at: dict[str, Any], weight: Any, x: list[torch.Tensor]) -> torch.Tensor:
    """Tokens come and go as [N, L, C]."""
    made: torch.Tensor = _Pad(at)(x[0])
    return made


def module(at: dict[str, Any], weight: Any) -> nn.Module:
    """F.pad."""
    return _Pad(at)


def draw(d: Any, x: Any) -> Any:
    """Any mode and value; a max pool behind minus infinity."""
    mode = d.pick(*MODES, "constant")
    widest = {"constant": 4, "replicate": 3}.get(mode, 2)
    if mode in ("reflect", "circular"):
        x = d.resize(x, size=(d.number(3, 9), d.number(3, 9))) if d.chance(0.7) else x
        widest = 1 if d.chance(0.5) else widest
    before, after = ((d.number(0, widest), d.number(0, widest)) for _ in range(2))
    value = d.pick(0.0, 0.0, -1.5, 0.75)
    made = d.b("pad", x.id, before=before, after=after, mode=mode, value=value)
    made = replace(x, id=made, level=d.level(x, "pad", before, after))
    if d.chance(0.8):
        return made
    bordered = d.b("pad", made.id, before=(1, 0), after=(0, 1), value=None)
    return replace(made, id=d.b("max_pool2d", bordered, kernel=(2, 2), stride=(1, 1)))


CASE = ProgramCase(
    "pad",
    6,
    build,
    by_torch,
    module,
    draw,
    {
        "before": [[-1, 0], [0, 5000], [0, 0, 0], -1, None, "1", [0.5, 0], [], True],
        "after": [[-1, 0], [0, 5000], [0, 0, 0], -1, None, "1", [0.5, 0], [], True],
        "value": ["0", float("nan"), float("inf"), [0.0], True, 1e39],
    },
)
