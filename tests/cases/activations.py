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
    "abs": ((), torch.abs),
    "square": ((), torch.square),
    "sqrt": ((), torch.sqrt),
    "rsqrt": ((), torch.rsqrt),
    "reciprocal": ((), torch.reciprocal),
    "pow": ((2.5,), torch.pow),
    "log": ((), torch.log),
    "erf": ((), torch.erf),
    "sin": ((), torch.sin),
    "cos": ((), torch.cos),
    "celu": ((0.7,), F.celu),
    "selu": ((), F.selu),
    "quick_gelu": ((), lambda x: x * torch.sigmoid(1.702 * x)),
    "logsigmoid": ((), F.logsigmoid),
    "hard_mish": ((), lambda x: 0.5 * x * (x + 2).clamp(0, 2)),
    "softsign": ((), F.softsign),
    "tanhshrink": ((), F.tanhshrink),
    "softshrink": ((0.4,), F.softshrink),
    "hardshrink": ((0.4,), F.hardshrink),
    "threshold": ((0.3, -0.2), F.threshold),
}

# Where functions that are not defined everywhere, or grow without bounds, are tried in networks.
DOMAINS: dict[str, tuple[float, float]] = {
    "exp": (-3.0, 1.0),
    "square": (-3.0, 3.0),
    "sqrt": (0.1, 4.0),
    "rsqrt": (0.1, 4.0),
    "reciprocal": (0.1, 4.0),
    "pow": (0.1, 3.0),
    "log": (0.1, 4.0),
}
