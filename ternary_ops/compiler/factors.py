# SPDX-License-Identifier: Apache-2.0
"""Factors and offsets, of all numbers or of each channel, become part of the layers beside them.

Behind a layer they scale its filters and shift its bias; before one a factor scales its filters,
and an offset adds to its bias where no padding would show. Codes stay as they are: the scale of a
filter takes the factor, and the range of what a quantized layer reads is divided by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ternary_ops.compiler.constants import known_value
from ternary_ops.compiler.read_layers import Layer, Range
from ternary_ops.compiler.step import Step, become, hand_over, rewire
from ternary_ops.graph.nodes import Bounds
from ternary_ops.program.ops import OPS
from ternary_ops.program.weight import Array, Weight

_PLAIN: Bounds = (None, None)
_ELEMENTWISE = ("add", "mul", "activation", "clamp")


class _Affine(NamedTuple):
    """x * factor + offset, float64: numbers [1], or one a channel [C]."""

    factor: Array
    offset: Array
    source: Step

    def of(self, bounds: Range) -> Range:
        """The range of the result."""
        ends = np.multiply.outer(np.array(bounds), self.factor) + self.offset
        return float(ends.min()), float(ends.max())

    def undone(self, bounds: Range | None) -> Range | None:
        """The range before one positive factor."""
        factor = float(self.factor[0])
        return None if bounds is None else (bounds[0] / factor, bounds[1] / factor)

    @property
    def uniform(self) -> bool:
        """True for one factor and offset of all numbers."""
        return len(self.factor) == 1

    @property
    def grows(self) -> bool:
        """True for positive factors alone, which keep the order of numbers."""
        return bool((self.factor > 0).all() and not self.offset.any())


class _Reader(NamedTuple):
    """A step, and the value that it reads."""

    step: Step
    source: Step


def affine_into_affine(step: Step) -> Sequence[Step]:
    """Two numbers times one number times another."""
    if is_affine(step) and is_affine(step.inputs[0]):
        (first,) = step.inputs
        if len(first.users) == 1:
            (a, b), (c, d) = first.attrs["params"], step.attrs["params"]
            step.attrs = {**step.attrs, "params": (a * c, b * c + d)}
            rewire(step, *first.inputs)
    return ()


def affine_into_layer_before(step: Step) -> Sequence[Step]:
    """layer(x) * factor + offset, where nothing else reads the layer."""
    affine = _affine_of(step)
    maker = step if affine is None else affine.source
    if affine is None or maker.layer is None or len(maker.users) > 1:
        return ()
    bounds = _scaled_bounds(maker.clamp, affine)
    sloped = maker.slope is not None and not affine.grows
    if maker.op not in ("conv2d", "linear") or len(maker.inputs) > 1 or sloped or bounds is None:
        return ()
    layer = _behind(maker.layer, affine)
    if layer is not None:
        become(step, maker)
        step.layer, step.clamp, step.slope = layer, bounds, maker.slope
        step.shape = step.shape or maker.shape
    return ()


def affine_into_layers_after(step: Step) -> Sequence[Step]:
    """layer(x * factor + offset), for all readers; pools and what moves values may lie between."""
    affine = _affine_of(step)
    readers = None if affine is None else list(_readers(step))
    if affine is None or not readers:
        return ()
    layers = [reader for reader in readers if reader.step.layer is not None]
    moving = [reader.step for reader in readers if reader.step.layer is None]
    if moving and not (affine.grows and affine.uniform and all(map(_passes, moving))):
        return ()
    alone = len(affine.source.users) == 1
    made = [_before(reader, affine, alone) for reader in layers]
    if None in made:
        return ()
    for reader, layer in zip(layers, made, strict=True):
        reader.step.layer = layer
    for mover in moving:
        mover.observed = affine.undone(mover.observed)
    hand_over(step, affine.source)
    return ()


def factor_into_matmul(step: Step) -> Sequence[Step]:
    """A factor of a product of two values, or of one of them, is the product's own."""
    for operand in list(step.inputs) if step.op == "matmul" else ():
        source = _behind_moves(operand)
        factor = _factor_of(source)
        if factor is not None and len(source.users) == 1:
            step.attrs = {**step.attrs, "scale": step.attrs.get("scale", 1.0) * factor}
            hand_over(source, source.inputs[0])
    maker, factor = step.inputs[0] if step.inputs else step, _factor_of(step)
    if factor is not None and maker.op == "matmul" and len(maker.users) == 1:
        become(step, maker)
        step.shape = maker.shape
        step.attrs = {**step.attrs, "scale": step.attrs.get("scale", 1.0) * factor}
    return ()


