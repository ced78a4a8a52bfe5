# SPDX-License-Identifier: Apache-2.0
"""A part of a bilinear resize, at the positions it has in the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stretched(
    low: Tensor, image: Sequence[int], origin: Sequence[int], size: Sequence[int]
) -> Tensor:
    """low [N, C, h, w] over an image, of which a crop of `size` at `origin` is made."""
    for axis in (2, 3):
        cells, pixels = low.shape[axis], image[axis - 2]
        at = torch.arange(size[axis - 2], device=low.device, dtype=torch.float32) + origin[axis - 2]
        ratio = torch.tensor(cells, dtype=torch.float32, device=low.device) / pixels
        source = ((at + 0.5) * ratio - 0.5).clamp_min(0.0)
        first = source.long().clamp_max(cells - 1)
        share = (source - first).clamp(0, 1).to(low.dtype)
        shape = [-1 if d == axis else 1 for d in range(4)]
        near, far = (low.index_select(axis, i) for i in (first, (first + 1).clamp_max(cells - 1)))
        low = torch.lerp(near, far, share.view(shape))
    return low
