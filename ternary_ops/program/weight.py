# SPDX-License-Identifier: Apache-2.0
"""The weights of a program: what one filter bank holds, checked. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import FormatError, need
from ternary_ops.layout.codes import TernaryCodes, to_array
from ternary_ops.program import attributes

Array: TypeAlias = NDArray[Any]
Params: TypeAlias = tuple[float, int]

MAX_NAME = 1024
_VECTORS = ("scale", "bias", "slope")
_DTYPE = {"ternary": np.int8, "int8": np.int8, "float": np.float32}
_LARGEST_CODE = {"ternary": 1, "int8": 127}
_SURE_SIZE = (2**31 - 1) // 255  # largest ternary filter that cannot overflow int32
_DO = attributes.REWRITE


class Planned(NamedTuple):
    """Zeros that a plan asks for: the share `zeros` of units of the pattern called `name`, rows
    output x cols input channels at one tap (cols 0: whole filters).
    """

    name: str
    rows: int
    cols: int
    zeros: float


@dataclass(frozen=True, eq=False)
class Weight:
    """One filter bank: values [O, R, S, I] (linear [O, 1, 1, I]), scale and bias [O].

    slope: [O] or [1], of a convolution: negative sums are multiplied by it at the end (PReLU).
    kind ternary: int8 in {-1, 0, 1}, or their codes; int8: -127..127; float: float32 and no scale.
    Integer weights may meet float input (weight-only). The arrays are read-only views of those
    given. planned: the zeros that the plan asked for; for tables, not stored in files.
    """

    name: str
    kind: str
    values: Array | TernaryCodes
    scale: Array | None = None
    bias: Array | None = None
    slope: Array | None = None
    planned: Planned | None = None

    def __post_init__(self) -> None:
        """Check everything; raises FormatError."""
        where = f"weight {self.name!r}" if type(self.name) is str else "a weight"
        if type(self.name) is not str or len(self.name) > MAX_NAME:
            raise FormatError(need(f"a name of at most {MAX_NAME} characters", "another", _DO))
        if type(self.kind) is not str or self.kind not in _DTYPE:
            raise FormatError(need(f"{where}: kind as one of {list(_DTYPE)}", self.kind, _DO))
        self._check_values(where)
        if (self.scale is None) != (self.kind == "float"):
            raise FormatError(need(f"{where}: a scale of integers", f"kind {self.kind}", _DO))
        for label in _VECTORS:
            vector = getattr(self, label)
            if vector is None:
                continue
            _check_array(f"{where}: {label}", vector, np.float32, 1)
            if len(vector) != self.shape[0] and not (label == "slope" and len(vector) == 1):
                raise FormatError(
                    need(f"{where}: {label} of {self.shape[0]} values", len(vector), _DO)
                )
        for label in ("values", *_VECTORS):
            if isinstance(getattr(self, label), np.ndarray):
                frozen = np.ascontiguousarray(getattr(self, label)).view()
                frozen.flags.writeable = False
                object.__setattr__(self, label, frozen)

    def _check_values(self, where: str) -> None:
        if not isinstance(self.values, TernaryCodes):
            _check_array(f"{where}: values", self.values, _DTYPE[self.kind], 4)
            _check_codes(where, self.kind, self.values)
            return
        if self.kind != "ternary":
            raise FormatError(need(f"{where}: ternary codes", f"kind {self.kind}", _DO))
        _check_array(f"{where}: codes", self.values.codes, np.uint8, 4)
        _check_sizes(f"{where}: values", self.values.shape)
        if math.prod(self.values.shape[1:]) > _SURE_SIZE:
            _check_codes(where, self.kind, self.array)

    @property
    def array(self) -> Array:
        """The values, read-only; where only their codes are kept, unpacked at every call."""
        array: Array = to_array(self.values)
        array.flags.writeable = False
        return array

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[O, R, S, I]."""
        o, r, s, i = self.values.shape
        return o, r, s, i

    @cached_property
    def density(self) -> float:
        """Fraction of nonzero quads (4 consecutive input channels of one tap)."""
        if isinstance(self.values, TernaryCodes):
            return float(np.mean(self.values.codes != 0))
        starts = np.arange(0, self.shape[3], 4)
        return float(np.mean(np.add.reduceat(self.values != 0, starts, axis=3, dtype=np.int8) > 0))

    @cached_property
    def reached(self) -> float | None:
        """Fraction of the planned pattern's units that are zero; None where nothing is planned."""
        if self.planned is None:
            return None
        used, rows, cols = self.array != 0, self.planned.rows, self.planned.cols
        if cols == 0:
            return 1 - float(used.any(axis=(1, 2, 3)).mean())
        used = np.pad(used, ((0, -len(used) % rows), (0, 0), (0, 0), (0, -used.shape[3] % cols)))
        o, r, s, i = used.shape
        units = used.reshape(o // rows, rows, r, s, i // cols, cols).any(axis=(1, 5))
        return 1 - float(units.mean())

    def effective_scale(self, x: Params | None) -> NDArray[np.float32]:
        """Factor of the accumulator, [O]: f32(scale * s_x); float input has no s_x."""
        if self.scale is None:
            return np.ones(self.shape[0], np.float32)
        with np.errstate(over="ignore"):
            scaled: NDArray[np.float32] = self.scale * np.float32(1 if x is None else x[0])
        return scaled


def _check_array(where: str, array: Any, dtype: Any, rank: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != rank:
        known = isinstance(array, np.ndarray)
        got = f"{array.dtype} {list(array.shape)}" if known else type(array).__name__
        raise FormatError(need(f"{where}: {np.dtype(dtype)} of {rank} axes", got, _DO))
    _check_sizes(where, array.shape)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise FormatError(need(f"{where}: finite numbers", "NaN or infinity", _DO))


def _check_sizes(where: str, shape: tuple[int, ...]) -> None:
    if min(shape) < 1 or max(shape) > attributes.MAX_CHANNELS:
        raise FormatError(need(f"{where}: axes of 1..{attributes.MAX_CHANNELS}", list(shape), _DO))


def _check_codes(where: str, kind: str, array: Array) -> None:
    largest = _LARGEST_CODE.get(kind)
    if largest is None:
        return
    if array.min() < -largest or array.max() > largest:
        raise FormatError(need(f"{where}: {kind} values in -{largest}..{largest}", "others", _DO))
    check_sums(where, array, largest)


def check_sums(where: str, array: Array, largest: int) -> None:
    """Refuse filters [O, ...] of values up to `largest` whose sums could overflow int32."""
    # |q - zp| <= 255
    if 255 * largest * array[0].size <= 2**31 - 1:
        return
    heaviest = int(np.abs(array).sum(axis=(1, 2, 3), dtype=np.int64).max())
    if 255 * heaviest > 2**31 - 1:
        raise FormatError(
            need(f"{where}: filters whose |w| sum to {(2**31 - 1) // 255}", heaviest, _DO)
        )