def _behind_moves(step: Step) -> Step:
    """What a step moves to another place, where nothing else reads either."""
    while len(step.users) == 1 and step.inputs and step.op in OPS and OPS[step.op].rearranges:
        step = step.inputs[0]
    return step


def _factor_of(step: Step) -> float | None:
    """That of a step which only multiplies by one."""
    plain = is_affine(step) and step.attrs["params"][1] == 0 and step.chain is None
    return step.attrs["params"][0] if plain else None


def sum_behind_layer(step: Step) -> Sequence[Step]:
    """y + layer(x) outside of a chain, once a factor between them is gone."""
    if step.op != "add" or len(step.inputs) != 2 or step.inputs[0] is step.inputs[1]:
        return ()
    for maker, other in (step.inputs, step.inputs[::-1]):
        plain = maker.clamp == _PLAIN and maker.slope is None and len(maker.inputs) == 1
        layer = maker.layer if maker.op in ("conv2d", "linear") else None
        sizes = maker.shape is not None and maker.shape == other.shape
        if plain and layer is not None and len(maker.users) == 1 and sizes:
            become(step, maker, other)
            break
    return ()


def is_affine(step: Step) -> bool:
    """True for one factor and offset of all numbers."""
    return step.op == "activation" and step.attrs["fn"] == "affine"


def _affine_of(step: Step) -> _Affine | None:
    """That of a step that scales and shifts all numbers, or each channel."""
    if is_affine(step):
        factor, offset = (np.array([number], np.float64) for number in step.attrs["params"])
        return _Affine(factor, offset, step.inputs[0])
    if step.op in ("mul", "add") and len(step.inputs) == 2 and step.clamp == _PLAIN:
        return _by_constant(step)
    layer = step.layer
    if layer is None or not layer.follows or len(step.inputs) > 1:
        return None
    if step.slope is not None or step.clamp != _PLAIN:
        return None
    weight = layer.weight
    if step.attrs.get("groups", 1) != weight.shape[0]:
        return None  # it moves channels
    factors = weight.effective_scale(None).astype(np.float64) * weight.array[:, 0, 0, 0]
    offsets = np.zeros_like(factors) if weight.bias is None else weight.bias
    return _Affine(factors, offsets.astype(np.float64), step.inputs[0])


def _by_constant(step: Step) -> _Affine | None:
    """That of a product or sum with a constant of one number a channel."""
    for x, other in (step.inputs, step.inputs[::-1]):
        array = known_value(other) if other.op == "constant" and x.op != "constant" else None
        if array is not None and array.size == array.shape[1] == _channels(x):
            numbers = array.ravel().astype(np.float64)
            if step.op == "mul":
                return _Affine(numbers, np.zeros_like(numbers), x)
            return _Affine(np.ones_like(numbers), numbers, x)
    return None


def _channels(step: Step) -> int | None:
    """Channels of a step's value, where they are known; of a sum or product those of an operand."""
    while step.layer is None and step.shape is None and step.op in _ELEMENTWISE:
        step = next((x for x in step.inputs if x.op != "constant"), step.inputs[0])
    if step.layer is not None:
        return step.layer.weight.shape[0]
    return None if step.shape is None else step.shape[1]


