# SPDX-License-Identifier: Apache-2.0
"""From tensors to the addresses the native core takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ternary_ops import _native
from ternary_ops.layout import codes as layout
from ternary_ops.ops._check import refuse
from ternary_ops.ops._decode import decode

CELL = {torch.uint8: "u8", torch.float32: "f32"}
# What linear takes where its input stays float.
FLOAT_ROWS = {torch.float32: "f32", torch.bfloat16: "bf16"}
WEIGHTS = {torch.uint8: "ternary", torch.int8: "int8", torch.float32: "float"}


def operands(
    x: torch.Tensor,
    scale: torch.Tensor,
    x_scale: float | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    cells: dict[torch.dtype, str] = CELL,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contiguous x (float32 if its type is none of `cells`), the effective scale, unwritten y.

    The caller keeps all three alive while the core runs, and converts y to `dtype` at the end.
    """
    if x.dtype not in cells:
        x = x.float()
    # PyTorch rounds x_scale to float32 before the product, as docs/architecture.md asks.
    scale = scale if x_scale is None else scale * x_scale
    y = torch.empty(shape, dtype=torch.uint8 if dtype == torch.uint8 else torch.float32)
    return x.contiguous(), scale.contiguous(), y


def packed_span(op: str, packed: torch.Tensor) -> tuple[int, int]:
    """Address and length of packed weights; UnsupportedShape unless contiguous uint8 [bytes]."""
    address, size = packed.data_ptr(), packed.numel()
    if (
        packed.dtype != torch.uint8
        or packed.shape != (size,)
        or not packed.is_contiguous()
        or not size
    ):
        got = f"{packed.dtype} {list(packed.shape)}"
        refuse(op, "packed uint8 [bytes], contiguous", got, "Pass what prepack returned.")
    return address, size


def validate(codes: torch.Tensor, channels: int) -> None:
    """Raise BadWeights at the first invalid 2-bit code."""
    if codes.dtype == torch.uint8:
        layout.validate(codes.numpy(), channels)


def pack(codes: torch.Tensor, kind: str, channels: int, groups: int, float_x: bool) -> torch.Tensor:
    """Packed weights of codes or floats [O, R, S, ...] or [N, ...]; `channels` of one group.

    With `float_x` a dense linear layer keeps its integers, which the kernel turns into floats as it
    reads them; elsewhere floats are multiplied by floats, and codes become float32 here.
    """
    validate(codes, channels)
    core = _native.core()
    if float_x and codes.dim() == 2 and kind == "dense" and codes.dtype != torch.float32:
        form = "two_bit" if codes.dtype == torch.uint8 else "int8"
        codes = codes.contiguous()
        if core.rows_fit(WEIGHTS[codes.dtype], channels):
            address = codes.data_ptr()
            rows = core.prepack_linear(form, WEIGHTS[codes.dtype], address, len(codes), channels)
            return torch.from_numpy(rows)
    if float_x:
        codes = decode(codes, channels).float()
    codes = codes.contiguous()
    wtype = WEIGHTS[codes.dtype]
    if codes.dim() == 2:
        rows = core.prepack_linear(kind, wtype, codes.data_ptr(), codes.shape[0], channels)
        return torch.from_numpy(rows)
    o, r, s = codes.shape[:3]
    return torch.from_numpy(core.prepack(kind, wtype, codes.data_ptr(), o, r, s, channels, groups))
