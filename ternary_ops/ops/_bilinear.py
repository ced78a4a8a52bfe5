# SPDX-License-Identifier: Apache-2.0
"""A part of a bilinear resize, at the positions it has in the whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ternary_ops.reference import bilinear_positions


def stretched(
    low: Tensor, image: Sequence[int], origin: Sequence[int], size: Sequence[int]
) -> Tensor:
    """low [N, C, h, w] over an image, of which a crop of `size` at `origin` is made."""
    for axis in (2, 3):
        cells, pixels = low.shape[axis], image[axis - 2]
        begin = int(origin[axis - 2])
        ratio = np.float32(cells) / np.float32(pixels)
        positions = bilinear_positions(int(cells), int(pixels), ratio, False)
        part = (torch.from_numpy(t[begin : begin + int(size[axis - 2])]) for t in positions)
        first, second, _, share = (t.to(low.device) for t in part)
        shape = [-1 if d == axis else 1 for d in range(4)]
        near, far = (low.index_select(axis, i) for i in (first, second))
        low = torch.lerp(near, far, share.to(low.dtype).view(shape))
    return low
