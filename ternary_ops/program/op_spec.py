# SPDX-License-Identifier: Apache-2.0
"""What each node of a program may say: its attributes, their types, ranges and defaults.

This table is the only place that knows them: nodes are checked against it when they are made, files
when they are read, and defaults are left out of a file by comparing with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ternary_ops.errors import FormatError, need
from ternary_ops.reference.activations import FUNCTIONS

REWRITE = "The program is damaged or was not written by this package; compile and save it again."

MAX_CHANNELS = 2**24  # a fully connected layer over a flattened image is the widest thing there is
MAX_EXTENT = 4096  # of a window, a stride, a padding: anything larger is a mistake or an attack
MAX_WEIGHTS = 2**20
MAX_PARTS = 1024  # of a concatenation
# Scales outside have no normal float32 reciprocal.
MIN_SCALE, MAX_SCALE = float(np.finfo(np.float32).tiny), float(2.0**125)
MAX_FLOAT32 = float(np.finfo(np.float32).max)

Check = Callable[[str, Any], Any]
REQUIRED = object()


@dataclass(frozen=True)
class OpSpec:
    """Least and most inputs, and (check, default) of every attribute."""

    inputs: tuple[int, int]
    attrs: dict[str, tuple[Check, Any]]


def complete(op: str, inputs: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Check `attrs` of a node and fill in defaults; raises FormatError."""
    spec = OPS.get(op)
    if spec is None:
        raise FormatError(need(f"an op is one of {', '.join(OPS)}", repr(op), REWRITE))
    least, most = spec.inputs
    if not least <= inputs <= most:
        count = f"{least}" if least == most else f"{least} to {most}"
        raise FormatError(need(f"{op} takes {count} inputs", inputs, REWRITE))
    unknown = sorted(set(attrs) - set(spec.attrs))
    if unknown:
        raise FormatError(need(f"{op} knows {', '.join(spec.attrs)}", unknown[0], REWRITE))
    full: dict[str, Any] = {}
    for name, (check, default) in spec.attrs.items():
        if name in attrs:
            full[name] = check(f"{op}.{name}", attrs[name])
        elif default is REQUIRED:
            raise FormatError(need(f"{op} needs {name}", "nothing", REWRITE))
        else:
            full[name] = default
    stride = full.get("stride", 0)
    if stride is None:  # a pool's stride is its kernel unless it says otherwise
        full["stride"] = full["kernel"]
    return full


def without_defaults(op: str, attrs: dict[str, Any]) -> dict[str, Any]:
    """Undo `complete`: only what a file must say."""
    kept = {n: attrs[n] for n, (_, default) in OPS[op].attrs.items() if attrs[n] != default}
    if "kernel" in kept and kept.get("stride") == kept["kernel"]:
        del kept["stride"]
    return kept


def integer(where: str, value: Any, least: int, most: int) -> int:
    """An int (not a bool) in [least, most]; raises FormatError."""
    if type(value) is not int or not least <= value <= most:
        raise FormatError(need(f"{where} is an integer in {least}..{most}", _short(value), REWRITE))
    return value


def number(where: str, value: Any) -> float:
    """A finite number, rounded to float32; raises FormatError."""
    if type(value) not in (int, float) or not abs(value) <= MAX_FLOAT32:
        raise FormatError(need(f"{where} is a finite float32", _short(value), REWRITE))
    return float(np.float32(value))


def items(where: str, value: Any, count: int) -> list[Any]:
    """A list or tuple of `count` items; raises FormatError."""
    if type(value) not in (list, tuple) or len(value) != count:
        raise FormatError(need(f"{where} is a list of {count}", _short(value), REWRITE))
    return list(value)


def _count(most: int, least: int = 1) -> Check:
    return lambda where, value: integer(where, value, least, most)


def _pair(least: int) -> Check:
    def check(where: str, value: Any) -> tuple[int, int]:
        a, b = (integer(where, v, least, MAX_EXTENT) for v in items(where, value, 2))
        return a, b

    return check


def _flag(where: str, value: Any) -> bool:
    if type(value) is not bool:
        raise FormatError(need(f"{where} is true or false", _short(value), REWRITE))
    return value


def _affine(where: str, value: Any) -> tuple[float, int] | None:
    if value is None:
        return None
    scale, zp = items(where, value, 2)
    scale = number(where, scale)
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise FormatError(
            need(f"{where}: a scale lies in [{MIN_SCALE:g}, {MAX_SCALE:g}]", scale, REWRITE)
        )
    return scale, integer(where, zp, 0, 255)


def _needed_affine(where: str, value: Any) -> tuple[float, int]:
    params = _affine(where, value)
    if params is None:
        raise FormatError(need(f"{where} is [scale, zero point]", "null", REWRITE))
    return params


def _bounds(where: str, value: Any) -> tuple[float | None, float | None]:
    lo, hi = (None if v is None else number(where, v) for v in items(where, value, 2))
    if lo is not None and hi is not None and lo > hi:
        raise FormatError(need(f"{where} needs lo <= hi", f"[{lo}, {hi}]", REWRITE))
    return lo, hi


