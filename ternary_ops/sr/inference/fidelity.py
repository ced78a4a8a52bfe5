# SPDX-License-Identifier: Apache-2.0
"""Color fidelity of a super-resolution network, which PSNR of photos does not show.

Flat colors, with noise and beside other colors too, borders, and ramps: images whose larger form is
known exactly. Errors are levels of 255. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Run = Callable[[Array], Array]  # [N, 3, H, W], white is 1 -> [N, 3, scale*H, scale*W]

MOST = 2  # levels that a flat color may be off
FAR = 8  # pixels from an edge or a border from where on it counts
_INNER = 4  # pixels of a flat that count, each way
_SIDE = 2 * FAR + _INNER
_ACROSS = 16  # flats beside each other
_AT_ONCE = 64


@dataclass(frozen=True)
class Flats:
    """count: colors looked at; off: how many by more than MOST; worst: the largest error."""

    count: int
    off: int
    worst: int

    def __str__(self) -> str:
        return f"{self.off} of {self.count} off by > {MOST}, worst {self.worst}"


@dataclass(frozen=True)
class Fidelity:
    """flats: images of one color, FAR pixels from their border. noisy: each pixel a level more,
    less, or as it was. near: flats of all colors side by side, FAR pixels from the next.
    white, borders: largest error at the border of a white image, and of one of any color.
    ramp: of ramps in 8 bits; fine_ramp: of ramps with 256 steps a level, FAR pixels from ends.
    """

    flats: Flats
    noisy: Flats
    near: Flats
    white: int
    borders: int
    ramp: float
    fine_ramp: float


def check_colors(run: Run, scale: int, side: int = 17, others: int = 17) -> Fidelity:
    """Look at side**3 flat colors; with noise, beside others and at borders at others**3."""
    many, few = colors(side), colors(others)
    flats = partial(_flat, run, scale)
    inner = [_inner(made, scale) for made in flats(many, 0)]
    noisy = [_inner(made, scale) for made in flats(few, 1)]
    borders = [_border(made, scale) for made in flats(few, 0)]
    return Fidelity(
        _summary(inner),
        _summary(noisy),
        _summary(_near(run, scale, few)),
        int(borders[-1][-1]),
        int(max(part.max() for part in borders)),
        _ramp(run, scale, 1.0),
        _ramp(run, scale, 1 / 256),
    )


def colors(side: int) -> NDArray[np.float64]:
    """A grid of side**3 colors, levels [N, 3]; black is the first, white the last."""
    levels = np.rint(np.linspace(0, 255, side))
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)


def _levels(made: Array) -> NDArray[np.float64]:
    return np.clip(np.rint(made.astype(np.float64) * 255), 0, 255)


def _flat(run: Run, scale: int, many: NDArray[Any], noise: int) -> Iterator[NDArray[np.float64]]:
    """Errors [N, 3, H, W] of images of one color each."""
    rng = np.random.default_rng(0)
    for first in range(0, len(many), _AT_ONCE):
        wanted = many[first : first + _AT_ONCE, :, None, None]
        x = np.broadcast_to(wanted, (len(wanted), 3, _SIDE, _SIDE))
        x = np.clip(x + rng.integers(-noise, noise + 1, x.shape), 0, 255)
        yield np.abs(_levels(run((x / 255).astype(np.float32))) - wanted)


def _inner(error: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    """Largest error of each image, without what is near its border."""
    far = FAR * scale
    found: NDArray[np.float64] = error[..., far:-far, far:-far].max((1, 2, 3))
    return found


def _border(error: NDArray[np.float64], scale: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = error.max((1, 2, 3))
    return found


def _near(run: Run, scale: int, many: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Largest error of flats that lie side by side in any order."""
    order = np.random.default_rng(0).permutation(len(many))
    found = []
    for first in range(0, len(many), _ACROSS**2):
        held = np.resize(many[order[first : first + _ACROSS**2]], (_ACROSS**2, 3))
        tiles = held.reshape(_ACROSS, _ACROSS, 3).transpose(2, 0, 1)
        x = tiles.repeat(_SIDE, 1).repeat(_SIDE, 2)[None]
        y = _levels(run(np.ascontiguousarray(x / 255, np.float32)))[0]
        parts = y.reshape(3, _ACROSS, _SIDE * scale, _ACROSS, _SIDE * scale)
        error = np.abs(parts - tiles[:, :, None, :, None]).transpose(1, 3, 0, 2, 4)
        found.append(_inner(error.reshape(_ACROSS**2, 3, *error.shape[3:]), scale))
    return found


def _summary(parts: list[NDArray[np.float64]]) -> Flats:
    worst = np.concatenate(parts)
    return Flats(len(worst), int((worst > MOST).sum()), int(worst.max()))


def _ramp(run: Run, scale: int, step: float) -> float:
    """Largest error of ramps along rows, columns and both, up and down, gray and colored."""
    length, far = 96, FAR * scale
    worst = 0.0
    larger = (np.arange(length * scale) + 0.5) / scale - 0.5
    for down, across in ((0, 1), (1, 0), (1, 1)):
        for tint in ((1, 1, 1), (1, -1, 0), (0, 1, -1)):
            x, wanted = (
                128 + np.multiply.outer(tint, step * (np.add.outer(down * at, across * at) - 48))
                for at in (np.arange(length), larger)
            )
            y = run((x / 255).astype(np.float32)[None])[0] * 255.0
            worst = max(worst, float(np.abs(y - wanted)[:, far:-far, far:-far].max()))
    return worst
