# SPDX-License-Identifier: Apache-2.0
"""A network over an image in tiles that together are what the whole image would give.

A tile is computed with a margin as wide as the network sees, and only its core is kept. Networks
of convolutions alone then give the whole image's numbers. Networks with ESA see everything: their
attention map is placed by where the tile lies in the whole image (`attention.Place`), tiles begin
at a multiple of its step, and the margin is so wide that the rest is rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.memory import free_memory
from ternary_ops.runtime import Program
from ternary_ops.sr.inference.pretrained import facts

if TYPE_CHECKING:
    from ternary_ops.sr.models.base import SRNetwork

Pixels = NDArray[np.float32]  # [C, H, W]

# Measured on EFDN and RLFN: from here on tiles differ from the whole image by rounding alone.
ESA_MARGIN = 96
_SHARE = 0.5  # of free memory that one call takes by itself
# Maps of `channels` floats that PyTorch holds at once in a network with ESA, seen: 18 to 22.
_EAGER_MAPS = 24


@dataclass(frozen=True)
class Tile:
    """Along one axis: pixels [low, high) are computed, of which [first, last) are kept."""

    low: int
    high: int
    first: int
    last: int


class Upscaler:
    """A network that takes images of any size, from one pixel on, in the memory there is.

    Several threads may share it.
    """

    def __init__(self, model: SRNetwork | Program) -> None:
        """model: as `sr.load` or `sr.open_model` gives it; a network is compiled here. A program
        that sees the whole image takes it as a whole, by bands of rows, whatever `tile` says.
        """
        self.network: SRNetwork | None = None
        self._attentions: list[Any] = []
        if isinstance(model, Program):
            self.program = model
        else:
            self._open(model)
        known = facts(self.program)
        self.scale, self.smallest, self.channels = known.scale, known.smallest, known.channels
        self._whole = known.radius is None and not self._attentions
        self.margin = ESA_MARGIN if known.radius is None else known.radius
        # Rows of float layers go in pairs, from even ones on.
        self._step = self._attentions[0].step if self._attentions else 2
        self._placing = Lock()

    def _open(self, network: SRNetwork) -> None:
        from ternary_ops.sr.inference.to_program import to_program
        from ternary_ops.sr.models.attention import ESA

        self.network = network.eval()
        self.program = to_program(network)
        self._attentions = [m for m in network.modules() if isinstance(m, ESA)]

    def __call__(
        self,
        x: Pixels,
        tile: int | None = None,
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> Pixels:
        """x float32 [C, H, W], white is 1 -> [C, scale*H, scale*W]; C: the model's channels.

        tile: side of the tiles in pixels of x; None: the whole image at once where memory allows,
        else tiles as large as it allows. on_progress is called with the share of pixels done.
        """
        height, width = x.shape[1:]
        x = _extended(x, self.smallest)
        s = self.scale
        sides = (tile, tile) if tile else self._sides(x.shape[1], x.shape[2])
        if self._whole:
            sides = x.shape[1], x.shape[2]
        if sides == (x.shape[1], x.shape[2]):
            made = self._run(x, (*x.shape[1:], 0, 0))
            on_progress(1.0)
            return made[:, : s * height, : s * width]
        y = np.empty((self.channels, s * x.shape[1], s * x.shape[2]), np.float32)
        done = 0
        for rows, columns in self._tiles(x.shape[1], x.shape[2], sides):
            part = x[:, rows.low : rows.high, columns.low : columns.high]
            made = self._run(part, (x.shape[1], x.shape[2], rows.low, columns.low))
            to = np.s_[:, s * rows.first : s * rows.last, s * columns.first : s * columns.last]
            y[to] = made[
                :,
                s * (rows.first - rows.low) : s * (rows.last - rows.low),
                s * (columns.first - columns.low) : s * (columns.last - columns.low),
            ]
            done += (rows.last - rows.first) * (columns.last - columns.first)
            on_progress(done / (x.shape[1] * x.shape[2]))
        return y[:, : s * height, : s * width]

    def peak_bytes(self, height: int, width: int, whole: bool = True) -> int:
        """Memory beside input and output for a part of this size; whole: it is all there is."""
        if whole or not self._attentions:
            return self.program.peak_bytes((1, self.channels, height, width))
        channels: int = self._attentions[0].conv1.in_channels
        return 4 * _EAGER_MAPS * channels * height * width

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """The largest tiles that fit into memory, the longer axis cut first."""
        budget = _SHARE * free_memory()
        if self.peak_bytes(height, width) <= budget:
            return height, width
        sides = [height, width]
        least = max(self.margin, self._step)
        while max(sides) > least:
            longer = int(sides[1] > sides[0])
            sides[longer] = max(least, -(-sides[longer] // 2))
            rows, columns = (side + 2 * self.margin + self._step for side in sides)
            if self.peak_bytes(min(rows, height), min(columns, width), whole=False) <= budget:
                break
        return sides[0], sides[1]

    def _tiles(
        self, height: int, width: int, sides: tuple[int, int]
    ) -> Iterator[tuple[Tile, Tile]]:
        for rows in cut(height, sides[0], self.margin, self._step):
            for columns in cut(width, sides[1], self.margin, self._step):
                yield rows, columns

    def _run(self, x: Pixels, place: tuple[int, int, int, int]) -> Pixels:
        batch = np.ascontiguousarray(x[None])
        network = self.network
        if network is None or not self._attentions or x.shape[1:] == place[:2]:
            whole: Pixels = self.program(batch)[0]
            return whole
        white = np.float32(network.input_range)
        made: Pixels = self._in_place(network, batch * white, place)[0] / white
        return made

    def _in_place(
        self, network: SRNetwork, batch: Pixels, place: tuple[int, int, int, int]
    ) -> Pixels:
        import torch

        from ternary_ops.sr.models.attention import Place

        with self._placing, torch.inference_mode():
            for attention in self._attentions:
                attention.place = Place(*place)
            try:
                made: Pixels = network(torch.from_numpy(batch)).numpy()
            finally:
                for attention in self._attentions:
                    attention.place = None
        return made


def cut(pixels: int, side: int, margin: int, step: int = 1) -> list[Tile]:
    """Tiles of one axis, as even as can be, at most `side` pixels but for rounding to `step`; each
    is computed with `margin` pixels to both sides, where the image has them, from a multiple of
    `step` on.
    """
    count = -(-pixels // min(side, pixels))
    even = -(-pixels // count)
    even = -(-even // step) * step
    return [
        Tile(
            max(0, first - margin) // step * step,
            min(pixels, first + even + margin),
            first,
            min(pixels, first + even),
        )
        for first in range(0, pixels, even)
    ]


def _extended(x: Pixels, least: int) -> Pixels:
    """x, mirrored beyond its right and lower border until it is large enough."""
    for axis in (1, 2):
        size = x.shape[axis]
        if size < least:
            period = max(1, 2 * size - 2)
            at = np.arange(least) % period
            x = np.take(x, np.where(at < size, at, period - at), axis)
    return x
