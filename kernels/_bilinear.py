# SPDX-License-Identifier: Apache-2.0
"""Positions of a bilinear resize, align_corners=False, in float32 as everywhere else."""

import triton
import triton.language as tl


@triton.jit
def between(at, cells, ratio):
    """Both cells a pixel of the image lies between, and the share of the second."""
    source = tl.maximum((at.to(tl.float32) + 0.5) * ratio - 0.5, 0.0)
    first = tl.minimum(source.to(tl.int32), cells - 1)
    share = tl.minimum(tl.maximum(source - first.to(tl.float32), 0.0), 1.0)
    return first, tl.minimum(first + 1, cells - 1), share
