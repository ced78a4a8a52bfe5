# SPDX-License-Identifier: Apache-2.0
"""Sparse activations: k-winners-take-all, and the zeros that the layers of a network read."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedShape, need

_DECAY = 0.99  # of the duty cycles


class KWinners(nn.Module):
    """Top-k activation, in place of a ReLU: of each sample the k largest numbers stay, the others
    become 0. k-winners-take-all: Majani et al. 1989; in trained networks Makhzani & Frey 2013
    (arXiv 1312.5663) and Ahmad & Scheinkman 2019 (arXiv 1903.11257), whose boosting is
    reconstructed from memory.

    x [N, C, ...], C channels. zeros: the fraction that becomes 0, exact to one number of a sample;
    what stays may be negative where k exceeds the positive numbers. boost: a channel that seldom
    wins is favored, winners are the k largest of x * exp(boost * (1 - zeros - duty)), where `duty`
    is the channel's share of winners (a running mean over training batches); 0: plain top-k.

    >>> KWinners(zeros=0.5)(torch.tensor([[3.0, -1.0, 2.0, 0.5]]))
    tensor([[3., 0., 2., 0.]])
    """

    duty: Tensor

    def __init__(self, channels: int | None = None, *, zeros: float, boost: float = 0.0) -> None:
        """channels: C, needed for boost > 0. Raises BadConfig for zeros outside 0..1 and a negative
        boost, or one without channels.
        """
        super().__init__()
        if not (0 <= zeros < 1 and boost >= 0 and (boost == 0 or channels is not None)):
            got = f"zeros={zeros}, boost={boost}, channels={channels}"
            what = "0 <= zeros < 1 and boost >= 0, above 0 with the number of channels"
            raise BadConfig(need(what, got, "KWinners(64, zeros=0.9, boost=1.5)."))
        self.zeros, self.boost = zeros, boost
        duty = torch.full((channels or 0,), 1 - zeros)
        self.register_buffer("duty", duty, persistent=boost > 0)

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape; the gradient goes to the winners alone."""
        if x.ndim < 2 or (self.boost and x.shape[1] != len(self.duty)):
            what = f"[N, {len(self.duty) if self.boost else 'C'}, ...] of KWinners"
            raise UnsupportedShape(need(what, list(x.shape), "Set channels to the axis behind N."))
        count = x[0].numel()
        with torch.no_grad():
            ranked = x * self._boosts(x) if self.boost else x
            best = ranked.flatten(1).topk(count - round(self.zeros * count), sorted=False).indices
            won = torch.zeros_like(x, dtype=torch.bool).flatten(1).scatter_(1, best, True)
            won = won.view_as(x)
            if self.boost and self.training:
                share = won.float().transpose(0, 1).flatten(1).mean(1)
                self.duty.lerp_(share, 1 - _DECAY)
        return x.masked_fill(~won, 0.0)

    def _boosts(self, x: Tensor) -> Tensor:
        factors = torch.exp(self.boost * (1 - self.zeros - self.duty)).to(x.dtype)
        return factors.view(-1, *[1] * (x.ndim - 2))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"zeros={self.zeros}, boost={self.boost}"


class InputZeros(NamedTuple):
    """Shares of zeros in what one layer reads.

    zeros: of single numbers. packets: of channel packets, four channels of a pixel, which an engine
    reads as one. vectors: of packets that are zero at eight consecutive pixels of a row at once, as
    an instruction of 256 bits reads them: only these could be skipped.
    """

    name: str
    zeros: float
    packets: float
    vectors: float


@torch.no_grad()
def input_zeros(model: nn.Module, batches: Iterable[Tensor]) -> list[InputZeros]:
    """Measure the zeros that each convolution and linear layer of `model` reads, in eval mode.

    ReLU and k-winners make them; one row a layer that ran, in order. Layers behind a rank other
    than [N, C, H, W] count each row as a pixel.
    """
    sums: dict[str, Tensor] = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    hooks = [
        layer.register_forward_pre_hook(partial(_count, sums, name))
        for name, layer in layers.items()
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return [
        InputZeros(name, *(float(s) for s in found[:3] / found[3:])) for name, found in sums.items()
    ]


def _count(sums: dict[str, Tensor], name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
    """Add zero and all numbers, packets and vectors of one input."""
    x = given[0].detach()
    image = x if x.ndim == 4 else x.reshape(-1, x.shape[-1], 1, 1)
    used = image != 0
    used = nn.functional.pad(used, (0, 0, 0, 0, 0, -used.shape[1] % 4))
    packets = torch.unflatten(used, 1, (-1, 4)).any(2)
    wide = nn.functional.pad(packets, (0, -packets.shape[3] % 8))
    vectors = torch.unflatten(wide, 3, (-1, 8)).any(4)
    parts = [image != 0, packets, vectors]
    counts = [float((~part).sum()) for part in parts] + [float(part.numel()) for part in parts]
    sums[name] = sums.get(name, torch.zeros(6, dtype=torch.float64)) + torch.tensor(counts).double()
