# SPDX-License-Identifier: Apache-2.0
"""Tensors of a network as values of its program, and what is computed of such alone.

A parameter or buffer that is no layer's becomes a `constant`. Steps that read constants alone are
computed here, by their references, so that moving one to where it is needed costs nothing later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from ternary_ops.compiler.arrange import joined_axes
from ternary_ops.compiler.axes import RANKS, Atom, Axis, Value
from ternary_ops.compiler.combine import paired
from ternary_ops.compiler.read_layers import Layer, channelwise
from ternary_ops.compiler.step import Step, rewire
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.program.operator import TOKENS, BoundNode
from ternary_ops.program.operator import Value as Made
from ternary_ops.program.ops import OPS
from ternary_ops.program.weight import Array, Weight

_MOST_AXES = RANKS[-1] - 1  # behind the batch


def constant_value(name: str, tensor: Tensor, source: Value, of_batch: bool = False) -> Value:
    """A tensor, the same for every image, beside the program's input `source`.

    Its axes of more than one number are those of the step's value, in their order; where there are
    more than a program has, the first ones together are the channels.

    of_batch: it was computed for the example's batch, as often as there are images along its first
    axis where nothing but repetitions tells these apart.
    """
    array = np.asarray(tensor.detach().cpu().float().numpy())
    if not np.isfinite(array).all():
        raise Unsupported(f"{name} has numbers that are not finite")
    array, repeats = _of_one_image(array, source.form[0][0].sizes[0] if of_batch else 0)
    axes: list[Axis] = [
        () if size == 1 else (Atom((size,) * source.examples, True),) for size in array.shape
    ]
    rows = [axis for axis in axes if axis] or [()]
    if repeats:
        axes[0] = (*source.form[0], *axes[0])
    extra = max(len(rows) - _MOST_AXES, 0)
    rows[: extra + 1] = [joined_axes(rows[: extra + 1])]
    form = (source.form[0], *rows)
    sizes = [source.length(row)[0] for row in rows]
    return Value(_constant(name, array.reshape(1, *sizes), source.step), form, tuple(axes))


def _of_one_image(array: Array, images: int) -> tuple[Array, bool]:
    """A constant [images * K, ...] that repeats its first K numbers for each of some images, as
    [K, ...], and whether it does. Of equal numbers each could be a repetition: K is 1 then.
    """
    if not images or array.ndim < 2 or array.shape[0] % images:
        return array, False
    kept = array.shape[0] // images
    split = array.reshape(images, kept, *array.shape[1:])
    repeats = bool((split == split[:1]).all()) and (kept == 1 or (images > 1 and np.ptp(array) > 0))
    return (split[0] if repeats else array), repeats


def _constant(name: str, array: Array, source: Step) -> Step:
    """A constant step of one image [1, C, ...]."""
    step = Step("constant", [source])
    _become_constant(step, name, array)
    return step


def _become_constant(step: Step, name: str, array: Array) -> None:
    rank = array.ndim
    height = [1] if rank == TOKENS else []
    shape = [array.shape[1], *height, *array.shape[2:]]
    values = array.reshape(*shape, *[1] * (4 - len(shape)))
    step.op, step.attrs = "constant", {"rank": rank}
    step.layer = Layer("constant", Weight(name, "float", values.astype(np.float32)))


def known_value(step: Step) -> Array | None:
    """The value [1, C, ...] of a step that depends on constants alone."""
    if step.op == "constant" and step.layer is not None:
        made = step.layer.weight.array
        sizes = {4: made.shape[:3], TOKENS: (made.shape[0], made.shape[2]), 2: made.shape[:1]}
        return made.reshape(1, *sizes[step.attrs["rank"]])
    operator = OPS.get(step.op)
    if operator is None or not step.inputs or step.layer is not None:
        return None
    found: list[Array] = []
    for x in step.inputs:
        value = known_value(x)
        if value is None:  # most steps: those before the others need no look
            return None
        found.append(value)
    said = {**step.attrs, "clamp": step.clamp}
    at = {name: value for name, value in said.items() if name in operator.attrs}
    types = tuple(Made(x.ndim, x.shape[1], x.shape[1], None) for x in found)
    return operator.reference(BoundNode(operator.completed(len(found), at), types, None), found)


def over_batch(constant: Value, repeated: Value) -> Value:
    """A constant that a network repeats as often as there are images is the same for each."""
    n = constant.form[0]
    if known_value(constant.step) is None or repeated.sizes[0] != constant.length(n):
        return repeated
    return repeated.seen_as([n, *repeated.axes[1:]])


def known_number(step: Step) -> float | None:
    """That of a constant of one number."""
    if step.op != "constant" or step.layer is None or step.layer.weight.array.size > 1:
        return None
    return float(step.layer.weight.array.item())


def scaled(op: str, a: Value, b: Value) -> Value | None:
    """The sum or product of a value with a constant of one number a channel, of images: a depthwise
    layer, which becomes part of layers beside it. None for other operands.
    """
    x, y, result = paired(a, b)
    for made, other in ((x, y), (y, x)):
        array = _of_channels(other, made)
        if array is not None and len(made.form) == RANKS[-1] and made.form == result.form:
            ones = np.ones_like(array)
            name = other.step.place or "a constant"
            factor, offset = (array, None) if op == "mul" else (ones, array)
            layer = channelwise(name, factor, offset)
            return result.of(Step(layer.op, [made.step], layer.attrs, layer))
    return None


def with_bias(made: Value, constant: Value) -> Value | None:
    """A layer's value plus a constant of one number a channel, which becomes part of its bias."""
    layer = made.step.layer
    if layer is None or made.step.op not in ("conv2d", "linear") or len(made.step.inputs) > 1:
        return None
    x, y, result = paired(made, constant, keep_first=True)
    array = _of_channels(y, x)
    if array is None or x.step is not made.step or result.form != x.form:
        return None
    weight = layer.weight
    bias = array if weight.bias is None else weight.bias + array
    layer = replace(layer, weight=replace(weight, bias=bias))
    return result.of(Step(made.step.op, made.step.inputs, made.step.attrs, layer))


def _of_channels(value: Value, beside: Value) -> Array | None:
    """The numbers [C] of a constant that has as many as another value has channels, and nothing
    else.
    """
    array = known_value(value.step)
    if array is None or known_value(beside.step) is not None:
        return None
    channels = beside.length(beside.form[1])[0]
    return array.ravel() if array.size == array.shape[1] == channels else None


def fold_constants(step: Step) -> Sequence[Step]:
    """What depends on constants alone is one."""
    if step.op in ("constant", "output") or not step.inputs:
        return ()
    made = known_value(step)
    if made is not None and np.isfinite(made).all():
        source = _source(step)
        name = f"{step.place or step.op}"
        _become_constant(step, name, made)
        step.clamp = (None, None)
        rewire(step, source)
    return ()


def constant_beside(step: Step, name: str, array: Array) -> Step:
    """A new constant of one image [1, C, ...] for a step that depends on the input."""
    made = Step("constant", [])
    _become_constant(made, name, array)
    rewire(made, _source(step))
    return made


def _source(step: Step) -> Step:
    """The program's input, which a step depends on."""
    while step.op != "input":
        step = step.inputs[0]
    return step
