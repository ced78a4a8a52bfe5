# SPDX-License-Identifier: Apache-2.0
"""Operators of the precision filter: rollouts last, float32; see ternary_ops.reference.precision.

y, expected, variance, beta  [S, B]; r0 [S]
a, q [D, D]  c [S, D]  mean [D, B]  covariance [D (D + 1) / 2, B], the lower triangle row by row
drive [T, D, B]  y of the filter [T, S, B]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ternary_ops import _native
from ternary_ops.ops import _check
from ternary_ops.ops._gpu import gpu_module
from ternary_ops.ops._library import define
from ternary_ops.reference.precision import PrecisionRule

_UPDATE, _FILTER = "precision_update", "precision_filter"
_STATES = 8
_RULE = "float rho=0.95, float floor=0.0001, float cap=2.0"
_Shapes = Sequence[tuple[str, Tensor, tuple[int, ...]]]


def _fit(op: str, tensors: _Shapes) -> None:
    """Refuse what is not float32 of its shape, or lies on several devices."""
    device = tensors[0][1].device
    for name, t, shape in tensors:
        if t.dtype != torch.float32 or t.shape != shape or t.device != device:
            got = f"{t.dtype} {list(t.shape)} on {t.device}"
            do = "Put the rollouts last, and everything on one device."
            _check.refuse(op, f"{name} float32 {list(shape)} on {device}", got, do)


def check_update(
    y: Tensor, expected: Tensor, variance: Tensor, beta: Tensor, r0: Tensor, alpha: float
) -> tuple[int, int]:
    """Refuse what does not fit; returns S and B."""
    if y.dim() != 2:
        _check.refuse(_UPDATE, "y [S, B]", list(y.shape), "Put the rollouts last.")
    if not alpha > 0:
        _check.refuse(_UPDATE, "alpha > 0", alpha, "Use PrecisionRule().alpha.")
    s, b = y.shape
    parts = (("y", y), ("expected", expected), ("variance", variance), ("beta", beta))
    _fit(_UPDATE, [*((name, t, (s, b)) for name, t in parts), ("r0", r0, (s,))])
    return s, b


def _update_outputs(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = [torch.empty(y.shape, device=y.device) for _ in range(3)]
    flags = torch.empty(-(-y.shape[0] // 32), y.shape[1], dtype=torch.int32, device=y.device)
    return made[0], made[1], made[2], flags


def _cpu_update(
    y: Tensor,
    expected: Tensor,
    variance: Tensor,
    beta: Tensor,
    r0: Tensor,
    alpha: float,
    threshold: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s, b = check_update(y, expected, variance, beta, r0, alpha)
    rule = PrecisionRule(rho, floor, cap)
    made = _update_outputs(y)
    if y.numel():
        given = [t.contiguous() for t in (y, expected, variance, beta, r0)]
        addresses = [t.data_ptr() for t in (*given, *made)]
        _native.core().precision_update(addresses, b, s, rule.packed(), alpha, threshold)
    return made


def _gpu_update(
    y: Tensor,
    expected: Tensor,
    variance: Tensor,
    beta: Tensor,
    r0: Tensor,
    alpha: float,
    threshold: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_update(y, expected, variance, beta, r0, alpha)
    rule = PrecisionRule(rho, floor, cap)
    kernels = gpu_module("precision")
    made = _update_outputs(y)
    if y.numel():
        given = [t.contiguous() for t in (y, expected, variance, beta, r0)]
        with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
            kernels.update(*given, *made, alpha, threshold, rule)
    return made


def _fake_update(
    y: Tensor,
    expected: Tensor,
    variance: Tensor,
    beta: Tensor,
    r0: Tensor,
    alpha: float,
    threshold: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_update(y, expected, variance, beta, r0, alpha)
    return _update_outputs(y)


def check_filter(
    y: Tensor,
    drive: Tensor | None,
    model: Sequence[Tensor],
    belief: Sequence[Tensor],
    alpha: float,
) -> tuple[int, int, int, int]:
    """Refuse what does not fit; returns T, D, S and B."""
    if len(model) != 4 or len(belief) != 3:
        got = f"{len(model)} and {len(belief)}"
        what = "model [a, q, c, r0] and belief [mean, covariance, beta]"
        _check.refuse(_FILTER, what, got, "Pass all tensors of both.")
    a, q, c, r0 = model
    if y.dim() != 3 or a.dim() != 2 or not 1 <= a.shape[0] <= _STATES:
        got = f"y {list(y.shape)}, a {list(a.shape)}"
        _check.refuse(_FILTER, f"y [T, S, B] and a [D, D], D <= {_STATES}", got, "Reshape them.")
    if not alpha > 0:
        _check.refuse(_FILTER, "alpha > 0", alpha, "Use PrecisionRule().alpha.")
    (t, s, b), d = y.shape, a.shape[0]
    triangle = d * (d + 1) // 2
    wanted: list[tuple[str, Tensor, tuple[int, ...]]]
    wanted = [("y", y, (t, s, b)), ("a", a, (d, d)), ("q", q, (d, d)), ("c", c, (s, d))]
    wanted += [("r0", r0, (s,)), ("mean", belief[0], (d, b))]
    wanted += [("covariance", belief[1], (triangle, b)), ("beta", belief[2], (s, b))]
    if drive is not None:
        wanted.append(("drive", drive, (t, d, b)))
    _fit(_FILTER, wanted)
    return t, d, s, b


_Filtered = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _filter_outputs(y: Tensor, belief: Sequence[Tensor]) -> _Filtered:
    mean, covariance, beta = (t.clone(memory_format=torch.contiguous_format) for t in belief)
    means = torch.empty(len(y), *mean.shape, device=y.device)
    return mean, covariance, beta, means, torch.empty(y.shape, device=y.device)


def _cpu_filter(
    y: Tensor,
    drive: Tensor | None,
    model: Sequence[Tensor],
    belief: Sequence[Tensor],
    alpha: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
    sweeps: int = 2,
    learn: bool = True,
) -> _Filtered:
    t, d, s, b = check_filter(y, drive, model, belief, alpha)
    rule = PrecisionRule(rho, floor, cap, sweeps)
    made = _filter_outputs(y, belief)
    if y.numel():
        given = [v if v is None else v.contiguous() for v in (y, drive, *model)]
        addresses = [0 if v is None else v.data_ptr() for v in (*given, *made)]
        core = _native.core()
        core.precision_filter(*addresses, (b, t, d, s), rule.packed(), alpha, learn)
    return made


def _gpu_filter(
    y: Tensor,
    drive: Tensor | None,
    model: Sequence[Tensor],
    belief: Sequence[Tensor],
    alpha: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
    sweeps: int = 2,
    learn: bool = True,
) -> _Filtered:
    check_filter(y, drive, model, belief, alpha)
    rule = PrecisionRule(rho, floor, cap, sweeps)
    kernels = gpu_module("precision")
    made = _filter_outputs(y, belief)
    if y.numel():
        given = [v if v is None else v.contiguous() for v in (y, drive, *model)]
        with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
            kernels.run_filter(*given, *made, alpha, rule, learn)
    return made


def _fake_filter(
    y: Tensor,
    drive: Tensor | None,
    model: Sequence[Tensor],
    belief: Sequence[Tensor],
    alpha: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
    sweeps: int = 2,
    learn: bool = True,
) -> _Filtered:
    check_filter(y, drive, model, belief, alpha)
    return _filter_outputs(y, belief)


_UPDATE_OP = define(
    f"{_UPDATE}(Tensor y, Tensor expected, Tensor variance, Tensor beta, Tensor r0, float alpha, "
    f"float threshold, *, {_RULE}) -> (Tensor, Tensor, Tensor, Tensor)",
    *(_cpu_update, _fake_update, _gpu_update),
)
_FILTER_OP = define(
    f"{_FILTER}(Tensor y, Tensor? drive, Tensor[] model, Tensor[] belief, float alpha, *,"
    f" {_RULE}, int sweeps=2, bool learn=True) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    *(_cpu_filter, _fake_filter, _gpu_filter),
)


def precision_update(
    y: Tensor,
    expected: Tensor,
    variance: Tensor,
    beta: Tensor,
    r0: Tensor,
    alpha: float,
    threshold: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """beta', weight and residual [S, B] after readings y, and flags int32 [ceil(S / 32), B].

    beta' = rho beta + ((y - expected)^2 + variance) / 2; alpha: the shape before. Bit s % 32 of
    flags[s // 32] is set where sensor s is missing, or beta' / (alpha' r0) is above `threshold`
    (monitor.residual_threshold). Not differentiable. Raises UnsupportedShape, BadConfig.
    """
    options = {"rho": rho, "floor": floor, "cap": cap}
    made: tuple[Tensor, Tensor, Tensor, Tensor] = _UPDATE_OP(
        y, expected, variance, beta, r0, alpha, threshold, **options
    )
    return made


def precision_filter(
    y: Tensor,
    drive: Tensor | None,
    model: Sequence[Tensor],
    belief: Sequence[Tensor],
    alpha: float,
    *,
    rho: float = 0.95,
    floor: float = 1e-4,
    cap: float = 2.0,
    sweeps: int = 2,
    learn: bool = True,
) -> _Filtered:
    """T steps of B filters: mean, covariance and beta after them, means [T, D, B], residuals.

    model: a, q, c, r0; belief: mean, covariance, beta (above). drive: added to the predicted mean.
    alpha: the shape before the first step. On a CPU the same bits on every instruction set, batch
    and place; on a GPU within rounding. Not differentiable. Raises UnsupportedShape, BadConfig.
    """
    options = {"rho": rho, "floor": floor, "cap": cap, "sweeps": sweeps, "learn": learn}
    made: _Filtered = _FILTER_OP(y, drive, model, belief, alpha, **options)
    return made
