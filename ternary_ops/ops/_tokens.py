# SPDX-License-Identifier: Apache-2.0
"""Operators of token networks: multi-head attention, and LayerNorm whose results are codes.

On a CPU attention is PyTorch's own in float32, and layer_norm_codes the reference of programs,
whose bits the engine has: both are there to check kernels and to run where these are not; networks
on a CPU are compiled. On a GPU float16 and bfloat16 are multiplied as they are, with float32 sums.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ternary_ops import reference
from ternary_ops.ops import _check
from ternary_ops.ops._gpu import gpu_module
from ternary_ops.ops._library import define, differentiate


def check_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> None:
    """Refuse what attention does not take."""
    op, shapes = "attention", [list(t.shape) for t in (q, k, v)]
    if q.dtype not in _check.FLOATS or {k.dtype, v.dtype} != {q.dtype}:
        _check.refuse(op, "q, k, v of one float dtype", [q.dtype, k.dtype, v.dtype], "Convert.")
    fits = all(len(shape) == 4 and min(shape[1:]) > 0 for shape in shapes)
    fits = fits and q.shape[:2] == k.shape[:2] == v.shape[:2]
    if not fits or q.shape[3] != k.shape[3] or k.shape[2] != v.shape[2]:
        wanted = "q [N, H, L, K], k [N, H, M, K], v [N, H, M, D]"
        _check.refuse(op, wanted, shapes, "Reshape them: heads before tokens.")
    if bias is not None:
        wants = [q.shape[1], q.shape[2], k.shape[2]]
        if bias.dtype not in _check.FLOATS or list(bias.shape) != wants:
            got = f"{bias.dtype} {list(bias.shape)}"
            _check.refuse(op, f"a float bias {wants}", got, "Pass one for each head.")
    if not math.isfinite(scale):
        _check.refuse(op, "a finite scale", scale, "Pass K ** -0.5.")


def composed_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float
) -> Tensor:
    """attention by PyTorch's own operators, which know their gradients."""
    check_attention(q, k, v, bias, scale)
    mask = None if bias is None else bias.float()
    y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, scale=scale)
    return y.to(q.dtype).contiguous()


def _gpu_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float
) -> Tensor:
    check_attention(q, k, v, bias, scale)
    kernels = gpu_module("tokens")
    if not q.numel():
        return q.new_empty((*q.shape[:3], v.shape[3]))
    parts = [t.contiguous() for t in (q, k, v)]
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        y: Tensor = kernels.attention(*parts, bias, scale)
    return y


def _fake_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float
) -> Tensor:
    check_attention(q, k, v, bias, scale)
    return q.new_empty((*q.shape[:3], v.shape[3]))


def _wanted(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **rest: object) -> bool:
    return any(t is not None and t.requires_grad for t in (q, k, v, bias))


def check_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, scale: float, zero_point: int
) -> None:
    """Refuse what layer_norm_codes does not take."""
    op = "layer_norm_codes"
    if x.dtype not in _check.FLOATS or x.dim() < 2 or x.shape[-1] < 1:
        got = f"{x.dtype} {list(x.shape)}"
        _check.refuse(op, "x float [..., C]", got, "Convert or reshape it.")
    for name, one in (("weight", weight), ("bias", bias)):
        if one is not None and (one.dtype != torch.float32 or one.shape != x.shape[-1:]):
            got = f"{one.dtype} {list(one.shape)}"
            _check.refuse(op, f"{name} float32 [{x.shape[-1]}]", got, "Convert it.")
    if not (eps > 0 and math.isfinite(eps)):
        _check.refuse(op, "eps > 0", eps, "Pass the LayerNorm's.")
    if not (scale > 0 and math.isfinite(scale) and 0 <= zero_point <= 255):
        got = f"{scale}, {zero_point}"
        _check.refuse(op, "y_scale > 0 and y_zero_point in 0..255", got, "Correct them.")


def _cpu_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y_scale: float, y_zero_point: int
) -> Tensor:
    check_norm(x, weight, bias, eps, y_scale, y_zero_point)
    rows = x.detach().float().reshape(-1, x.shape[-1]).numpy()
    shift = None if bias is None else bias.detach().numpy()
    y = (y_scale, y_zero_point)
    codes = reference.layer_norm_codes(rows, weight.detach().numpy(), shift, eps, y)
    return torch.from_numpy(codes).view(x.shape)


def _gpu_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y_scale: float, y_zero_point: int
) -> Tensor:
    check_norm(x, weight, bias, eps, y_scale, y_zero_point)
    kernels, output = gpu_module("tokens"), gpu_module("_epilogue").Output
    if not x.numel():
        return x.new_empty(x.shape, dtype=torch.uint8)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    shift = None if bias is None else bias.contiguous()
    made = output(torch.uint8, y_scale, y_zero_point)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        y: Tensor = kernels.layer_norm_codes(rows, weight.contiguous(), shift, eps, made)
    return y.view(x.shape)


def _fake_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y_scale: float, y_zero_point: int
) -> Tensor:
    check_norm(x, weight, bias, eps, y_scale, y_zero_point)
    return x.new_empty(x.shape, dtype=torch.uint8)


_ATTENTION = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? bias=None, *, float scale) -> Tensor",
    *(composed_attention, _fake_attention, _gpu_attention),
)
_NORM = define(
    "layer_norm_codes(Tensor x, Tensor weight, Tensor? bias, float eps, float y_scale, "
    "int y_zero_point) -> Tensor",
    *(_cpu_norm, _fake_norm, _gpu_norm),
)
differentiate(_ATTENTION, composed_attention, _wanted, composed_attention)
differentiate(_NORM, _cpu_norm, lambda *args: False, _cpu_norm)  # codes have no gradient


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float
) -> Tensor:
    """Multi-head attention, softmax(scale * q k + bias) v: [N, H, L, D] of q's dtype.

    q [N, H, L, K], k [N, H, M, K], v [N, H, M, D] of one float dtype; bias [H, L, M], of each head
    for every image, as relative positions are. Differentiable. Raises UnsupportedShape,
    UnsupportedDevice.
    """
    y: Tensor = _ATTENTION(q, k, v, bias, scale=scale)
    return y


def layer_norm_codes(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, y_scale: float, y_zero_point: int
) -> Tensor:
    """LayerNorm over the last axis of x [..., C], rounded to uint8 codes of this scale and zero
    point; weight and bias float32 [C].

    On a GPU sums are taken in another order than on a CPU: a code may differ by one. Raises
    UnsupportedShape, UnsupportedDevice.
    """
    y: Tensor = _NORM(x, weight, bias, eps, y_scale, y_zero_point)
    return y
