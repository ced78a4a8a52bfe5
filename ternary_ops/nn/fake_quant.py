# SPDX-License-Identifier: Apache-2.0
"""The uint8 input of a layer, as exact integers inside a float tensor, with a learnable range.

The forward is docs/architecture.md to the bit: scale and zero point as reference.affine_params
makes them, q as reference.quantize makes it (but NaN stays NaN, so that training shows it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ternary_ops import _native
from ternary_ops.layout.codes import FINE_PARTS

LEVELS = 255
_TINY = torch.finfo(torch.float32).tiny


def affine_params(bounds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale float32, zero point float32 and known bool, all 0-d, of a range [2]; no gradient.

    The tensor twin of reference.affine_params, which says why. A range that is not finite is
    unknown: scale 1, zero point 0.
    """
    bounds = bounds.detach().double()
    known = bounds.isfinite().all()
    lo, hi = torch.where(known, bounds, 0.0).unbind()
    lo, hi = lo.clamp_max(0.0), hi.clamp_min(0.0)
    empty = lo == hi
    scale = ((hi - lo) / LEVELS).float().clamp_min(_TINY)
    zero_point = (-lo / scale.double()).round().clamp(0, LEVELS)
    return torch.where(empty, 1.0, scale), torch.where(empty, 0.0, zero_point).float(), known


def fine_bounds(bounds: Tensor) -> Tensor:
    """Range of the two-term 11-bit codes for a range [2]; float64, no gradient."""
    lo, hi = bounds.detach().double().unbind()
    room = FINE_PARTS // 2 / (LEVELS - FINE_PARTS // 2)
    return torch.stack([torch.minimum(lo, -room * hi), torch.maximum(hi, -room * lo)])


@torch.no_grad()
def left_over(x: Tensor, scale: Tensor) -> Tensor:
    """Rounding residual of quantize in eighths of a step, whole numbers in -4..4 (NaN stays)."""
    v = (x * (1.0 / scale)).clamp(-1024, 1024)
    return ((v - v.round()) * FINE_PARTS).round()


def quantize(x: Tensor, bounds: Tensor, fine: bool = False) -> tuple[Tensor, Tensor]:
    """float32 x and a range [2] -> (q - zero point) as float32, and the scale, float32 0-d.

    fine: the first of the two codes of eleven bits; left_over is the second.

    While the range is unset (NaN) this is (x, 1), so that one graph serves both. Gradients:
    straight through to x inside the range; to the bounds by LSQ+ (Bhalgat et al. 2020, arXiv
    2004.09576): the rounding error inside, 1 where x is clipped to that bound.
    """
    eager = not torch.compiler.is_compiling() and x.device.type == bounds.device.type == "cpu"
    if eager and not bool(bounds.detach().isfinite().all()):
        # No graph to keep whole: leave x alone. Without a gradient, weight decay and momentum
        # leave NaN out of the optimizer's state; but DistributedDataParallel waits for one.
        waited_for = torch.distributed.is_available() and torch.distributed.is_initialized()
        return x, 1.0 + 0.0 * torch.nan_to_num(bounds).sum() if waited_for else bounds.new_ones(())
    scale, zero_point, known = affine_params(fine_bounds(bounds) if fine else bounds)
    native = eager and x.dtype == torch.float32 and type(x) in (Tensor, nn.Parameter)
    q: Tensor = (_QuantizeNative if native else _Quantize).apply(  # type: ignore[no-untyped-call]
        x, bounds, scale, zero_point, known
    )
    return q, scale


def _bounds_gradient(
    bounds: Tensor, x: Tensor, sums: tuple[Tensor | float, Tensor | float, Tensor | float]
) -> Tensor:
    """From the sums, over x, of gradients: times the rounding error, and clipped to lo, to hi."""
    rounding, below, above = sums
    by_lo, by_hi = (torch.as_tensor(s, device=bounds.device) for s in (below, above))
    rounding = rounding / LEVELS
    # LSQ (Esser et al. 2020): a range sums over all of x; this brings the gradient back to the
    # size of a weight's. A bound at 0 stays: affine_params widens ranges to hold 0.
    step = (max(x.numel(), 1) * LEVELS) ** -0.5
    both = torch.stack([by_lo - rounding, by_hi + rounding]) * step
    free = torch.stack([bounds[0] < 0, bounds[1] > 0])
    return torch.where(free, both, 0.0).to(bounds.dtype)


class _QuantizeNative(torch.autograd.Function):
    """Training passes over every activation here: one loop each way instead of fifteen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bounds: Tensor, scale: Tensor, zero_point: Tensor, known: Tensor
    ) -> Tensor:
        layout = (
            torch.channels_last
            if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        x = x.detach().contiguous(memory_format=layout)
        ctx.layout = layout
        ctx.range = float(scale), int(zero_point), torch.get_num_threads()
        ctx.save_for_backward(x, bounds)
        q = torch.empty_like(x)
        _native.core().fake_quantize(x.data_ptr(), x.numel(), *ctx.range, q.data_ptr())
        return q

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bounds = ctx.saved_tensors
        grad = grad.contiguous(memory_format=ctx.layout)
        inside = torch.empty_like(x)
        sums = _native.core().fake_quantize_grad(
            x.data_ptr(), grad.data_ptr(), x.numel(), *ctx.range, inside.data_ptr()
        )
        by_bounds = _bounds_gradient(bounds, x, sums) if ctx.needs_input_grad[1] else None
        return inside, by_bounds, None, None, None


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bounds: Tensor, scale: Tensor, zero_point: Tensor, known: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, bounds, scale, zero_point, known)
        steps = torch.round(x * (1.0 / scale)) + zero_point
        return torch.where(known, steps.clamp(0, LEVELS) - zero_point, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, bounds, scale, zero_point, known = ctx.saved_tensors
        # q - zp enters multiplied by scale: this is the gradient by the value it stands for.
        grad = grad / scale
        exact = x * (1.0 / scale)
        steps = torch.round(exact)
        below, above = steps + zero_point < 0, steps + zero_point > LEVELS
        inside = torch.where(below | above, 0.0, grad)
        grad_bounds = None
        if ctx.needs_input_grad[1]:
            sums = (
                (inside * (steps - exact)).sum(),
                torch.where(below, grad, 0.0).sum(),
                torch.where(above, grad, 0.0).sum(),
            )
            grad_bounds = torch.where(known, _bounds_gradient(bounds, x, sums), 0.0)
        return torch.where(known, inside, grad), grad_bounds, None, None, None
