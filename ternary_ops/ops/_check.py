# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the operators. The same checks run on real and on fake tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch

from ternary_ops.errors import UnsupportedShape, need
from ternary_ops.layout.codes import quads
from ternary_ops.reference.arithmetic import conv_size

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def refuse(op: str, what: str, got: object, do: str) -> NoReturn:
    """Raise UnsupportedShape: expected `what` for the operator, got `got`; do `do`."""
    raise UnsupportedShape(need(f"in ternary_ops.{op} {what}", got, do))


def output_dtype(
    op: str,
    x: torch.Tensor,
    x_scale: float | None,
    x_zero_point: int | None,
    y_scale: float | None,
    y_zero_point: int | None,
) -> torch.dtype:
    """Check the quantization arguments against x's dtype; return the result's dtype."""
    if x.dtype == torch.uint8:
        if x_scale is None or x_zero_point is None:
            do = "Pass both, or pass float x."
            refuse(op, "x_scale and x_zero_point with uint8 x", (x_scale, x_zero_point), do)
        _check_params(op, "x", x_scale, x_zero_point)
        if y_scale is None and y_zero_point is None:
            return torch.float32
        if y_scale is None or y_zero_point is None:
            do = "Pass both for uint8 y, neither for float32 y."
            refuse(op, "y_scale and y_zero_point together", (y_scale, y_zero_point), do)
        _check_params(op, "y", y_scale, y_zero_point)
        return torch.uint8
    if x.dtype not in FLOATS:
        refuse(op, "x of uint8, float32, float16 or bfloat16", x.dtype, "Convert x first.")
    if (x_scale, x_zero_point, y_scale, y_zero_point) != (None, None, None, None):
        refuse(
            op,
            "no quantization parameters with float x",
            (x_scale, x_zero_point, y_scale, y_zero_point),
            "Quantize x to uint8 first, or leave them out: float x is weight-only.",
        )
    return x.dtype


def quantized_float(
    op: str,
    x_scale: float,
    x_zero_point: int | None,
    y_scale: float | None,
    y_zero_point: int | None,
) -> None:
    """Check the quantization arguments of a float x that the operator quantizes itself."""
    if x_zero_point is None:
        do = "Pass both to quantize x, neither for weight-only."
        refuse(op, "x_scale and x_zero_point together", (x_scale, x_zero_point), do)
    _check_params(op, "x", x_scale, x_zero_point)
    if (y_scale, y_zero_point) != (None, None):
        do = "Quantize x to uint8 first for uint8 y."
        refuse(op, "no y_scale and y_zero_point with float x", (y_scale, y_zero_point), do)


def _check_params(op: str, name: str, scale: float, zero_point: int) -> None:
    if not 0 < scale < math.inf:
        refuse(op, f"a finite {name}_scale above 0", scale, "Calibrate again.")
    if not 0 <= zero_point <= 255:
        refuse(op, f"{name}_zero_point in 0..255", zero_point, "It is a uint8 value.")


def stored_channels(op: str, codes: torch.Tensor, channels: int) -> int:
    """The last axis codes of `channels` input channels must have."""
    if codes.dtype == torch.uint8:
        return quads(channels)
    if codes.dtype == torch.int8:
        return 4 * quads(channels)
    do = "uint8 holds 2-bit codes, int8 holds 8-bit weights."
    refuse(op, "codes of dtype uint8 or int8", codes.dtype, do)


def per_channel(op: str, name: str, t: torch.Tensor, count: int) -> None:
    """Check a float32 [count] tensor."""
    if t.dtype != torch.float32 or t.shape != (count,):
        got = f"{t.dtype} {list(t.shape)}"
        refuse(
            op, f"{name} float32 [{count}], one per output channel", got, "Reshape or convert it."
        )


def linear_shape(
    op: str, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> list[int]:
    """Check the operands of a linear layer; return the shape of its result."""
    if x.dim() < 1:
        refuse(op, "x [..., K]", "a scalar", "Reshape x.")
    if codes.dim() != 2:
        refuse(op, "codes [N, ceil(K/4)]", list(codes.shape), "Pack a [N, K] weight.")
    *lead, k = x.shape
    n, stored = codes.shape
    if stored != stored_channels(op, codes, k):
        refuse(
            op,
            f"codes [N, {stored_channels(op, codes, k)}] for x [..., K={k}]",
            f"codes {list(codes.shape)} of {codes.dtype}",
            "Pass the x these codes were packed for, or pack the weight again.",
        )
    per_channel(op, "scale", scale, n)
    if bias is not None:
        per_channel(op, "bias", bias, n)
    return [*lead, n]


def conv_shape(
    op: str,
    x: torch.Tensor,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> list[int]:
    """Check x [N, C, H, W] or [C, H, W] and the geometry; return the shape of the result."""
    if x.dim() not in (3, 4):
        refuse(op, "x [N, C, H, W] or [C, H, W]", list(x.shape), "Reshape x.")
    *lead, c, h, w = x.shape
    if groups < 1 or c < 1 or c % groups or out_channels % groups:
        refuse(
            op,
            "groups >= 1 that divides the input and the output channels",
            f"groups={groups}, C={c}, O={out_channels}",
            "Check groups and the channel axis of x.",
        )
    ho = _output_size(op, h, kernel_size[0], stride[0], padding[0], dilation[0])
    wo = _output_size(op, w, kernel_size[1], stride[1], padding[1], dilation[1])
    return [*lead, out_channels, ho, wo]


def _output_size(op: str, size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    if size < 1 or kernel < 1 or stride < 1 or dilation < 1 or padding < 0:
        refuse(
            op,
            "image, kernel, stride and dilation >= 1 and padding >= 0",
            f"{size}, {kernel}, {stride}, {dilation} and {padding}",
            "Check the order of the arguments.",
        )
    return conv_size(size, kernel, stride, padding, dilation)


def codes_conv_shape(
    op: str,
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> list[int]:
    """Check the operands of a convolution with codes [O, R, S, ceil(I/4)]; return y's shape."""
    if codes.dim() != 4:
        refuse(op, "codes [O, R, S, ceil(I/4)]", list(codes.shape), "Pack a [O, I, R, S] weight.")
    o, r, s, stored = codes.shape
    shape = conv_shape(op, x, o, (r, s), stride, padding, dilation, groups)
    channels = x.shape[-3] // groups
    if stored != stored_channels(op, codes, channels):
        refuse(
            op,
            f"codes {[o, r, s, stored_channels(op, codes, channels)]} for x with "
            f"C={x.shape[-3]} in {groups} group(s)",
            f"codes {list(codes.shape)} of {codes.dtype}",
            "Pass the x these codes were packed for, or pack the weight again.",
        )
    per_channel(op, "scale", scale, o)
    if bias is not None:
        per_channel(op, "bias", bias, o)
    return shape
