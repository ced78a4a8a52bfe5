# SPDX-License-Identifier: Apache-2.0
"""Registration of PyTorch operators: schema, kernels by device, shape function, gradient rule.

torch.library.Library.impl costs 7-10 us a call; torch.library.custom_op 23.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Any: PyTorch leaves the methods of Library untyped. Lives as long as the process.
LIB: Any = torch.library.Library("ternary_ops", "DEF")  # type: ignore[no-untyped-call]

# What is left to dispatch to below autograd for a plain CPU tensor with no mode (fake, tracing) on.
_BELOW_AUTOGRAD = torch._C._after_autograd_keyset
_CPU_ONLY = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

Kernel = Callable[..., torch.Tensor]


def define(
    schema: str, cpu: Callable[..., Any], fake: Callable[..., Any], gpu: Callable[..., Any]
) -> Any:
    """Register `name(args) -> Tensor` (or a tuple) for CPU, GPU and fake tensors; the op.

    gpu: loads Triton's kernels when it runs (`_gpu.gpu_module`), not before.
    """
    name = schema.partition("(")[0]
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIB.impl(name, cpu, "CPU")
    LIB.impl(name, gpu, "CUDA")
    torch.library.register_fake(f"ternary_ops::{name}", fake, lib=LIB)
    return getattr(torch.ops.ternary_ops, name).default


def differentiate(op: Any, cpu: Kernel, wanted: Callable[..., bool], apply: Kernel) -> None:
    """Register the gradient: `apply(*args)` when `wanted(*args)`, else the op below autograd.

    `apply` reaches the op itself through `below_autograd`.
    """

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and wanted(*args, **kwargs):
            return apply(*args, **kwargs)
        below = keyset & _BELOW_AUTOGRAD
        if below == _CPU_ONLY:  # a second trip through the dispatcher would cost 7 us
            return cpu(*args, **kwargs)
        out: torch.Tensor = op.redispatch(below, *args, **kwargs)
        return out

    LIB.impl(op._schema.name.partition("::")[2], kernel, "Autograd", with_keyset=True)


def below_autograd(op: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Call the op without its gradient rule, from inside that rule."""
    with torch._C._AutoDispatchBelowAutograd():
        out: torch.Tensor = op(*args, **kwargs)
    return out
