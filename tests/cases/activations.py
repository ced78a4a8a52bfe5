# SPDX-License-Identifier: Apache-2.0
"""The functions of one number that a program knows: parameters to try, and PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

FUNCTIONS: dict[str, tuple[tuple[float, ...], Callable[..., Any]]] = {
    "affine": ((-1.5, 0.25), lambda x, factor, offset: x * factor + offset),
    "leaky_relu": ((0.2,), F.leaky_relu),
    "hardswish": ((), F.hardswish),
    "hardsigmoid": ((), F.hardsigmoid),
    "affine_hardsigmoid": ((0.3, 0.4), lambda x, a, b: torch.clamp(x * a + b, 0.0, 1.0)),
    "silu": ((), F.silu),
    "sigmoid": ((), torch.sigmoid),
    "tanh": ((), torch.tanh),
    "gelu": ((), F.gelu),
    "gelu_tanh": ((), lambda x: F.gelu(x, approximate="tanh")),
    "elu": ((0.7,), F.elu),
    "softplus": ((1.5, 20.0), F.softplus),
    "mish": ((), F.mish),
    "exp": ((), torch.exp),
}
