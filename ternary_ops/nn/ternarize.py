# SPDX-License-Identifier: Apache-2.0
"""From real weights to integer codes and one scale per filter. Imports no layer.

weight  [O, I] or [O, I, R, S]   latent weights, any float dtype; worked on in float32
mask    bool, weight's shape      False where a weight is pruned
codes   int8, weight's shape      {-1, 0, +1}, or -127..127 for 8-bit weights
scale   float32 [O]               weight is about codes * scale[o]; 1 for a filter of zeros

A ternarizer is a rule for the codes, a rule for the scale given the codes (used again once codes
are frozen), and the straight-through estimator that trains the latent weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ternary_ops.errors import BadConfig, need
from ternary_ops.nn.patterns import get_pattern, to_mask, unit_reduce

CodesRule = Callable[[Tensor, Tensor, str], Tensor]  # weight, mask, pattern -> codes
ScaleRule = Callable[[Tensor, Tensor, Tensor], Tensor]  # weight, mask, codes -> scale [O]

STE_MODES = ("identity", "sphere", "layer_sphere", "masked")
_INT8_MAX = 127


@dataclass(frozen=True)
class Ternarizer:
    """The rules behind one name: codes, scale, and the mode of the straight-through estimator.

    learned: while it trains, the layer multiplies codes by two learned numbers, one for +1 and one
    for -1 (TernaryLayer.ttq_scales), in place of the scale.
    """

    codes: CodesRule
    scale: ScaleRule
    ste: str = "identity"
    learned: bool = False

    def __call__(self, weight: Tensor, mask: Tensor, pattern: str) -> tuple[Tensor, Tensor]:
        """Codes int8 and scale float32 [O] of latent weights; no gradient.

        A filter with a weight that is not finite gets scale NaN: no code could show it.
        """
        with torch.no_grad():
            weight = weight.float()
            if weight.numel() == 0:
                return weight.to(torch.int8), weight.new_ones(weight.shape[0])
            codes = self.codes(weight, mask, pattern).to(torch.int8)
            finite = weight.isfinite().flatten(1).all(1)
            return codes, torch.where(finite, self.scale(weight, mask, codes), torch.nan)


def lsq_scale(weight: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
    """Least squares, <W, T> / <T, T> of each filter: for ternary T the mean of |W| where T != 0.

    TWN, Li et al. 2016 (arXiv 1605.04711). Differentiable in weight. Summed in float64: the result
    must not depend on the order of summation, which differs between thread counts.
    """
    codes = codes.to(weight.dtype)
    product = (weight * codes).flatten(1).sum(1, dtype=torch.float64)
    square = (codes * codes).flatten(1).sum(1, dtype=torch.float64)
    return torch.where(square > 0, product / square.clamp_min(1), 1.0).float()


def unit_scale(weight: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
    """The scale at which scale * T has the L2 norm of the surviving weights of its filter."""
    codes = codes.to(weight.dtype)
    square = (weight * codes).square().flatten(1).sum(1, dtype=torch.float64)
    count = codes.abs().flatten(1).sum(1, dtype=torch.float64)
    return torch.where(count > 0, (square / count.clamp_min(1)).sqrt(), 1.0).float()


def mean_scale(weight: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
    """Mean of |W| over every unpruned weight of the filter, zero codes included."""
    total = (weight.abs() * mask).flatten(1).sum(1, dtype=torch.float64)
    empty = (codes == 0).flatten(1).all(1)
    mean = total / mask.flatten(1).sum(1).clamp_min(1)
    return torch.where(empty, 1.0, mean).float()


def absmax_scale(weight: Tensor, mask: Tensor, codes: Tensor | None = None) -> Tensor:
    """max|W| / 127 of each filter: the scale of 8-bit weights while codes follow the weights."""
    scale = (weight.abs() * mask).flatten(1).amax(1) / _INT8_MAX
    return torch.where(scale > 0, scale, 1.0)


def _ptq_codes(weight: Tensor, mask: Tensor, pattern: str, threshold: float = 0.5) -> Tensor:
    """Sign of what pruning left: the pruning quantile is the threshold.

    In blocks ("1x4", "NxM", "filter") a kept block may hold small weights too: those under
    `threshold` * mean|W| of the filter's survivors become 0, but never the whole block.
    """
    sign = torch.sign(weight) * mask
    if get_pattern(pattern).single:
        return sign
    magnitude = weight.abs() * mask
    large = magnitude > threshold * _mean_of_survivors(magnitude, mask, per_filter=True)
    return sign * (large | _largest_of_unit(magnitude, pattern))


def _twn_codes(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """|W| > 0.7 * mean|W| over the layer's survivors; TWN, Li et al. 2016 (arXiv 1605.04711).

    Each filter, and each kept block, keeps its largest weight.
    """
    magnitude = weight.abs() * mask
    large = magnitude > 0.7 * _mean_of_survivors(magnitude, mask, per_filter=False)
    unit = "filter" if get_pattern(pattern).single else pattern
    return torch.sign(weight) * mask * (large | _largest_of_unit(magnitude, unit))


def _ttq_codes(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """|W| > 0.05 * max|W| over the layer; Trained Ternary Quantization, Zhu et al. 2016 (arXiv
    1612.01064). Each filter, and each kept block, keeps its largest weight.
    """
    magnitude = weight.abs() * mask
    large = magnitude > 0.05 * magnitude.max()
    unit = "filter" if get_pattern(pattern).single else pattern
    return torch.sign(weight) * mask * (large | _largest_of_unit(magnitude, unit))


def _absmean_codes(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    """round(W / mean|W|), clipped to -1..1; the mean is that of the filter's survivors.

    BitNet b1.58, Ma et al. 2024 (arXiv 2402.17764), there with one mean per layer.
    """
    magnitude = weight.abs() * mask
    large = magnitude > 0.5 * _mean_of_survivors(magnitude, mask, per_filter=True)
    unit = "filter" if get_pattern(pattern).single else pattern
    return torch.sign(weight) * mask * (large | _largest_of_unit(magnitude, unit))


def _int8_codes(weight: Tensor, mask: Tensor, pattern: str) -> Tensor:
    steps = weight * mask / per_filter(absmax_scale(weight, mask), weight)
    return steps.round().clamp(-_INT8_MAX, _INT8_MAX)


INT8 = Ternarizer(_int8_codes, absmax_scale)


def ptq(threshold: float = 0.5, scale: str = "lsq", ste: str = "identity") -> Ternarizer:
    """Pruning Ternary Quantization, a reconstruction: register what you like of it under a name.

    The paper (Liu et al., arXiv 2107.10998) names L2 normalization, pruning and a refined
    straight-through estimator, but its listing was not available to us: this satisfies what its
    abstracts state and is not the authors' algorithm. Since sign(W / |W|) = sign(W), the
    normalization shows in the scale and in the gradient only.

    threshold   see _ptq_codes; no effect where units are elements
    scale       "lsq": least squares; "unit": the norm of the survivors is kept
    ste         "identity": the gradient of scale * T is that of W; "sphere", "layer_sphere": its
                part along W is removed per filter or per layer, as the derivative of W / |W| does;
                "masked": pruned weights get none
    """
    scales = {"lsq": lsq_scale, "unit": unit_scale}
    if scale not in scales or ste not in STE_MODES:
        raise BadConfig(
            need(
                f"for ptq a scale in {tuple(scales)} and an ste in {STE_MODES}",
                f"{scale!r} and {ste!r}",
                "Correct it.",
            )
        )
    return Ternarizer(partial(_ptq_codes, threshold=threshold), scales[scale], ste)


_REGISTRY: dict[str, Ternarizer] = {
    "ptq": ptq(),
    "twn": Ternarizer(_twn_codes, lsq_scale),
    "ttq": Ternarizer(_ttq_codes, lsq_scale, learned=True),
    "absmean": Ternarizer(_absmean_codes, mean_scale),
}


def register_ternarizer(
    name: str, fn: CodesRule | Ternarizer, scale: ScaleRule = lsq_scale, ste: str = "identity"
) -> None:
    """Make `name` a value of TernaryConfig.ternarizer.

    fn(weight float32, mask bool, pattern) -> values in {-1, 0, 1} of weight's shape, 0 where mask
    is False; or a whole Ternarizer, such as ptq(ste="sphere"). Register before loading files that
    name it. Raises BadConfig for a taken name or an unknown ste.
    """
    if name in _REGISTRY:
        raise BadConfig(need("a free name for a new ternarizer", repr(name), "Choose another."))
    if ste not in STE_MODES:
        raise BadConfig(need(f"ste as one of {STE_MODES}", repr(ste), "Pick one."))
    _REGISTRY[name] = fn if isinstance(fn, Ternarizer) else Ternarizer(fn, scale, ste)


def get_ternarizer(name: str) -> Ternarizer:
    """The ternarizer of that name; BadConfig listing those there are."""
    found = _REGISTRY.get(name) if isinstance(name, str) else None
    if found is None:
        raise BadConfig(
            need(
                f"TernaryConfig.ternarizer as one of {', '.join(map(repr, _REGISTRY))}",
                repr(name),
                "Pick one, or add yours with register_ternarizer(name, fn).",
            )
        )
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine similarity of two tensors of one shape: how well codes approximate weights."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))


def per_filter(values: Tensor, like: Tensor) -> Tensor:
    """[O] shaped to broadcast over a weight [O, I, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


class StraightThrough(torch.autograd.Function):
    """Codes as floats, exactly; the gradient of scale * codes goes to the latent weight."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, mask: Tensor, codes: Tensor, scale: Tensor, ste: str
    ) -> Tensor:
        """The codes as float32."""
        ctx.save_for_backward(weight, mask, scale)
        ctx.ste = ste
        return codes.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by scale * codes, as `ste` says, for the weight."""
        weight, mask, scale = ctx.saved_tensors
        # `grad` is by the codes; the codes enter multiplied by scale.
        grad = grad / per_filter(scale, weight)
        if ctx.ste == "masked":
            grad = grad * mask
        elif ctx.ste in ("sphere", "layer_sphere"):
            groups = weight.shape[0] if ctx.ste == "sphere" else 1
            unit = F.normalize(weight.float().reshape(groups, -1), dim=1)
            g = grad.reshape(groups, -1)
            grad = (g - unit * (g * unit).sum(1, keepdim=True)).view_as(weight)
        return grad.to(weight.dtype), None, None, None, None


class LearnedScales(torch.autograd.Function):
    """The weights of Trained Ternary Quantization: W_p where the code is +1, -W_n where it is -1.

    scales [2] holds W_p and W_n. Gradients after Zhu et al. 2016 (arXiv 1612.01064; their formulas
    from memory, a reconstruction): that of W_p is the sum of the gradients of its weights, that of
    W_n the negative sum of its own; a latent weight gets its gradient times W_p, 1 or W_n where the
    code is +1, 0 or -1.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
        """The weights, in the dtype of the scales."""
        ctx.save_for_backward(codes, scales)
        ctx.dtype = weight.dtype
        return torch.where(codes > 0, scales[0], torch.where(codes < 0, -scales[1], 0.0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the weight and of the scales; the codes have none."""
        codes, scales = ctx.saved_tensors
        positive, negative = codes > 0, codes < 0
        by_weight = grad * torch.where(positive, scales[0], torch.where(negative, scales[1], 1.0))
        by_scales = torch.stack([(grad * positive).sum(), -(grad * negative).sum()])
        return by_weight.to(ctx.dtype), None, by_scales


def mean_ttq_scales(weight: Tensor, codes: Tensor) -> Tensor:
    """Mean of |W| where codes are +1, and where -1, float32 [2]; 1 where there are none."""
    sides = [codes > 0, codes < 0]
    sums = [
        (weight.abs() * side).sum(dtype=torch.float64) / side.sum().clamp_min(1) for side in sides
    ]
    present = torch.stack([side.any() for side in sides])
    return torch.where(present, torch.stack(sums), 1.0).float()


def ttq_scale_per_filter(codes: Tensor, scales: Tensor) -> Tensor:
    """One scale per filter, float32 [O]: the least squares fit to the weights of W_p and W_n."""
    flat = codes.flatten(1)
    ups, downs = (flat > 0).sum(1).double(), (flat < 0).sum(1).double()
    total = ups * scales[0].double() + downs * scales[1].double()
    return torch.where(ups + downs > 0, total / (ups + downs).clamp_min(1), 1.0).float()


def _mean_of_survivors(magnitude: Tensor, mask: Tensor, per_filter: bool) -> Tensor:
    dims = tuple(range(1 if per_filter else 0, magnitude.ndim))
    count = mask.sum(dims, keepdim=True).clamp_min(1)
    return magnitude.sum(dims, keepdim=True) / count


def _largest_of_unit(magnitude: Tensor, pattern: str) -> Tensor:
    """Bool, True for the largest weight (equals included) of every unit of the pattern."""
    unit = get_pattern(pattern)
    best = unit_reduce(magnitude, unit, torch.amax)
    return magnitude == to_mask(best, magnitude.shape, unit)
