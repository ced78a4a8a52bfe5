# SPDX-License-Identifier: Apache-2.0
"""2-d convolution with float weights kept in blocks of N output x M input channels at one tap.

x       [N, C, H, W] or [C, H, W]  float32, float16 or bfloat16
values  [nnz, N, M]                the same dtypes; crow_indices, col_indices: see blocks.py
bias    [O] float32 or None
y       [N, O, Ho, Wo] or [O, Ho, Wo]  x's dtype, summed in float32 and rounded once
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from ternary_ops.ops import _check
from ternary_ops.ops._conv2d import input_gradient, run_convolution
from ternary_ops.ops._gpu import gpu_module
from ternary_ops.ops._library import below_autograd, define, differentiate
from ternary_ops.ops._native_call import operands
from ternary_ops.ops.blocks import Blocks, gather, pack, to_dense
from ternary_ops.reference.arithmetic import Pair, pair

_NAME = "block_sparse_conv2d"
_SCHEMA = (
    _NAME + "(Tensor x, Tensor values, Tensor crow_indices, Tensor col_indices, "
    "SymInt out_channels, SymInt[2] kernel_size, Tensor? bias=None, SymInt[2] stride=1, "
    "SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1, *, Tensor? packed=None) -> Tensor"
)
_Ints = Sequence[int]


def _shape(
    x: torch.Tensor,
    blocks: Blocks,
    out_channels: int,
    kernel_size: _Ints,
    bias: torch.Tensor | None,
    stride: _Ints,
    padding: _Ints,
    dilation: _Ints,
    groups: int,
) -> list[int]:
    """Check everything but the indices' values; return the result's shape."""
    values, crow, col = blocks
    if x.dtype not in _check.FLOATS or values.dtype not in _check.FLOATS:
        got = f"x {x.dtype}, values {values.dtype}"
        _check.refuse(_NAME, "x and values of a float dtype up to 32 bits", got, "Convert them.")
    if values.dim() != 3 or min(values.shape[1:]) < 1:
        _check.refuse(_NAME, "values [nnz, N, M]", list(values.shape), "Use ops.blocks.from_dense.")
    if {crow.dtype, col.dtype} - {torch.int32, torch.int64}:
        got = f"{crow.dtype}, {col.dtype}"
        _check.refuse(_NAME, "indices of int32 or int64", got, "Convert them.")
    rows = -(-out_channels // values.shape[1])
    if list(crow.shape) != [rows + 1] or list(col.shape) != [values.shape[0]]:
        _check.refuse(
            _NAME,
            f"crow_indices [{rows + 1}] and col_indices [{values.shape[0]}]",
            f"{list(crow.shape)} and {list(col.shape)}",
            "Use ops.blocks.from_dense.",
        )
    if bias is not None:
        _check.per_channel(_NAME, "bias", bias, out_channels)
    return _check.conv_shape(_NAME, x, out_channels, kernel_size, stride, padding, dilation, groups)


def _cpu(
    x: torch.Tensor,
    values: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    out_channels: int,
    kernel_size: _Ints,
    bias: torch.Tensor | None = None,
    stride: _Ints = (1, 1),
    padding: _Ints = (0, 0),
    dilation: _Ints = (1, 1),
    groups: int = 1,
    *,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    blocks = Blocks(values, crow_indices, col_indices)
    shape = _shape(x, blocks, out_channels, kernel_size, bias, stride, padding, dilation, groups)
    dtype = x.dtype
    # The blocks' values are the weights: every output channel has scale 1.
    x, ones, y = operands(x, torch.ones(out_channels), None, shape, dtype)
    bias = None if bias is None else bias.contiguous()
    if y.numel():
        if packed is None:
            packed = pack(blocks, out_channels, x.shape[-3], kernel_size, groups)
        weight = (out_channels, *kernel_size, x.shape[-3] // groups, groups)
        window = (*stride, *padding, *dilation)
        run_convolution(_NAME, x, packed, weight, ones, bias, window, y)
    return y if y.dtype == dtype else y.to(dtype)


def _gpu(
    x: torch.Tensor,
    values: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    out_channels: int,
    kernel_size: _Ints,
    bias: torch.Tensor | None = None,
    stride: _Ints = (1, 1),
    padding: _Ints = (0, 0),
    dilation: _Ints = (1, 1),
    groups: int = 1,
    *,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    blocks = Blocks(values, crow_indices, col_indices)
    shape = _shape(x, blocks, out_channels, kernel_size, bias, stride, padding, dilation, groups)
    if not math.prod(shape):
        return x.new_empty(shape)
    images = (x if x.dim() == 4 else x[None]).contiguous()
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    kernels = gpu_module(_NAME)
    bias = None if bias is None else bias.contiguous()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        y: torch.Tensor = kernels.run(
            images, *blocks, out_channels, tuple(kernel_size), bias, *geometry
        )
    return y.view(shape)


def _fake(
    x: torch.Tensor,
    values: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    out_channels: int,
    kernel_size: _Ints,
    bias: torch.Tensor | None = None,
    stride: _Ints = (1, 1),
    padding: _Ints = (0, 0),
    dilation: _Ints = (1, 1),
    groups: int = 1,
    *,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    blocks = Blocks(values, crow_indices, col_indices)
    return x.new_empty(
        _shape(x, blocks, out_channels, kernel_size, bias, stride, padding, dilation, groups)
    )


_OP = define(_SCHEMA, _cpu, _fake, _gpu)


class _BlocksFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        values: torch.Tensor,
        crow_indices: torch.Tensor,
        col_indices: torch.Tensor,
        out_channels: int,
        kernel_size: _Ints,
        bias: torch.Tensor | None,
        geometry: tuple[_Ints, _Ints, _Ints, int],
        packed: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, values, crow_indices, col_indices)
        ctx.out_channels, ctx.kernel_size, ctx.geometry = out_channels, kernel_size, geometry
        operands = (x, values, crow_indices, col_indices, out_channels, kernel_size, bias)
        return below_autograd(_OP, *operands, *geometry, packed=packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        blocks = Blocks(*tensors)
        grad = grad.float()
        d_x = d_values = d_bias = None
        channels = x.shape[-3] // ctx.geometry[3]
        dense = to_dense(blocks, ctx.out_channels, channels, ctx.kernel_size).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            d_x = input_gradient(grad, x.shape, dense, *ctx.geometry).to(x.dtype)
        if ctx.needs_input_grad[1]:
            images = (x, grad) if x.dim() == 4 else (x.unsqueeze(0), grad.unsqueeze(0))
            d_dense = conv2d_weight(  # type: ignore[no-untyped-call]
                images[0].float(), dense.shape, images[1], *ctx.geometry
            )
            d_values = gather(d_dense.permute(0, 2, 3, 1), blocks)
            d_values = d_values.to(blocks.values.dtype)
        if ctx.needs_input_grad[6]:
            d_bias = grad.sum([axis for axis in range(grad.dim()) if axis != grad.dim() - 3])
        return d_x, d_values, None, None, None, None, d_bias, None, None


def _wanted(x: torch.Tensor, values: torch.Tensor, *rest: Any, **kwargs: Any) -> bool:
    bias = rest[4] if len(rest) > 4 else None
    return x.requires_grad or values.requires_grad or (bias is not None and bias.requires_grad)


def _apply(
    x: torch.Tensor,
    values: torch.Tensor,
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    out_channels: int,
    kernel_size: _Ints,
    bias: torch.Tensor | None = None,
    stride: _Ints = (1, 1),
    padding: _Ints = (0, 0),
    dilation: _Ints = (1, 1),
    groups: int = 1,
    *,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    operands = (x, values, crow_indices, col_indices, out_channels, kernel_size, bias)
    out: torch.Tensor = _BlocksFunction.apply(  # type: ignore[no-untyped-call]
        *operands, (stride, padding, dilation, groups), packed
    )
    return out


differentiate(_OP, _cpu, _wanted, _apply)


def block_sparse_conv2d(
    x: torch.Tensor,
    blocks: Blocks,
    out_channels: int,
    kernel_size: Pair,
    bias: torch.Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    packed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolve float x with the weight [O, I, R, S] that `blocks` keep (ops.blocks.from_dense).

    Shapes and dtypes: see the module. `packed` is ops.blocks.pack(blocks, ...), and saves
    packing at every call; the blocks' values are then read by the gradient only.
    Differentiable once in x, values and bias. Raises UnsupportedShape, UnsupportedDevice,
    BadWeights.
    """
    geometry = (pair(stride), pair(padding), pair(dilation), groups)
    y: torch.Tensor = _OP(
        x, *blocks, out_channels, pair(kernel_size), bias, *geometry, packed=packed
    )
    return y
