# SPDX-License-Identifier: Apache-2.0
"""conv2d and sparse_conv2d for tensors on a GPU: checks, shapes, and the launch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ternary_ops.ops import _check
from ternary_ops.ops._gpu import gpu_module, gpu_pack
from ternary_ops.ops._library import Kernel


def gpu_kernel(name: str, kind: str) -> Kernel:
    """Kernel that the dispatcher calls; `kind` is that of its packed weights."""

    def gpu(
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
        if not math.prod(shape):
            return x.new_empty(shape, dtype=dtype)
        kernels = gpu_module(name)
        channels = x.shape[-3] // groups
        if packed is None:
            packed = gpu_pack(codes, channels, groups, x.dtype != torch.uint8, kind)
        if packed.device != x.device:
            got, do = f"them on {packed.device}", "Pass what prepack returned for codes there."
            _check.refuse(name, f"packed weights on {x.device}", got, do)
        output = gpu_module("_epilogue").Output(
            dtype, 1.0 if y_scale is None else y_scale, y_zero_point or 0
        )
        quantized = None if x_scale is None else (x_scale, x_zero_point or 0)
        images = (x if x.dim() == 4 else x[None]).contiguous()
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            y: torch.Tensor = kernels.run(
                images,
                packed,
                (*codes.shape[:3], channels),
                codes.dtype == torch.uint8,
                (scale if x_scale is None else scale * x_scale).contiguous(),
                None if bias is None else bias.contiguous(),
                tuple(stride),
                tuple(padding),
                tuple(dilation),
                groups,
                quantized,
                output,
            )
        return y.view(shape)

    return gpu
