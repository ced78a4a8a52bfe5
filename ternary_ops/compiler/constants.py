# SPDX-License-Identifier: Apache-2.0
"""Tensors of a network as values of its program, and what is computed of such alone.

A parameter or buffer that is no layer's becomes a `constant`. Steps that read constants alone are
computed here, by their references, so that moving one to where it is needed costs nothing later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ternary_ops.compiler.arrange import joined_axes
from ternary_ops.compiler.axes import RANKS, Atom, Axis, Value
from ternary_ops.compiler.read_layers import Layer
from ternary_ops.compiler.step import Step, rewire
from ternary_ops.compiler.unsupported import Unsupported
from ternary_ops.program.operator import TOKENS, BoundNode
from ternary_ops.program.operator import Value as Made
from ternary_ops.program.ops import OPS
from ternary_ops.program.weight import Array, Weight

_MOST_AXES = RANKS[-1] - 1  # behind the batch


def constant_value(name: str, tensor: Tensor, source: Value) -> Value:
    """A tensor, the same for every image, beside the program's input `source`.

    Its axes of more than one number are those of the step's value, in their order; where there are
    more than a program has, the first ones together are the channels.
    """
    array = np.asarray(tensor.detach().cpu().float().numpy())
    if not np.isfinite(array).all():
        raise Unsupported(f"{name} has numbers that are not finite")
    axes: list[Axis] = [
        () if size == 1 else (Atom((size,) * source.examples, True),) for size in array.shape
    ]
    rows = [axis for axis in axes if axis] or [()]
    extra = max(len(rows) - _MOST_AXES, 0)
    rows[: extra + 1] = [joined_axes(rows[: extra + 1])]
    form = (source.form[0], *rows)
    sizes = [source.length(row)[0] for row in rows]
    return Value(_constant(name, array.reshape(1, *sizes), source.step), form, tuple(axes))


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
    if operator is None or not step.inputs or step.slope is not None:
        return None
    operands = [known_value(x) for x in step.inputs]
    if any(x is None for x in operands):
        return None
    found = [x for x in operands if x is not None]
    weight = None if step.layer is None else step.layer.weight
    said = {**step.attrs, "clamp": step.clamp, "w": 0}
    if weight is None:
        del said["w"]
    at = {name: value for name, value in said.items() if name in operator.attrs}
    types = tuple(Made(x.ndim, x.shape[1], x.shape[1], None) for x in found)
    return operator.reference(BoundNode(operator.completed(len(found), at), types, weight), found)


def fold_constants(step: Step) -> Sequence[Step]:
    """What depends on constants alone is one."""
    if step.op in ("constant", "output") or not step.inputs:
        return ()
    made = known_value(step)
    if made is not None and np.isfinite(made).all():
        source = step.inputs[0]
        while source.op != "input":
            source = source.inputs[0]
        name = f"{step.place or step.op}"
        _become_constant(step, name, made)
        step.clamp = (None, None)
        rewire(step, source)
    return ()
