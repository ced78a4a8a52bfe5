# SPDX-License-Identifier: Apache-2.0
"""Attributes of a program's operators: the kinds of values they have, with ranges, and the limits.

A check takes the name of an attribute and what a node says, and returns the value in its normal
form (a tuple for a list, a float32 for a number) or raises FormatError. `says` describes in a few
words what it accepts, for error messages and for the table in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ternary_ops.errors import FormatError, need

REWRITE = "The program is damaged or was not written by this package; compile and save it again."

MAX_CHANNELS = 2**24  # a fully connected layer over a flattened image is the widest thing there is
MAX_EXTENT = 4096  # of a window, a stride, a padding: anything larger is a mistake or an attack
MAX_WEIGHTS = 2**20
MAX_PARTS = 1024  # of a concatenation
# Scales outside have no normal float32 reciprocal.
MIN_SCALE, MAX_SCALE = float(np.finfo(np.float32).tiny), float(2.0**125)
MAX_FLOAT32 = float(np.finfo(np.float32).max)

REQUIRED = object()


@dataclass(frozen=True)
class Check:
    """Check of an attribute: `says` states it in words, `read` applies it to a name and a value."""

    says: str
    read: Callable[[str, Any], Any]

    def __call__(self, where: str, value: Any) -> Any:
        """The value in its normal form; raises FormatError."""
        return self.read(where, value)


class Attribute(NamedTuple):
    """One attribute of an operator. `like` names another one whose value is the default."""

    check: Check
    default: Any = REQUIRED
    like: str = ""


def integer(where: str, value: Any, least: int, most: int) -> int:
    """An int (not a bool) in [least, most]; raises FormatError."""
    if type(value) is not int or not least <= value <= most:
        raise FormatError(need(f"{where} as an integer in {least}..{most}", short(value), REWRITE))
    return value


def number(where: str, value: Any) -> float:
    """A finite number, rounded to float32; raises FormatError."""
    if type(value) not in (int, float) or not abs(value) <= MAX_FLOAT32:
        raise FormatError(need(f"{where} as a finite float32", short(value), REWRITE))
    return float(np.float32(value))


def items(where: str, value: Any, count: int) -> list[Any]:
    """A list or tuple of `count` items; raises FormatError."""
    if type(value) not in (list, tuple) or len(value) != count:
        raise FormatError(need(f"{where} as a list of {count}", short(value), REWRITE))
    return list(value)


def _brief(value: int) -> str:
    power = (value + 1).bit_length() - 1
    if value <= MAX_EXTENT or value not in (1 << power, (1 << power) - 1):
        return str(value)
    return f"2^{power}" if value == 1 << power else f"2^{power} - 1"


def whole(least: int, most: int, says: str = "") -> Check:
    """An integer in least..most."""
    says = says or f"{least}..{_brief(most)}"
    return Check(says, lambda where, v: integer(where, v, least, most))


def pair(least: int, most: int = MAX_EXTENT) -> Check:
    """Two integers, of rows and of columns."""

    def read(where: str, value: Any) -> tuple[int, int]:
        a, b = (integer(where, v, least, most) for v in items(where, value, 2))
        return a, b

    return Check(f"2 of {least}..{most}", read)


def integers(least: int, most: int, count: int) -> Check:
    """At most `count` integers in least..most."""

    def read(where: str, value: Any) -> tuple[int, ...]:
        length = len(value) if type(value) in (list, tuple) else 0
        if length > count:
            raise FormatError(need(f"{where} as at most {count} integers", length, REWRITE))
        return tuple(integer(where, v, least, most) for v in items(where, value, length))

    return Check(f"at most {count} of {least}..{most}", read)


def of_each_axis(least: int, most: int) -> Check:
    """Integers of rows and of columns, or one of tokens, which may stand alone."""

    def read(where: str, value: Any) -> tuple[int, ...]:
        given = [value] if type(value) is int else value
        count = 1 if type(given) in (list, tuple) and len(given) == 1 else 2
        return tuple(integer(where, v, least, most) for v in items(where, given, count))

    return Check(f"2 of {least}..{_brief(most)}, of tokens 1", read)


def optional(check: Check) -> Check:
    """None, or what the check accepts."""
    return Check(f"{check.says} or none", lambda where, v: None if v is None else check(where, v))


def one_of(*names: str) -> Check:
    """One of these strings."""

    def read(where: str, value: Any) -> str:
        if type(value) is not str or value not in names:
            raise FormatError(need(f"{where} as one of {', '.join(names)}", short(value), REWRITE))
        return value

    return Check(", ".join(names), read)


def among(*values: int) -> Check:
    """One of these integers."""
    says = f"{', '.join(map(str, values[:-1]))} or {values[-1]}"

    def read(where: str, value: Any) -> int:
        if type(value) is not int or value not in values:
            raise FormatError(need(f"{where} as {says}", short(value), REWRITE))
        return value

    return Check(says, read)


def distinct(*values: int) -> Check:
    """A list of one or more of these integers, each at most once; in order."""

    def read(where: str, value: Any) -> tuple[int, ...]:
        if type(value) not in (list, tuple) or not 1 <= len(value) <= len(values):
            wanted = f"{where} as a list of 1 to {len(values)} integers"
            raise FormatError(need(wanted, short(value), REWRITE))
        checked = [among(*values)(where, v) for v in value]
        if checked != sorted(set(checked)):
            raise FormatError(need(f"{where} in order, each once", list(value), REWRITE))
        return tuple(checked)

    return Check(f"some of {', '.join(map(str, values))}", read)


def _read_flag(where: str, value: Any) -> bool:
    if type(value) is not bool:
        raise FormatError(need(f"{where} as true or false", short(value), REWRITE))
    return value


def _read_affine(where: str, value: Any) -> tuple[float, int]:
    if value is None:
        raise FormatError(need(f"{where} as [scale, zero point]", "null", REWRITE))
    scale, zp = items(where, value, 2)
    scale = number(where, scale)
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise FormatError(
            need(f"{where} with a scale in [{MIN_SCALE:g}, {MAX_SCALE:g}]", scale, REWRITE)
        )
    return scale, integer(where, zp, 0, 255)


def _read_bounds(where: str, value: Any) -> tuple[float | None, float | None]:
    lo, hi = (None if v is None else number(where, v) for v in items(where, value, 2))
    if lo is not None and hi is not None and lo > hi:
        raise FormatError(need(f"{where} with lo <= hi", f"[{lo}, {hi}]", REWRITE))
    return lo, hi


def _read_numbers(where: str, value: Any) -> tuple[float, ...]:
    if type(value) not in (list, tuple) or len(value) > 8:
        raise FormatError(need(f"{where} as a list of at most 8 numbers", short(value), REWRITE))
    return tuple(number(where, v) for v in value)


def _read_positive(where: str, value: Any) -> float:
    found = number(where, value)
    if not 2.0**-60 <= found <= 2.0**20:
        raise FormatError(need(f"{where} in 2**-60 .. 2**20", found, REWRITE))
    return found


def _read_zoom(where: str, value: Any) -> tuple[float, float]:
    a, b = (_read_positive(where, v) for v in items(where, value, 2))
    return a, b


FLAG = Check("true or false", _read_flag)
SCALE_AND_ZERO_POINT = Check("scale and zero point", _read_affine)
BOUNDS = Check("lo and hi, each or none", _read_bounds)
NUMBER = Check("a number", number)
NUMBERS = Check("at most 8 numbers", _read_numbers)
POSITIVE = Check("2^-60..2^20", _read_positive)
ZOOM = Check("2 of 2^-60..2^20", _read_zoom)

# Attributes that several operators have.
WEIGHT = Attribute(whole(0, MAX_WEIGHTS, "index of a weight"))
CLAMP = Attribute(BOUNDS, (None, None))  # of what is computed, before it is rounded
OUTPUT = Attribute(optional(SCALE_AND_ZERO_POINT), None)  # of a uint8 result; None: floats


def short(value: Any) -> str:
    """A repr that stays short; printing an enormous int would itself fail."""
    if type(value) is int and value.bit_length() > 128:
        return "an enormous integer"
    if type(value) not in (int, float, bool, str):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
