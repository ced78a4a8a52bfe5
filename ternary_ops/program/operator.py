# SPDX-License-Identifier: Apache-2.0
"""Operator, the base class of every operator of a program, and the registry of them all.

An operator is one class in one file of `program/ops`, under a `@register` line. Its attributes and
methods are everything that the rest of the package asks about it: checks of files, shapes, the
NumPy reference, what the native engine is told, passes that reorder or measure a program, and its
row in docs/architecture.md. `csrc/program/op_kernel.h` is its native counterpart.

Channels are axis 1 of every shape and array that a method sees, whatever the rank: rows [N, C],
tokens [N, C, L], images [N, C, H, W]. Outside, tokens are [N, L, C] (`to_outside`).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.program.attributes import MAX_CHANNELS, REQUIRED, REWRITE, Attribute
from ternary_ops.program.weight import Array, Params, Weight

# A float array, or (q, scale, zero point): what the reference calls an operand.
Operand: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
ChannelPairs: TypeAlias = tuple[Array, Array]
_Class = TypeVar("_Class", bound="type[Operator]")

OPS: dict[str, Operator] = {}
TOKENS = 3  # the rank whose channels come last


@dataclass(frozen=True)
class Value:
    """Type of a node's value: all that is known before the input's sizes are.

    rank: 2 for rows, 3 for tokens, 4 for images. channels is None for a flattened image, whose
    width is a multiple of `multiple`. y: scale and zero point of uint8, None for floats. fine:
    two-term 11-bit, two codes per value (reference.quantize_fine); only convolutions read it.
    """

    rank: int
    channels: int | None
    multiple: int
    y: Params | None
    fine: bool = False


class BoundNode(NamedTuple):
    """A node with its references resolved: attributes, the types of its inputs, its weight."""

    at: Mapping[str, Any]
    inputs: tuple[Value, ...]
    bank: Weight | None

    @property
    def weight(self) -> Weight:
        """The weight of a node that has one."""
        if self.bank is None:
            raise TypeError("this node has no weight")
        return self.bank


class Operator(ABC):
    """One operator. The first paragraph of a class's docstring says what its nodes make."""

    name: ClassVar[str]
    reads: ClassVar[str] = "x"  # its inputs, in words
    inputs: ClassVar[tuple[int, int]] = (1, 1)  # least and most
    attrs: ClassVar[Mapping[str, Attribute]] = {}

    # It multiplies its first input by a weight of integers or floats, whose zeros can be skipped.
    is_layer: ClassVar[bool] = False
    # The result has the scale and zero point of the first input, or is floats like it.
    keeps_params: ClassVar[bool] = False
    # It reads floats and makes floats, or codes where an attribute `y` says so.
    floats_only: ClassVar[bool] = False
    # Functions, by the attribute `fn`, for which it does that.
    float_functions: ClassVar[tuple[str, ...]] = ()
    # Inputs of which the size alone matters.
    sized_by: ClassVar[tuple[int, ...]] = ()
    # It treats each channel alone, and all in the same way.
    per_channel: ClassVar[bool] = False
    # It sums floats over channels, in their order.
    over_channels: ClassVar[bool] = False
    # A pixel (or token) of the result depends on the same pixel of its inputs alone.
    per_pixel: ClassVar[bool] = False
    # The result holds all numbers of its input (a crop aside) at other places.
    rearranges: ClassVar[bool] = False
    # A number of the result lies between those of its input.
    averages: ClassVar[bool] = False
    # True if the first input may be two-term 11-bit.
    reads_fine: ClassVar[bool] = False

    @abstractmethod
    def value(self, node: BoundNode) -> Value:
        """Check the node against its inputs; returns its value type. Raises FormatError."""

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """Shape of the result; raises UnsupportedShape. By default that of every input."""
        return like_all(inputs[0], inputs[1:])

    def macs(self, node: BoundNode, result: Shape) -> int:
        """Multiply-adds of a node with this result, as a dense network does them."""
        return 0

    @abstractmethod
    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """The result in NumPy."""

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs] | None:
        """For each input, the channels of the result and of the input that hold the same numbers,
        pair by pair. None, the default, for operators that do not put channels elsewhere.
        """
        return None

    def native(self, node: BoundNode) -> dict[str, Any]:
        """Attributes that the native engine takes beside, or in place of, the node's own."""
        return {}

    def completed(self, count: int, said: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a node of `count` inputs says and fill in defaults; raises FormatError."""
        least, most = self.inputs
        if not least <= count <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise FormatError(need(f"{wanted} inputs of {self.name}", count, REWRITE))
        unknown = sorted(set(said) - set(self.attrs))
        if unknown:
            known = ", ".join(self.attrs)
            raise FormatError(need(f"attributes of {self.name} ({known})", unknown[0], REWRITE))
        full: dict[str, Any] = {}
        for name, (check, default, like) in self.attrs.items():
            if name in said:
                full[name] = check(f"{self.name}.{name}", said[name])
            elif default is REQUIRED:
                raise FormatError(need(f"{name} of {self.name}", "nothing", REWRITE))
            else:
                full[name] = default
            if like and full[name] is None:
                full[name] = full[like]
        return full

    def without_defaults(self, full: Mapping[str, Any]) -> dict[str, Any]:
        """Undo `completed`: only what a file must say."""
        return {
            name: full[name]
            for name, (_, default, like) in self.attrs.items()
            if full[name] != (full[like] if like else default)
        }

    def row(self) -> tuple[str, str, str, str]:
        """Name, inputs, attributes and meaning, for the table in docs/architecture.md."""
        said = []
        for name, (check, default, like) in self.attrs.items():
            usual = f"as `{like}`" if like else _usual(default)
            said.append(f"`{name}` ({'; '.join(filter(None, (check.says, usual)))})")
        meaning = inspect.cleandoc(self.__doc__ or "").partition("\n\n")[0]
        return f"`{self.name}`", self.reads, ", ".join(said) or "-", " ".join(meaning.split())


def _usual(default: Any) -> str:
    """A default in words; nothing for what must be said or is nothing."""
    if default is REQUIRED or default in (None, (), (None, None)):
        return ""
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return str(default).lower()


def register(made: _Class) -> _Class:
    """Add an operator to the registry, under its name."""
    OPS[made.name] = made()
    return made


def find(name: str) -> Operator:
    """The operator of that name; raises FormatError for one that is not there."""
    found = OPS.get(name)
    if found is None:
        raise FormatError(need(f"an op out of {', '.join(OPS)}", repr(name), REWRITE))
    return found


def need_rank(node: BoundNode, *ranks: int) -> None:
    """Raise FormatError unless the first input has one of these ranks."""
    x = node.inputs[0]
    if x.rank not in ranks:
        raise FormatError(need(f"rank {' or '.join(map(str, ranks))}", x.rank, REWRITE))


def need_parts(channels: int | None, parts: int) -> None:
    """Raise FormatError unless so many channels split into equal parts."""
    if not channels or channels % parts:
        raise FormatError(need(f"channels divisible by {parts}", channels, REWRITE))


def need_known(channels: int | None) -> None:
    """Raise FormatError for channels that depend on the size of the image."""
    if channels is None:
        raise FormatError(need("a known number of channels", "one of the size", REWRITE))


def need_few(channels: int) -> None:
    """Raise FormatError for more channels than a value may have."""
    if channels > MAX_CHANNELS:
        raise FormatError(need(f"at most {MAX_CHANNELS} channels", channels, REWRITE))


def output_params(node: BoundNode) -> Params | None:
    """Scale and zero point of the result: floats make floats, uint8 makes either."""
    y: Params | None = node.at["y"]
    if y is not None and node.inputs[0].y is None:
        raise FormatError(need("uint8 input for uint8 output", "floats", REWRITE))
    return y


def like_all(shape: Shape, others: Sequence[Shape]) -> Shape:
    """The shape; raises UnsupportedShape unless all others are the same."""
    for other in others:
        need_same("a second operand of shape", shape, other)
    return shape


def need_same(what: str, wanted: Shape, got: Shape) -> None:
    """Raise UnsupportedShape unless two shapes are the same."""
    if wanted != got:
        raise UnsupportedShape(
            need(f"{what} {list(wanted)}", list(got), "Use the image size it was made for.")
        )


def plain(x: Operand) -> Array:
    """The array of an operand, for what moves numbers without a look at them."""
    array: Array = x[0] if isinstance(x, tuple) else x
    return array


def bounds_and_params(node: BoundNode) -> dict[str, Any]:
    """The end of a computation, as arguments of the reference."""
    lo, hi = node.at["clamp"]
    return {"lo": lo, "hi": hi, "y": node.at["y"]}


def to_outside(shape: Shape) -> Shape:
    """A shape as callers see it: tokens [N, C, L] become [N, L, C], others stay."""
    return (shape[0], shape[2], shape[1]) if len(shape) == TOKENS else shape


def swap_tokens(array: Array) -> Array:
    """Tokens [N, L, C] as [N, C, L] or back; other arrays as they are."""
    return np.ascontiguousarray(array.swapaxes(1, 2)) if array.ndim == TOKENS else array
