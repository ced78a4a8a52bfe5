# SPDX-License-Identifier: Apache-2.0
"""2-d convolution with integer weights, ternary or 8-bit, every filter tap computed.

x      [N, C, H, W] or [C, H, W]  uint8, float32, float16 or bfloat16
codes  [O, R, S, ceil(I/4)] uint8 (2-bit codes) or [O, R, S, 4*ceil(I/4)] int8, I = C/groups
scale  [O] float32; bias [O] float32 or None
y      [N, O, Ho, Wo] or [O, Ho, Wo]  x's dtype; for uint8 x float32, or uint8 with y_scale and
       y_zero_point. Padding contributes x's zero point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.grad import conv2d_input

from ternary_ops import _native
from ternary_ops.ops import _check
from ternary_ops.ops._autograd import differentiate_codes
from ternary_ops.ops._conv2d_gpu import gpu_kernel
from ternary_ops.ops._decode import decode_weight
from ternary_ops.ops._library import Kernel, define
from ternary_ops.ops._native_call import CELL, operands, pack, packed_span
from ternary_ops.reference.arithmetic import Pair, pair

_ARGUMENTS = (
    "(Tensor x, Tensor codes, Tensor scale, Tensor? bias=None, SymInt[2] stride=1, "
    "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, *, float? x_scale=None, "
    "int? x_zero_point=None, float? y_scale=None, int? y_zero_point=None, Tensor? packed=None) "
    "-> Tensor"
)


def define_convolution(name: str, kind: str) -> Any:
    """Register a convolution that packs its weights as `kind` when it is not given them packed."""
    cpu, fake = _cpu_kernel(name, kind), _fake_kernel(name)
    op = define(name + _ARGUMENTS, cpu, fake, gpu_kernel(name, kind))
    differentiate_codes(op, cpu, -3, _input_gradient)
    return op


def _cpu_kernel(name: str, kind: str) -> Kernel:
    def cpu(
        x: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        *,
        x_scale: float | None = None,
        x_zero_point: int | None = None,
        y_scale: float | None = None,
        y_zero_point: int | None = None,
        packed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dtype = _check.output_dtype(name, x, x_scale, x_zero_point, y_scale, y_zero_point)
        shape = _check.codes_conv_shape(
            name, x, codes, scale, bias, stride, padding, dilation, groups
        )
        x, scale, y = operands(x, scale, x_scale, shape, dtype)
        bias = None if bias is None else bias.contiguous()
        if y.numel():
            channels = x.shape[-3] // groups
            if packed is None:
                packed = pack(codes, kind, channels, groups, x.dtype == torch.float32)
            weight = (*codes.shape[:3], channels, groups)
            window = (*stride, *padding, *dilation)
            run_convolution(
                name, x, packed, weight, scale, bias, window, y,
                x_zero_point or 0, 1.0 if y_scale is None else y_scale, y_zero_point or 0,
            )  # fmt: skip
        return y if y.dtype == dtype else y.to(dtype)

    return cpu


def run_convolution(
    op: str,
    x: torch.Tensor,
    packed: torch.Tensor,
    weight: tuple[int, ...],
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    window: tuple[int, ...],
    y: torch.Tensor,
    x_zero_point: int = 0,
    y_scale: float = 1.0,
    y_zero_point: int = 0,
) -> None:
    """Fill y with the convolution of contiguous, checked operands.

    weight: (O, R, S, I, groups), which `packed` must have; window: stride, padding and dilation,
    each by height and width.
    """
    core = _native.core()
    c, h, w = x.shape[-3:]
    span = packed_span(op, packed)
    held = core.packed_shape(*span)
    if held != weight:
        do = "Pass what prepack made of these codes."
        _check.refuse(op, f"packed weights (O, R, S, I, groups) = {weight}", held, do)
    core.conv2d(
        x.data_ptr(),
        CELL[x.dtype],
        x_zero_point,
        x.shape[0] if x.dim() == 4 else 1,
        c,
        h,
        w,
        *span,
        scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        *window,
        y.data_ptr(),
        CELL[y.dtype],
        y_scale,
        y_zero_point,
    )


def _fake_kernel(name: str) -> Kernel:
    def fake(
        x: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        *,
        x_scale: float | None = None,
        x_zero_point: int | None = None,
        y_scale: float | None = None,
        y_zero_point: int | None = None,
        packed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dtype = _check.output_dtype(name, x, x_scale, x_zero_point, y_scale, y_zero_point)
        shape = _check.codes_conv_shape(
            name, x, codes, scale, bias, stride, padding, dilation, groups
        )
        return x.new_empty(shape, dtype=dtype)

    return fake


def _input_gradient(
    grad: torch.Tensor,
    x_shape: torch.Size,
    codes: torch.Tensor,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> torch.Tensor:
    weight = decode_weight(codes, x_shape[-3] // groups).float()
    return input_gradient(grad, x_shape, weight, stride, padding, dilation, groups)


def input_gradient(
    grad: torch.Tensor,
    x_shape: Sequence[int],
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Gradient of the convolution with weight [O, I, R, S] for its input of shape x_shape."""
    batched = (1, *x_shape) if len(x_shape) == 3 else tuple(x_shape)
    grad = grad.unsqueeze(0) if len(x_shape) == 3 else grad
    out: torch.Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        batched, weight, grad, stride, padding, dilation, groups
    )
    return out.reshape(x_shape)


_OP = define_convolution("conv2d", "dense")


def conv2d(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    **options: Any,
) -> torch.Tensor:
    """Convolve x with the integer weights in `codes`: y = conv(x, W) * scale + bias.

    x is uint8 (then `x_scale` and `x_zero_point` say what it means) or float32, float16, bfloat16
    (weight-only, summed in float32 and rounded once); batched or not. Shapes: see the module.
    `y_scale` and `y_zero_point` make a uint8 result. `packed` is prepack(codes, kind, C, groups,
    float_x), and saves packing at every call. Geometry as torch.nn.functional.conv2d.
    Differentiable once in float x, scale and bias. Raises UnsupportedShape, UnsupportedDevice,
    BadWeights. Rounding: docs/architecture.md, integer semantics.
    """
    geometry = (pair(stride), pair(padding), pair(dilation), groups)
    y: torch.Tensor = _OP(x, codes, scale, bias, *geometry, **options)
    return y
