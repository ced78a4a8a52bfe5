# SPDX-License-Identifier: Apache-2.0
"""One case table per operator, read by the tests and by bench: shapes, reference, tolerance.

A module here is named after its operator and holds CASE: an OpCase for an operator of PyTorch, a
ProgramCase for one of programs. Import from anywhere as `cases.conv2d` with this folder's parent on
sys.path.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROOT = str(Path(__file__).resolve().parents[2])
if _ROOT not in sys.path:  # bench runs from a checkout that need not be installed
    sys.path.append(_ROOT)

EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class LinearShape:
    """x [*lead, k] times [n, k]; `density` is the share of quads that are not empty."""

    lead: tuple[int, ...]
    k: int
    n: int
    density: float = 1.0
    note: str = ""

    @property
    def terms(self) -> int:
        """Products in one output."""
        return self.k

    @property
    def weight(self) -> tuple[int, ...]:
        """PyTorch's weight shape."""
        return (self.n, self.k)

    @property
    def x(self) -> tuple[int, ...]:
        """Input shape."""
        return (*self.lead, self.k)

    @property
    def geometry(self) -> dict[str, Any]:
        """Arguments beside the tensors."""
        return {}

    @property
    def macs(self) -> int:
        """Dense multiply-adds."""
        return int(np.prod(self.lead)) * self.k * self.n

    def __str__(self) -> str:
        lead = "x".join(map(str, self.lead))
        return f"{lead or 'vector'}.k{self.k}.n{self.n}" + _percent(self.density)