def _optional(check: Check) -> Check:
    return lambda where, value: None if value is None else check(where, value)


def _rank(where: str, value: Any) -> int:
    if type(value) is not int or value not in (2, 4):
        raise FormatError(need(f"{where} is 2 or 4", _short(value), REWRITE))
    return value


def _one_of(*names: str) -> Check:
    def check(where: str, value: Any) -> str:
        if type(value) is not str or value not in names:
            raise FormatError(need(f"{where} is one of {', '.join(names)}", _short(value), REWRITE))
        return value

    return check


def _numbers(where: str, value: Any) -> tuple[float, ...]:
    if type(value) not in (list, tuple) or len(value) > 8:
        raise FormatError(need(f"{where} is a list of at most 8 numbers", _short(value), REWRITE))
    return tuple(number(where, v) for v in value)


def _positive(where: str, value: Any) -> float:
    found = number(where, value)
    if not 2.0**-60 <= found <= 2.0**20:
        raise FormatError(need(f"{where} lies in 2**-60 .. 2**20", found, REWRITE))
    return found


def _zoom(where: str, value: Any) -> tuple[float, float]:
    a, b = (_positive(where, v) for v in items(where, value, 2))
    return a, b


def _short(value: Any) -> str:
    """A repr that stays short; printing an enormous int would itself fail."""
    if type(value) is int and value.bit_length() > 128:
        return "an enormous integer"
    if type(value) not in (int, float, bool, str):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NO_CLAMP = (None, None)
_WEIGHT = (_count(MAX_WEIGHTS, 0), REQUIRED)
_CLAMP = (_bounds, _NO_CLAMP)
_Y = (_affine, None)
_ONES, _ZEROS = (1, 1), (0, 0)

OPS: dict[str, OpSpec] = {
    "input": OpSpec((0, 0), {"c": (_count(MAX_CHANNELS), REQUIRED), "rank": (_rank, 4)}),
    "quantize": OpSpec((1, 1), {"y": (_needed_affine, REQUIRED), "fine": (_flag, False)}),
    "dequantize": OpSpec((1, 1), {}),
    "conv2d": OpSpec(
        (1, 3),
        {
            "w": _WEIGHT,
            "stride": (_pair(1), _ONES),
            "padding": (_pair(0), _ZEROS),
            "dilation": (_pair(1), _ONES),
            "groups": (_count(MAX_CHANNELS), 1),
            "gate": (_flag, False),
            "clamp": _CLAMP,
            "y": _Y,
        },
    ),
    "linear": OpSpec((1, 2), {"w": _WEIGHT, "clamp": _CLAMP, "y": _Y}),
    "max_pool2d": OpSpec(
        (1, 1),
        {
            "kernel": (_pair(1), REQUIRED),
            "stride": (_optional(_pair(1)), None),
            "padding": (_pair(0), _ZEROS),
            "dilation": (_pair(1), _ONES),
            "ceil": (_flag, False),
        },
    ),
    "avg_pool2d": OpSpec(
        (1, 1),
        {
            "kernel": (_pair(1), REQUIRED),
            "stride": (_optional(_pair(1)), None),
            "padding": (_pair(0), _ZEROS),
            "ceil": (_flag, False),
            "include_pad": (_flag, True),
            "divisor": (_optional(_count(2**31 - 1)), None),
            "y": _Y,
        },
    ),
    "adaptive_avg_pool2d": OpSpec((1, 1), {"size": (_pair(1), REQUIRED), "y": _Y}),
    "add": OpSpec((2, 2), {"clamp": _CLAMP, "y": _Y}),
    "clamp": OpSpec((1, 1), {"clamp": (_bounds, REQUIRED), "y": _Y}),
    "flatten": OpSpec((1, 1), {}),
    "activation": OpSpec(
        (1, 1), {"fn": (_one_of(*FUNCTIONS), REQUIRED), "params": (_numbers, ()), "y": _Y}
    ),
    "mul": OpSpec((2, 2), {"clamp": _CLAMP, "y": _Y}),
    "concat": OpSpec((2, MAX_PARTS), {"y": _Y}),
    "slice": OpSpec(
        (1, 1), {"begin": (_count(MAX_CHANNELS, 0), 0), "end": (_count(MAX_CHANNELS), REQUIRED)}
    ),
    "pixel_shuffle": OpSpec((1, 1), {"factor": (_pair(1), REQUIRED), "crop": (_pair(0), _ZEROS)}),
    "pixel_unshuffle": OpSpec((1, 1), {"factor": (_pair(1), REQUIRED)}),
    "channel_shuffle": OpSpec((1, 1), {"groups": (_count(MAX_CHANNELS), REQUIRED)}),
    "resize": OpSpec(
        (1, 2),
        {
            "mode": (_one_of("nearest", "bilinear"), REQUIRED),
            "align": (_flag, False),
            "size": (_optional(_pair(1)), None),
            "zoom": (_optional(_zoom), None),
        },
    ),
    "unflatten": OpSpec((1, 1), {}),
    "softmax": OpSpec((1, 1), {}),
    "layer_norm": OpSpec((1, 1), {"w": _WEIGHT, "eps": (_positive, REQUIRED)}),
}
