# SPDX-License-Identifier: Apache-2.0
"""The gate all attention of super-resolution networks ends in, as one pass over the maps.

x, gate, residual, y  [N, C, H, W]  float32, float16 or bfloat16, all of x's dtype
low                   [N, C, h, w]  the same dtype: stretched over the image and added to the gate

float16 and bfloat16 are computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ternary_ops import _native
from ternary_ops.ops import _check
from ternary_ops.ops._bilinear import stretched
from ternary_ops.ops._gpu import gpu_module
from ternary_ops.ops._library import define, differentiate

_NAME = "sr_gate"
_SCHEMA = (
    _NAME + "(Tensor x, Tensor gate, Tensor? low=None, Tensor? residual=None, *, "
    "float offset=0.0, SymInt[]? image=None, SymInt[] origin=[0, 0]) -> Tensor"
)
_Ints = Sequence[int]


def check(
    x: Tensor,
    gate: Tensor,
    low: Tensor | None = None,
    residual: Tensor | None = None,
    image: _Ints | None = None,
    origin: _Ints = (0, 0),
) -> tuple[int, int]:
    """Refuse what does not fit; returns the image's size."""
    if x.dtype not in _check.FLOATS or x.dim() != 4:
        got = f"{x.dtype} {list(x.shape)}"
        _check.refuse(_NAME, "x float [N, C, H, W]", got, "Convert or reshape it.")
    for name, other in (("gate", gate), ("residual", residual)):
        if other is not None and (other.shape != x.shape or other.dtype != x.dtype):
            got = f"{other.dtype} {list(other.shape)}"
            _check.refuse(_NAME, f"{name} {x.dtype} {list(x.shape)}, as x", got, "Convert it.")
    size = (x.shape[2], x.shape[3]) if image is None else tuple(image)
    fits = len(size) == 2 and len(origin) == 2
    if not fits or any(
        o < 0 or o + part > whole for o, part, whole in zip(origin, x.shape[2:], size, strict=True)
    ):
        got = f"image {list(size)}, origin {list(origin)}, x {list(x.shape)}"
        _check.refuse(_NAME, "a crop that lies in its image", got, "Pass image=(height, width).")
    if low is not None:
        same = low.dim() == 4 and low.shape[:2] == x.shape[:2] and low.dtype == x.dtype
        if not same or min(low.shape[2:]) < 1:
            got = f"{low.dtype} {list(low.shape)}"
            wanted = f"low {x.dtype} [{x.shape[0]}, {x.shape[1]}, h, w]"
            _check.refuse(_NAME, wanted, got, "Convert it.")
    return size[0], size[1]


def _cpu(
    x: Tensor,
    gate: Tensor,
    low: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    offset: float = 0.0,
    image: _Ints | None = None,
    origin: _Ints = (0, 0),
) -> Tensor:
    size = check(x, gate, low, residual, image, origin)
    y = torch.empty(x.shape)
    if y.numel():
        parts = [None if t is None else t.float().contiguous() for t in (x, gate, low, residual)]
        addresses = [0 if t is None else t.data_ptr() for t in parts]
        cells = (1, 1) if low is None else low.shape[2:]
        planes = x.shape[0] * x.shape[1]
        _native.core().sr_gate(
            *addresses, y.data_ptr(), planes, *x.shape[2:], *cells, *size, *origin, offset
        )
    return y.to(x.dtype)


def _gpu(
    x: Tensor,
    gate: Tensor,
    low: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    offset: float = 0.0,
    image: _Ints | None = None,
    origin: _Ints = (0, 0),
) -> Tensor:
    size = check(x, gate, low, residual, image, origin)
    kernels = gpu_module(_NAME)
    if not x.numel():
        return x.new_empty(x.shape)
    parts = [None if t is None else t.contiguous() for t in (x, gate, low, residual)]
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        y: Tensor = kernels.run(*parts, offset, size, tuple(origin))
    return y


def _fake(
    x: Tensor,
    gate: Tensor,
    low: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    offset: float = 0.0,
    image: _Ints | None = None,
    origin: _Ints = (0, 0),
) -> Tensor:
    check(x, gate, low, residual, image, origin)
    return x.new_empty(x.shape)


_OP = define(_SCHEMA, _cpu, _fake, _gpu)


def composed(
    x: Tensor,
    gate: Tensor,
    low: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    offset: float = 0.0,
    image: _Ints | None = None,
    origin: _Ints = (0, 0),
) -> Tensor:
    """The operator from PyTorch's own, which know their gradients."""
    size = check(x, gate, low, residual, image, origin)
    total = gate if low is None else gate + stretched(low, size, origin, x.shape[2:])
    y = x * (torch.sigmoid(total) - offset)
    return y if residual is None else y + residual


def _wanted(x: Tensor, gate: Tensor, *rest: Tensor | None, **kwargs: object) -> bool:
    named = [kwargs.get(name) for name in ("low", "residual")]
    return any(isinstance(t, Tensor) and t.requires_grad for t in (x, gate, *rest, *named))


differentiate(_OP, _cpu, _wanted, composed)


def sr_gate(
    x: Tensor,
    gate: Tensor,
    low: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    offset: float = 0.0,
    image: tuple[int, int] | None = None,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """x * (sigmoid(gate + low) - offset) + residual, all [N, C, H, W] but low [N, C, h, w].

    low is stretched (bilinear, align_corners=False) over an image of size `image`, by default x's,
    of which x shows what begins at `origin` (top, left): tiles of an image get the values that the
    whole gets. PA: gate = conv1x1(x). SPAN: sr_gate(x + a, a, offset=0.5). ESA and HFAB as a whole:
    ops.esa, ops.hf_attention. Differentiable. Raises UnsupportedShape, UnsupportedDevice.
    """
    y: Tensor = _OP(x, gate, low, residual, offset=offset, image=image, origin=origin)
    return y
