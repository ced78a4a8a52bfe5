# SPDX-License-Identifier: Apache-2.0
"""The gradient shared by `linear` and the convolutions: y = acc(x, codes) * scale + bias.

d/dx is the transposed operator on grad * scale (float x that stays float), d/dscale sums grad *
acc, d/dbias sums grad. Codes have no gradient, and there is no second derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from ternary_ops.ops._library import Kernel, below_autograd, differentiate

# (grad of acc float32, x's shape, codes, *geometry) -> grad of x float32
InputGradient = Callable[..., torch.Tensor]


class Rule(NamedTuple):
    """The parts of the gradient in which linear layers and convolutions differ."""

    op: Any
    channel_axis: int
    input_gradient: InputGradient


class _CodesFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rule: Rule,
        x: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        packed: torch.Tensor | None,
        geometry: tuple[Any, ...],
        quantization: dict[str, Any],
    ) -> torch.Tensor:
        ctx.rule, ctx.geometry, ctx.quantization = rule, geometry, quantization
        ctx.save_for_backward(x, codes, scale, packed)
        return below_autograd(
            rule.op, x, codes, scale, bias, *geometry, **quantization, packed=packed
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, codes, scale, packed = ctx.saved_tensors
        rule: Rule = ctx.rule
        grad = grad.float()
        channel_axis = grad.dim() + rule.channel_axis
        others = [axis for axis in range(grad.dim()) if axis != channel_axis]
        d_x = d_scale = d_bias = None
        if ctx.needs_input_grad[1] and ctx.quantization.get("x_scale") is None:
            per_channel = scale.reshape(-1, *[1] * (-1 - rule.channel_axis))
            d_x = rule.input_gradient(grad * per_channel, x.shape, codes, *ctx.geometry)
            d_x = d_x.to(x.dtype)
        if ctx.needs_input_grad[3]:
            operand = x if x.dtype == torch.uint8 else x.float()
            acc = below_autograd(
                rule.op,
                operand,
                codes,
                torch.ones_like(scale),
                None,
                *ctx.geometry,
                **ctx.quantization,
                packed=packed,
            )
            d_scale = _sum(grad * acc, others)
        if ctx.needs_input_grad[4]:
            d_bias = _sum(grad, others)
        return None, d_x, None, d_scale, d_bias, None, None, None


def _sum(t: torch.Tensor, axes: list[int]) -> torch.Tensor:
    # Tensor.sum(dim=[]) means every axis; a rank-1 linear has none to sum.
    return t.sum(axes) if axes else t


def differentiate_codes(
    op: Any, cpu: Kernel, channel_axis: int, input_gradient: InputGradient
) -> None:
    """Register the gradient of an operator with the arguments (x, codes, scale, bias, geometry)."""
    rule = Rule(op, channel_axis, input_gradient)

    def wanted(
        x: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        *geometry: Any,
        **kwargs: Any,
    ) -> bool:
        return x.requires_grad or scale.requires_grad or (bias is not None and bias.requires_grad)

    def apply(
        x: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        *geometry: Any,
        packed: torch.Tensor | None = None,
        **quantization: Any,
    ) -> torch.Tensor:
        out: torch.Tensor = _CodesFunction.apply(  # type: ignore[no-untyped-call]
            rule, x, codes, scale, bias, packed, geometry, quantization
        )
        return out

    differentiate(op, cpu, wanted, apply)