@dataclass(frozen=True)
class ConvShape:
    """x [n, c, *size] with o filters; `density` is the share of quads that are not empty."""

    n: int
    c: int
    size: tuple[int, int]
    o: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    density: float = 1.0
    note: str = ""

    @property
    def terms(self) -> int:
        """Products in one output."""
        return self.c // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def weight(self) -> tuple[int, ...]:
        """PyTorch's weight shape."""
        return (self.o, self.c // self.groups, *self.kernel)

    @property
    def x(self) -> tuple[int, ...]:
        """Input shape."""
        return (self.n, self.c, *self.size)

    @property
    def geometry(self) -> dict[str, Any]:
        """Arguments beside the tensors."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def out(self) -> tuple[int, int]:
        """Output image."""
        h, w = (
            (self.size[a] + 2 * self.padding[a] - self.dilation[a] * (self.kernel[a] - 1) - 1)
            // self.stride[a]
            + 1
            for a in range(2)
        )
        return h, w

    @property
    def macs(self) -> int:
        """Dense multiply-adds."""
        return self.n * self.o * self.out[0] * self.out[1] * self.terms

    def __str__(self) -> str:
        parts = [f"n{self.n}c{self.c}o{self.o}", _by(self.size), "k" + _by(self.kernel)]
        for letter, value, default in (
            ("s", self.stride, 1),
            ("p", self.padding, 0),
            ("d", self.dilation, 1),
        ):
            if value != (default, default):
                parts.append(letter + _by(value))
        if self.groups > 1:
            parts.append(f"g{self.groups}")
        return ".".join(parts) + _percent(self.density)


@dataclass(frozen=True)
class PoolShape:
    """A window sliding over x [n, c, *size]."""

    n: int
    c: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f".{key}={value}" for key, value in self.options.items())
        window = f"k{_by(self.kernel)}.s{_by(self.stride)}.p{_by(self.padding)}"
        return f"n{self.n}c{self.c}.{_by(self.size)}.{window}{options}"


@dataclass(frozen=True)
class OpCase:
    """What a test or a benchmark must know about one operator."""

    op: str
    reference: Callable[..., Any]
    shapes: tuple[Any, ...]
    bench: tuple[tuple[str, Any], ...] = ()
    # Integer results are equal bit for bit on every ISA; False: float results, held to float_bound.
    integer_exact: bool = True


@dataclass(frozen=True)
class ProgramCase:
    """What the tests of programs need of an operator; all of them then run it: files, random
    attributes, the engine on every instruction set against NumPy, NumPy against PyTorch.

    channels    of the images of `build`
    build       appends nodes to a programs.Builder, the last of which makes floats
    by_torch    (attributes, weight, operands as float tensors) to the value, by PyTorch's operators
    module      (attributes, weight) to the layer of PyTorch that is compiled to it
    draw        (random_graphs.Draw, value) to the value that it makes of it in a random network
    wrong       attributes of its own, with values that must be refused
    """

    op: str
    channels: int
    build: Callable[[Any], object]
    by_torch: Callable[[dict[str, Any], Any, list[Any]], Any]
    module: Callable[[dict[str, Any], Any], Any]
    draw: Callable[[Any, Any], Any]
    wrong: dict[str, list[Any]] = field(default_factory=dict)


@cache
def program_cases() -> dict[str, ProgramCase]:
    """Those of all modules here, by operator."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        case = getattr(importlib.import_module(f"{__name__}.{info.name}"), "CASE", None)
        if isinstance(case, ProgramCase):
            found[case.op] = case
    return found


@dataclass(frozen=True)
class Operands:
    """Random operands of a linear layer or a convolution, as NumPy arrays."""

    q: NDArray[np.uint8]
    x_scale: float
    x_zero_point: int
    x: NDArray[np.float32]  # float input of the same shape
    w: NDArray[np.int8]  # PyTorch's layout
    codes: NDArray[Any]  # the operators' layout: uint8 codes or int8
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def operands(
    shape: LinearShape | ConvShape, weights: str = "ternary", seed: int = 0, extreme: bool = False
) -> Operands:
    """Draw operands; `extreme` draws only the smallest and largest values, where sums overflow."""
    from ternary_ops.layout import codes as layout

    rng = np.random.default_rng(seed)
    w = _integers(rng, shape.weight, weights, extreme)
    w *= _kept(rng, shape.weight, shape.density)
    q = rng.integers(0, 256, shape.x).astype(np.uint8)
    if extreme:
        q = np.where(rng.random(shape.x) < 0.9, 255, 0).astype(np.uint8)
    last = layout.channels_last(w) if w.ndim == 4 else w
    out = shape.weight[0]
    return Operands(
        q=q,
        x_scale=float(np.float32(rng.uniform(0.01, 0.1))),
        x_zero_point=0 if extreme else int(rng.integers(0, 256)),
        x=rng.standard_normal(shape.x).astype(np.float32),
        w=w,
        codes=layout.pack_codes(last) if weights == "ternary" else layout.pad_int8(last),
        scale=rng.uniform(0.01, 1.0, out).astype(np.float32),
        bias=rng.standard_normal(out).astype(np.float32),
    )


def float_bound(terms: int) -> float:
    """Largest error of a float32 result, in units of eps * (scale * sum |w||x| + |bias|).

    A term passes n roundings at most (its product, n - 1 additions), then the scale and the bias,
    each eps/2. Roundings are as good as random, so that a long sum gathers their square root: more
    than 4 * sqrt(n) has probability 2 * exp(-8) (Higham and Mary 2019, theorem 2.4).
    """
    return (min(terms, 4 * math.sqrt(terms)) + 2) / 2


def normalized_error(
    shape: LinearShape | ConvShape, o: Operands, y: NDArray[Any], w: NDArray[Any]
) -> float:
    """Largest |y - reference| in units of eps * (scale * sum |w||x| + |bias|)."""
    from ternary_ops import reference

    function = reference.conv2d if isinstance(shape, ConvShape) else reference.linear
    want = function(o.x, w, o.scale, o.bias, **shape.geometry)
    size = function(
        np.abs(o.x), np.abs(w.astype(np.float64)), o.scale, np.abs(o.bias), **shape.geometry
    )
    if y.shape != want.shape:
        raise AssertionError(f"shape {y.shape}, expected {want.shape}")
    return float(np.max(np.abs(y - want) / (EPS * size), initial=0.0))


def _integers(
    rng: np.random.Generator, shape: tuple[int, ...], weights: str, extreme: bool
) -> NDArray[np.int8]:
    limits = (-1, 1) if weights == "ternary" else (-128, 127)
    if extreme:  # mostly one sign, so that nothing cancels
        return np.where(rng.random(shape) < 0.9, limits[1], limits[0]).astype(np.int8)
    return rng.integers(limits[0], limits[1] + 1, shape).astype(np.int8)


def _kept(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> NDArray[np.int8]:
    """1 for the weights of a share `density` of the quads, 0 for the others."""
    quads = (shape[0], -(-shape[1] // 4), *shape[2:])
    mask = np.repeat(rng.random(quads) < density, 4, axis=1)
    return mask[:, : shape[1]].astype(np.int8)


def _by(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _percent(density: float) -> str:
    return "" if density == 1.0 else f".{density:.0%}"