def _scaled_bounds(bounds: Bounds, affine: _Affine) -> Bounds | None:
    """Bounds that do behind the affine what these do before it; None where channels differ."""
    if bounds == _PLAIN:
        return bounds
    if not affine.uniform or affine.factor[0] == 0:
        return None
    factor, offset = float(affine.factor[0]), float(affine.offset[0])
    lo, hi = (None if bound is None else bound * factor + offset for bound in bounds)
    return (lo, hi) if factor > 0 else (hi, lo)


def _behind(layer: Layer, affine: _Affine) -> Layer | None:
    """The layer and an affine of its result as one; None where float32 cannot hold it."""
    weight = layer.weight
    bias = affine.offset + (0 if weight.bias is None else weight.bias * affine.factor)
    count = weight.shape[0]
    made = _weight(weight, affine.factor.reshape(-1, 1, 1, 1), np.broadcast_to(bias, count))
    if made is None:
        return None
    given = layer.output_range
    return replace(layer, weight=made, output_range=None if given is None else affine.of(given))


def _before(reader: _Reader, affine: _Affine, alone: bool) -> Layer | None:
    """A reader's layer and an affine of what it reads as one; None where the affine must stay.

    alone: the affine alone reads its operand, whose codes then have the layer's range.
    """
    step, layer = reader.step, reader.step.layer
    inside = step.op in ("conv2d", "linear") and step.inputs[0] is reader.source
    if layer is None or not inside or step.inputs.count(reader.source) > 1:
        return None
    scales = affine.uniform and affine.grows
    if layer.integer and not (scales and alone):
        return None
    sides = *step.attrs.get("padding", ()), *step.attrs.get("more_padding", ())
    if affine.offset.any() and any(sides):
        return None
    weight = layer.weight
    if weight.kind != "float" and not affine.uniform:
        return None
    factor, offset = (_over_inputs(v, weight, layer) for v in affine[:2])
    bias = None if weight.bias is None else weight.bias.astype(np.float64)
    if affine.offset.any():
        sums = (weight.array * offset).sum((1, 2, 3), dtype=np.float64)
        shift = sums * weight.effective_scale(None)
        bias = shift if bias is None else bias + shift
    made = _weight(weight, factor, bias)
    bounds = affine.undone(layer.input_range) if scales else layer.input_range
    return None if made is None else replace(layer, weight=made, input_range=bounds)


def _over_inputs(values: Array, weight: Weight, layer: Layer) -> Array:
    """Values of all or of each input channel as they meet filters [O, R, S, I]."""
    if len(values) == 1:
        return values.reshape(1, 1, 1, 1)
    groups = layer.attrs.get("groups", 1)
    by_group = values.reshape(groups, 1, 1, 1, -1)
    filters = np.broadcast_to(by_group, (groups, weight.shape[0] // groups, 1, 1, weight.shape[3]))
    return filters.reshape(-1, 1, 1, weight.shape[3])


def _weight(weight: Weight, factor: Array, bias: Array | None) -> Weight | None:
    """Filters times factors that broadcast over [O, R, S, I], with another bias; None where the
    numbers leave float32.
    """
    values, scale = weight.values, None
    with np.errstate(over="ignore"):
        if weight.scale is None:
            values = (weight.array * factor).astype(np.float32)
        else:
            scale = (weight.scale * factor[:, 0, 0, 0]).astype(np.float32)
        shift = None if bias is None else bias.astype(np.float32)
    if not all(np.isfinite(v).all() for v in (values, scale, shift) if isinstance(v, np.ndarray)):
        return None
    if shift is not None and weight.bias is None and not shift.any():
        shift = None
    return replace(weight, values=values, scale=scale, bias=shift)


def _readers(step: Step) -> Iterator[_Reader]:
    """Every reader of a step's value, and those behind readers through which a factor passes."""
    for user in dict.fromkeys(step.users):
        yield _Reader(user, step)
        if user.layer is None and _passes(user):
            yield from _readers(user)


def _passes(step: Step) -> bool:
    """True for pools and moves, through which a positive factor passes: f(a * x) = a * f(x)."""
    op = OPS.get(step.op)
    homogeneous = op is not None and (op.averages or op.keeps_params)
    return homogeneous and len(step.inputs) == 1 and not step.attrs.get("value")
