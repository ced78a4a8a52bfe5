# SPDX-License-Identifier: Apache-2.0
"""y = x @ W.T * scale + bias for integer weights W, ternary or 8-bit.

x      [..., K]  uint8, float32, float16 or bfloat16; with x_scale and x_zero_point, a float x is
                 quantized to uint8 first
codes  [N, ceil(K/4)] uint8 (2-bit codes) or [N, 4*ceil(K/4)] int8
scale  [N] float32; bias [N] float32 or None
y      [..., N]  x's dtype; for uint8 x float32, or uint8 with y_scale and y_zero_point
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ternary_ops import _native
from ternary_ops.ops import _check
from ternary_ops.ops._autograd import differentiate_codes
from ternary_ops.ops._decode import decode
from ternary_ops.ops._gpu import gpu_module, gpu_pack
from ternary_ops.ops._library import define
from ternary_ops.ops._native_call import CELL, FLOAT_ROWS, WEIGHTS, operands, pack, packed_span

_SCHEMA = (
    "linear(Tensor x, Tensor codes, Tensor scale, Tensor? bias=None, *, float? x_scale=None, "
    "int? x_zero_point=None, float? y_scale=None, int? y_zero_point=None, Tensor? packed=None) "
    "-> Tensor"
)


def _output_dtype(x: torch.Tensor, x_scale: float | None, *rest: Any) -> torch.dtype:
    if x_scale is not None and x.dtype in _check.FLOATS:
        _check.quantized_float("linear", x_scale, *rest)
        return x.dtype
    return _check.output_dtype("linear", x, x_scale, *rest)


def _cpu(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: float | None = None,
    x_zero_point: int | None = None,
    y_scale: float | None = None,
    y_zero_point: int | None = None,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    dtype = _output_dtype(x, x_scale, x_zero_point, y_scale, y_zero_point)
    shape = _check.linear_shape("linear", x, codes, scale, bias)
    if (
        codes.shape[1] == 0
    ):  # no input: one zero weight a row gives the bias, quantized if asked for
        x, codes = x.new_zeros(*x.shape[:-1], 1), codes.new_zeros(codes.shape[0], 4)
        codes = codes[:, : _check.stored_channels("linear", codes, 1)].contiguous()
    k = x.shape[-1]
    float_x = x.dtype != torch.uint8 and x_scale is None  # floats multiply floats
    cells = FLOAT_ROWS if float_x else CELL
    x, scale, y = operands(x, scale, None, shape, dtype, cells)  # the kernel takes x_scale itself
    if packed is None:
        packed = pack(codes, "dense", k, 1, float_x)
    bias = None if bias is None else bias.contiguous()
    if y.numel():
        _native.core().linear(
            x.data_ptr(),
            cells[x.dtype],
            1.0 if x_scale is None else x_scale,
            x_zero_point or 0,
            x.numel() // k,
            k,
            WEIGHTS[torch.float32 if float_x else codes.dtype],
            shape[-1],
            *packed_span("linear", packed),
            scale.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            y.data_ptr(),
            CELL[y.dtype],
            1.0 if y_scale is None else y_scale,
            y_zero_point or 0,
        )
    return y if y.dtype == dtype else y.to(dtype)


def _gpu(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: float | None = None,
    x_zero_point: int | None = None,
    y_scale: float | None = None,
    y_zero_point: int | None = None,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    dtype = _output_dtype(x, x_scale, x_zero_point, y_scale, y_zero_point)
    shape = _check.linear_shape("linear", x, codes, scale, bias)
    kernels = gpu_module("linear")
    n, k = codes.shape[0], x.shape[-1]
    ternary = codes.dtype == torch.uint8
    if not k or not math.prod(shape):
        return _bias_alone(x, shape, bias, dtype, y_scale, y_zero_point)
    if packed is None:
        packed = gpu_pack(codes, k, 1, x.dtype != torch.uint8 and x_scale is None)
    fitting = kernels.packed_bytes(n, k, ternary)
    if packed.device != x.device or packed.numel() != fitting:
        got = f"{packed.numel()} bytes on {packed.device}"
        wanted = f"{fitting} bytes of packed weights on {x.device}"
        _check.refuse("linear", wanted, got, "Pass what prepack returned for codes on that device.")
    quantized = None if x_scale is None else (x_scale, x_zero_point or 0)
    output = gpu_module("_epilogue").Output(
        dtype, 1.0 if y_scale is None else y_scale, y_zero_point or 0
    )
    scale = scale if x_scale is None else scale * x_scale
    rows = x.reshape(-1, k).contiguous()
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        y: torch.Tensor = kernels.run(
            rows, packed, n, ternary, scale.contiguous(), bias, quantized, output
        )
    return y.view(shape)


def _bias_alone(
    x: torch.Tensor,
    shape: list[int],
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    y_scale: float | None,
    y_zero_point: int | None,
) -> torch.Tensor:
    """The result where there is nothing to add up."""
    y = x.new_zeros(shape, dtype=torch.float32)
    if bias is not None:
        y = y + bias
    if dtype == torch.uint8 and y_scale is not None:
        inverse = float(torch.tensor(1.0) / torch.tensor(y_scale))
        y = (y * inverse).round_().add_(y_zero_point or 0).clamp_(0, 255)
    return y.to(dtype)


def _fake(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: float | None = None,
    x_zero_point: int | None = None,
    y_scale: float | None = None,
    y_zero_point: int | None = None,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    dtype = _output_dtype(x, x_scale, x_zero_point, y_scale, y_zero_point)
    return x.new_empty(_check.linear_shape("linear", x, codes, scale, bias), dtype=dtype)


def _input_gradient(grad: torch.Tensor, x_shape: torch.Size, codes: torch.Tensor) -> torch.Tensor:
    return grad @ decode(codes, x_shape[-1]).float()


_OP = define(_SCHEMA, _cpu, _fake, _gpu)
differentiate_codes(_OP, _cpu, -1, _input_gradient)


def linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Multiply x [..., K] by the integer weights in `codes`: y [..., N] = x @ W.T * scale + bias.

    x is uint8 (then `x_scale` and `x_zero_point` say what it means) or float32, float16, bfloat16:
    weight-only, summed in float32 and rounded once, or quantized here by ops.reference.quantize
    where `x_scale` and `x_zero_point` are given. codes, scale and bias: see the module.
    `y_scale` and `y_zero_point` make a uint8 result. `packed` is
    prepack(codes, kind, K, 1, float_x), and saves packing at every call; kind "sparse" skips empty
    quads.
    Differentiable once in float x that is not quantized, scale and bias. Raises UnsupportedShape,
    UnsupportedDevice, BadWeights. Rounding: docs/architecture.md, integer semantics.
    """
    y: torch.Tensor = _OP(x, codes, scale, bias, **options)
    return y
