# SPDX-License-Identifier: Apache-2.0
"""What kernels share that walk a map of pixels (_im2col.py): addresses, products, results.

Columns of their products are pixels p of all images of the result, image after image, row after
row. A column starts at its window's first pixel in the map; chunk q of the window, tap q // CHUNKS
in row-major order, lies at the same distance from there for all columns:

    map  . . . . . . . .        distance = ((tap // WIDTH) * down + tap % WIDTH * RIGHT) * PIXEL
         . p>0 1 2 . . .                   + q % CHUNKS * elements of a chunk
         . . 3 4 5 . . .
         . . 6 7 8 . . .        down: pixels from a filter's row to the next
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from ternary_ops.kernels._epilogue import Output, finish
from ternary_ops.kernels._im2col import Layout, Map, divide, reciprocal
from ternary_ops.kernels._unpack import plane8, plane16
from torch import Tensor

_MOST_PIXELS = 2**31 - 2**16  # of a launch: their numbers are 32-bit


@triton.jit
def place(
    q, down, RIGHT: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, DEPTH: tl.constexpr,
    PIXEL: tl.constexpr,
):  # fmt: skip
    """From a window's first element to its chunk q of DEPTH elements, 64-bit."""
    tap = q // CHUNKS
    far = ((tap // WIDTH).to(tl.int64) * down + tap % WIDTH * RIGHT) * PIXEL
    return far + q % CHUNKS * DEPTH


@triton.jit
def accumulate(acc, v, xj, j: tl.constexpr, TERNARY: tl.constexpr, PTX: tl.constexpr):
    """acc + weights @ xj: v holds plane j (TERNARY), or the weights themselves."""
    if xj.dtype == tl.int8:
        wj = plane8(v, j, PTX) if TERNARY else v
        acc = tl.dot(wj, xj, acc, out_dtype=tl.int32)
    else:
        if TERNARY:
            bits = plane16(v, j, PTX)
            if xj.dtype == tl.float32:
                wj = bits.to(tl.bfloat16, bitcast=True).to(tl.float32)
            else:
                wj = bits.to(xj.dtype, bitcast=True)
        else:
            wj = v.to(xj.dtype)
        acc = tl.dot(wj, xj, acc, input_precision="ieee")
    return acc


@triton.jit
def columns_of(
    x, p, HM, WM, HW, WO, by_hw, hw_places, by_wo, wo_places, down, right, PIXEL: tl.constexpr
):
    """Where the windows of output pixels p start in the map: pointers, 64-bit."""
    image = divide(p, by_hw, hw_places, 1)
    q = p - image * HW
    row = divide(q, by_wo, wo_places, 1)
    column = q - row * WO
    return x + ((image.to(tl.int64) * HM + row * down) * WM + column * right) * PIXEL


@triton.jit
def write(
    y, acc, p, o, group, P, HW, by_hw, hw_places, OUT,
    sums, scale, bias, shift, inverse, zero_point, factor,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr, FAR: tl.constexpr,
    TERNARY: tl.constexpr, HAS_BIAS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """Finishes acc of output channels o of a group and pixels p, and writes it to y.

    scale may be None. FAR: a channel's place within an image needs 64 bits.
    """
    channel = group * OUT + o
    if scale is None:
        s = 1.0
    else:
        s = tl.load(scale + channel, mask=o < OUT, other=0.0)[:, None]
    if acc.dtype == tl.int32:
        total = tl.load(sums + group * ROWS + o) * shift
        if TERNARY:
            # Planes hold 64 times the weights: their sums are whole multiples, so that a float32
            # and a scale rounded alike are the same 64 times later.
            total = total << 6
            s *= 0.015625
        acc += total[:, None]
    else:
        acc = acc * factor
    b = tl.load(bias + channel, mask=o < OUT, other=0.0)[:, None] if HAS_BIAS else 0.0
    out = finish(acc, s, b, inverse, zero_point, HAS_BIAS, CODES)
    image = divide(p, by_hw, hw_places, EVEN)
    q = tl.max_contiguous(tl.multiple_of(p - image * HW, EVEN), EVEN)
    first = (image.to(tl.int64) * GROUPS + group) * OUT * HW + q
    far = (o.to(tl.int64) if FAR else o) * HW
    cells = y + first[None, :] + far[:, None]
    tl.store(cells, out.to(y.dtype.element_ty), mask=(o < OUT)[:, None] & (p < P)[None, :])


class Finishing(NamedTuple):
    """From sums to results: scale and bias [O] float32; shift: 128 less uint8 x's zero point."""

    scale: Tensor
    bias: Tensor | None
    output: Output
    shift: int = 0

    def numbers(self, factor: float) -> tuple[int, float, float, float]:
        """The arguments shift, inverse, zero_point and factor."""
        inverse = float(torch.tensor(1.0) / torch.tensor(self.output.scale))
        return self.shift, inverse, float(self.output.zero_point), factor

    @property
    def flags(self) -> dict[str, int]:
        """HAS_BIAS and CODES."""
        return {"HAS_BIAS": self.bias is not None, "CODES": self.output.codes}

    @property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """The arguments scale and bias."""
        return self.scale, self.scale if self.bias is None else self.bias


def geometry(image: Map, y: Tensor, groups: int) -> tuple[int, ...]:
    """The arguments images ... down_tap of a kernel that walks a map."""
    ho, wo = y.shape[2:]
    sizes = image.values.shape[1:3]
    even = math.gcd(ho * wo, 16)
    by_hw, by_wo = reciprocal(ho * wo), reciprocal(wo)
    steps = (*image.stride, image.dilation[0] * sizes[1])
    return (len(y), y.shape[1] // groups, *sizes, ho * wo // even, *by_hw, wo, *by_wo, *steps)


def constants(image: Map, layout: Layout, y: Tensor, groups: int) -> dict[str, int | bool]:
    """The constants that go with them."""
    pixels = y.shape[2] * y.shape[3]
    return {
        "RIGHT": image.dilation[1],
        "WIDTH": layout.filter[1],
        "CHUNKS": layout.chunks,
        "LANES": layout.lanes,
        "GROUPS": groups,
        "EVEN": math.gcd(pixels, 16),
        "FAR": y.shape[1] * pixels >= 2**31,
    }


def pieces(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """x and y by as many images as a launch can take: nearly always all of them."""
    images = max(1, _MOST_PIXELS // (y.shape[2] * y.shape[3]))
    for first in range(0, len(x), images):
        yield x[first : first + images], y[first : first + images]
