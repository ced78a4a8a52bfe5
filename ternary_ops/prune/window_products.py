# SPDX-License-Identifier: Apache-2.0
"""Second moments of the patches of a convolution of stride 1, without making the patches.

What taps s and t see differs by a shift of t - s alone: of R x S taps, (RS)^2 products of maps have
(2R - 1)(2S - 1) different ones, but at the border of the image, where a tap's window begins and
ends. The image is cut there, in rows and in columns; each part is multiplied once for every
shift, and counts in the windows that hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight


def window_products(x: Tensor, height: int, width: int) -> Tensor:
    """Sums over images and positions (i, j) of x[a, i + r, j + s] * x[b, i + u, j + v], [A, R S, A,
    R S]. x: [N, A, H, W] with its border, H >= 2 R - 1, W >= 2 S - 1; height x width = R x S taps.
    """
    channels, side = x.shape[1], width - 1
    made = x.new_zeros(height, width, height, width, channels, channels)
    wide = F.pad(x, (side, side, 0, height - 1))  # shifts upwards follow by symmetry
    for rows, tops in _parts(x.shape[2], height):
        for cols, lefts in _parts(x.shape[3], width):
            part = x[:, :, rows, cols]
            if not bool(part.any()):
                continue  # zeros around the image
            seen = wide[:, :, rows.start : rows.stop + height - 1]
            seen = seen[..., cols.start : cols.stop + 2 * side]
            found = _shifted_products(part, seen, height, side + width)
            for r in tops:
                for s in lefts:
                    made[r, s, r:] += found[: height - r, side - s : side - s + width]
    for r in range(height):
        for u in range(r):
            made[r, :, u] = made[u, :, r].permute(1, 0, 3, 2)
    return made.permute(4, 0, 1, 5, 2, 3).reshape(channels, height * width, channels, -1)


def weight_gradient(x: Tensor, shape: Sequence[int], y: Tensor, *options: Any) -> Tensor:
    """Gradient of the weight of that shape of a convolution of x, where y is that of its output;
    options: stride, padding, dilation, groups.
    """
    found: Tensor = conv2d_weight(x, shape, y, *options)  # type: ignore[no-untyped-call]
    return found


def _shifted_products(part: Tensor, seen: Tensor, down: int, right: int) -> Tensor:
    """Sums of part[a, i, j] * seen[b, i + u, j + v] over images and positions, [u, v, A, B]: what
    the gradient of a convolution's filter is too, which for thin parts takes longer.
    """
    shape = (part.shape[1], seen.shape[1], down, right)
    if min(part.shape[2:]) > 1:
        found = weight_gradient(seen, shape, part)
    else:
        patches = F.unfold(seen, (down, right)).transpose(0, 1).flatten(1)
        found = (part.transpose(0, 1).flatten(1) @ patches.mT).view(shape)
    return found.permute(2, 3, 0, 1).contiguous()


def _parts(size: int, taps: int) -> Iterator[tuple[slice, range]]:
    """Parts of an axis that lie in the windows of the same taps, and which these are."""
    window = size - taps + 1  # that of tap t begins at t
    for i in range(taps - 1):
        yield slice(i, i + 1), range(i + 1)
    yield slice(taps - 1, window), range(taps)
    for i in range(taps - 1):
        yield slice(window + i, window + i + 1), range(i + 1, taps)
