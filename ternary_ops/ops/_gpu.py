# SPDX-License-Identifier: Apache-2.0
"""Kernels for tensors on a GPU, CUDA or ROCm. Triton is imported when the first of them runs."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ternary_ops.errors import BadWeights, UnsupportedDevice, need
from ternary_ops.ops._decode import decode


def gpu_module(name: str) -> Any:
    """ternary_ops.kernels.<name>; UnsupportedDevice without Triton."""
    try:
        return importlib.import_module(f"ternary_ops.kernels.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        do = "pip install 'ternary-ops[gpu]', or move everything with .to(\"cpu\")."
        wanted = f"Triton for ternary_ops.{name} of tensors on a GPU"
        raise UnsupportedDevice(need(wanted, "none installed", do)) from error


def gpu_pack(
    codes: torch.Tensor, channels: int, groups: int, float_x: bool, kind: str = "dense"
) -> torch.Tensor:
    """Packed weights of codes [N, ...] or [O, R, S, ...] on a GPU; `channels` of one group.

    kind: as for ops.prepack; linear layers have one form. Raises BadWeights where a 2-bit code is
    none.
    """
    ternary = codes.dtype == torch.uint8
    values = decode(codes, channels)
    if ternary and bool((values == -2).any()):
        do = "Pack the weights again."
        raise BadWeights(need("2-bit codes 00, 01 or 11", "a 10", do))
    if codes.dim() == 2:
        packed: torch.Tensor = gpu_module("linear").prepack(values, ternary, float_x)
        return packed
    kernels = gpu_module("conv2d" if kind == "dense" else "sparse_conv2d")
    packed = kernels.prepack(values.contiguous(), groups, ternary, float_x)
    return packed
