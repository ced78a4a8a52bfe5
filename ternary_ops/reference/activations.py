# SPDX-License-Identifier: Apache-2.0
"""The functions of one number that a program knows, in float64, and their tables over u8 codes.

A function of a u8 value is a table of 256 entries, made here and nowhere else: the reference and
the native engine read the same numbers, so their results are the same bits. Floats go through the
engine's own float32 functions, which are held to these within a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Doubles: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Function:
    """Activation function: its number of parameters, and its value for float64 x."""

    parameters: int
    value: Callable[..., Any]


def _sigmoid(x: Doubles) -> Doubles:
    small = np.exp(-np.abs(x))  # never overflows
    out: Doubles = np.where(x >= 0, 1.0, small) / (1 + small)
    return out


def sigmoid32(x: Doubles) -> NDArray[np.float32]:
    """The sigmoid step by step as the kernels compute it in float32 (csrc/kernels/sigmoid.inl), for
    what is rounded to codes afterwards.
    """
    x = np.asarray(x, np.float32)
    small = exp32(np.maximum(-np.abs(x), np.float32(-86)))
    above = np.where(np.signbit(x), np.float32(0), np.float32(1))
    out: NDArray[np.float32] = np.maximum(above, small) / (np.float32(1) + small)
    return out


def exp32(x: Doubles) -> NDArray[np.float32]:
    """e^x for float32 x in [-86, 0], step by step as the kernels compute it."""
    steps = np.rint(x * np.float32(1.44269504))
    rest = fused32(steps, np.float32(-0.693359375), x)
    rest = fused32(steps, np.float32(2.12194440e-4), rest)
    power = np.full_like(rest, np.float32(1 / 5040))
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        power = fused32(power, rest, np.float32(term))
    return np.ldexp(power, np.nan_to_num(steps).astype(np.int32))


def fused32(a: Doubles, b: Any, c: Any) -> NDArray[np.float32]:
    """a * b + c rounded once: the product of two float32 is exact in float64."""
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    return (product + np.asarray(c, np.float64)).astype(np.float32)


def _softplus(x: Doubles, beta: float, threshold: float) -> Doubles:
    scaled = beta * x
    return np.where(scaled > threshold, x, np.logaddexp(0, scaled) / beta)


def _elu(x: Doubles, alpha: float) -> Doubles:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _hardsigmoid(x: Doubles) -> Doubles:
    out: Doubles = np.clip(x + 3, 0, 6) / 6
    return out


def _gelu_tanh(x: Doubles) -> Doubles:
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    out: Doubles = 0.5 * x * (1 + np.tanh(inner))
    return out


def _gelu(x: Doubles) -> Doubles:
    out: Doubles = 0.5 * x * (1 + _erf(x / np.sqrt(2)))
    return out


def _erf(x: Doubles) -> Doubles:
    """By its Taylor series near 0 and the continued fraction of erfc elsewhere, to 1e-13
    (Abramowitz and Stegun, 7.1.6 and 7.1.14).
    """
    near, far = np.minimum(np.abs(x), 2.0), np.clip(np.abs(x), 2.0, 30.0)
    term = 2 / np.sqrt(np.pi) * near * np.exp(-(near**2))
    total = term.copy()
    for n in range(1, 60):
        term = term * 2 * near**2 / (2 * n + 1)
        total += term
    tail = np.zeros_like(far)
    for k in range(120, 0, -1):
        tail = (k / 2) / (far + tail)
    erfc = np.exp(-(far**2)) / (np.sqrt(np.pi) * (far + tail))
    erf: Doubles = np.sign(x) * np.where(np.abs(x) < 2.0, total, 1 - erfc)
    return erf


def _celu(x: Doubles, alpha: float) -> Doubles:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


# Of self-normalizing networks (Klambauer et al. 2017), so that activations keep mean 0 and
# variance 1.
_SELU = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _shrink(x: Doubles, threshold: float) -> Doubles:
    out: Doubles = np.sign(x) * np.maximum(np.abs(x) - threshold, 0)
    return out


FUNCTIONS: dict[str, Function] = {
    "affine": Function(2, lambda x, factor, offset: x * factor + offset),
    "leaky_relu": Function(1, lambda x, slope: np.where(x >= 0, x, x * slope)),
    "hardswish": Function(0, lambda x: x * _hardsigmoid(x)),
    "hardsigmoid": Function(0, _hardsigmoid),
    "affine_hardsigmoid": Function(
        2, lambda x, factor, offset: np.clip(x * factor + offset, 0.0, 1.0)
    ),
    "silu": Function(0, lambda x: x * _sigmoid(x)),
    "sigmoid": Function(0, _sigmoid),
    "tanh": Function(0, np.tanh),
    "gelu": Function(0, _gelu),
    "gelu_tanh": Function(0, _gelu_tanh),
    "elu": Function(1, _elu),
    "softplus": Function(2, _softplus),
    "mish": Function(0, lambda x: x * np.tanh(np.logaddexp(0, x))),
    "exp": Function(0, np.exp),
    "abs": Function(0, np.abs),
    "square": Function(0, np.square),
    "sqrt": Function(0, np.sqrt),
    "rsqrt": Function(0, lambda x: 1 / np.sqrt(x)),
    "reciprocal": Function(0, lambda x: 1 / x),
    "pow": Function(1, np.power),
    "log": Function(0, np.log),
    "erf": Function(0, _erf),
    "sin": Function(0, np.sin),
    "cos": Function(0, np.cos),
    "celu": Function(1, _celu),
    "selu": Function(0, lambda x: _SELU[0] * _elu(x, _SELU[1])),
    "quick_gelu": Function(0, lambda x: x * _sigmoid(1.702 * x)),
    "logsigmoid": Function(0, lambda x: -np.logaddexp(0, -x)),
    "hard_mish": Function(0, lambda x: 0.5 * x * np.clip(x + 2, 0, 2)),
    "softsign": Function(0, lambda x: x / (1 + np.abs(x))),
    "tanhshrink": Function(0, lambda x: x - np.tanh(x)),
    "softshrink": Function(1, _shrink),
    "hardshrink": Function(1, lambda x, t: np.where(np.abs(x) > t, x, 0.0)),
    "threshold": Function(2, lambda x, t, v: np.where(x > t, x, v)),
}


def evaluate(fn: str, params: Sequence[float], x: NDArray[Any]) -> NDArray[np.float32]:
    """fn of float32 x: computed in float64, rounded once."""
    with np.errstate(all="ignore"):  # an infinity or NaN is the value there
        exact: Doubles = FUNCTIONS[fn].value(np.asarray(x, np.float64), *params)
        out: NDArray[np.float32] = exact.astype(np.float32)
    return out


def over_codes(
    fn: str, params: Sequence[float], scale: float | np.float32, zp: int
) -> NDArray[np.float32]:
    """Table of fn over the real values of the 256 codes of a u8 value."""
    codes = np.arange(256, dtype=np.int64) - int(zp)
    return evaluate(fn, params, codes.astype(np.float32) * np.float32(scale))
