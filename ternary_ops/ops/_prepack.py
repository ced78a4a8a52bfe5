# SPDX-License-Identifier: Apache-2.0
"""Weights in the order the kernels read them; opaque, machine-made, never stored in a file.

codes   [O, R, S, ceil(I/4)] uint8, [O, R, S, 4*ceil(I/4)] int8, [O, R, S, I] float32,
        or the same without R and S for a linear layer
packed  [bytes] uint8: a 64-byte header and the weights
"""

from __future__ import annotations

import torch

from ternary_ops.ops import _check
from ternary_ops.ops._gpu import gpu_pack
from ternary_ops.ops._library import define
from ternary_ops.ops._native_call import WEIGHTS, pack

_SCHEMA = (
    "prepack(Tensor codes, str kind, SymInt in_channels, SymInt groups=1, "
    "bool float_x=False) -> Tensor"
)


def _check_prepack(codes: torch.Tensor, kind: str, in_channels: int, groups: int) -> None:
    if kind not in ("dense", "sparse"):
        _check.refuse("prepack", 'kind "dense" or "sparse"', repr(kind), "Choose one of them.")
    if codes.dim() not in (2, 4):
        do = "Pass what conv2d or linear take."
        _check.refuse("prepack", "codes with 2 or 4 axes", list(codes.shape), do)
    if codes.dtype not in WEIGHTS:
        do = "Pack the weights first."
        _check.refuse("prepack", "codes of uint8, int8 or float32", codes.dtype, do)
    if groups < 1 or in_channels < 0 or in_channels % groups or codes.shape[0] % groups:
        _check.refuse(
            "prepack",
            "groups >= 1 that divides the input and the output channels",
            f"groups={groups}, in_channels={in_channels}, O={codes.shape[0]}",
            "in_channels counts all groups.",
        )
    channels = in_channels // groups
    floats = codes.dtype == torch.float32
    stored = channels if floats else _check.stored_channels("prepack", codes, channels)
    if codes.shape[-1] != stored:
        _check.refuse(
            "prepack",
            f"codes [..., {stored}] for {in_channels} channels in {groups} group(s)",
            f"codes {list(codes.shape)} of {codes.dtype}",
            "Pass the number of input channels the weight was packed from.",
        )


def _cpu(
    codes: torch.Tensor, kind: str, in_channels: int, groups: int = 1, float_x: bool = False
) -> torch.Tensor:
    _check_prepack(codes, kind, in_channels, groups)
    return pack(codes, kind, in_channels // groups, groups, float_x)


def _fake(
    codes: torch.Tensor, kind: str, in_channels: int, groups: int = 1, float_x: bool = False
) -> torch.Tensor:
    _check_prepack(codes, kind, in_channels, groups)
    # How many quads are empty, and so how many bytes there are, is known only at run time.
    return codes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def _gpu(
    codes: torch.Tensor, kind: str, in_channels: int, groups: int = 1, float_x: bool = False
) -> torch.Tensor:
    _check_prepack(codes, kind, in_channels, groups)
    if codes.dtype == torch.float32:
        do = "Leave `packed` out: on a GPU blocks are read as they are."
        _check.refuse("prepack", "integer weights on a GPU", codes.dtype, do)
    return gpu_pack(codes, in_channels // groups, groups, float_x, kind)


_OP = define(_SCHEMA, _cpu, _fake, _gpu)


def prepack(
    codes: torch.Tensor, kind: str, in_channels: int, groups: int = 1, float_x: bool = False
) -> torch.Tensor:
    """Arrange weights for the kernels: pass the result as `packed` to the other operators.

    codes: what linear, conv2d or sparse_conv2d take, or float32 [O, R, S, I] for
    block_sparse_conv2d. kind: "dense" (conv2d, linear) or "sparse" (empty quads left out).
    in_channels: K, or C of all groups. float_x: for float instead of uint8 x. Returns uint8
    [bytes]. Raises UnsupportedShape, and BadWeights for an invalid code.
    """
    out: torch.Tensor = _OP(codes, kind, in_channels, groups, float_x)
    return out
