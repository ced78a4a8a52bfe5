# SPDX-License-Identifier: Apache-2.0
"""Second pass: steps that one operator of a program does together become one step.

A fusion is a function of a step that rewrites it and those around it, and returns new steps that
stand before it; it is asked of every step in order, and steps that nothing reads afterwards are
dropped. To add one, write the function and list it in FUSIONS, or in CHAIN_FUSIONS if it is for the
steps of a layer's chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ternary_ops.compiler.attention import attention_of_products
from ternary_ops.compiler.attention_paths import attention_by_numbers
from ternary_ops.compiler.constants import fold_constants
from ternary_ops.compiler.factors import (
    affine_into_affine,
    affine_into_layer_before,
    affine_into_layers_after,
    factor_into_matmul,
    is_affine,
    sum_behind_layer,
)
from ternary_ops.compiler.spelled import spelled_function
from ternary_ops.compiler.step import Step, become, hand_over, rewire
from ternary_ops.graph.nodes import Bounds
from ternary_ops.program.ops import OPS
from ternary_ops.program.weight import Array

Fusion: TypeAlias = Callable[[Step], Sequence[Step]]


def fuse(steps: Sequence[Step]) -> list[Step]:
    """Apply the fusions to each step in turn, so that one makes room for another behind it."""
    made: list[Step] = []
    for step in steps:
        for fusion in FUSIONS if step.chain is None else CHAIN_FUSIONS:
            if step.users:
                made += fusion(step)
        made.append(step)
    return [step for step in made if step.users or step.op == "output"]


def sum_into_layer(step: Step) -> Sequence[Step]:
    """layer(x) + y: the layer adds y, its residual."""
    if step.op == "add":
        layer, residual = step.inputs  # in this order, see `read`
        become(step, layer, residual)
    return ()


def slopes_into_convolution(step: Step) -> Sequence[Step]:
    """A PReLU or leaky ReLU behind a convolution."""
    slopes = _slopes(step)
    if slopes is not None and (made := step.inputs[0]).layer is not None:
        if not made.layer.follows:
            become(step, made)
            step.slope = slopes
    return ()


def _slopes(step: Step) -> Array | None:
    """Those of a PReLU [C] or a leaky ReLU [1]."""
    if step.op == "prelu":
        slopes: Array = step.attrs["slopes"].weight.scale
        return slopes
    leaky = step.op == "activation" and step.attrs["fn"] == "leaky_relu"
    return np.array(step.attrs["params"], np.float32) if leaky else None


def padding_into_convolutions(step: Step) -> Sequence[Step]:
    """Zeros around an image are padding of the convolutions that read it."""
    zeros = step.op == "pad" and step.attrs["mode"] == "constant" and step.attrs["value"] == 0
    for user in list(dict.fromkeys(step.users)) if zeros else ():
        if user.op != "conv2d" or user.inputs[0] is not step or step in user.inputs[1:]:
            continue
        attrs = _padded_more(user.attrs, step.attrs)
        if attrs is not None:
            user.attrs = attrs
            rewire(user, *step.inputs, *user.inputs[1:])
    return ()


def _padded_more(conv: dict[str, Any], pad: dict[str, Any]) -> dict[str, Any] | None:
    """Attributes of a convolution that pads as well; None for more at the top or left."""
    padding, more = conv.get("padding", (0, 0)), conv.get("more_padding", (0, 0))
    start = tuple(p + b for p, b in zip(padding, pad["before"], strict=True))
    ends = zip(more, pad["before"], pad["after"], strict=True)
    rest = tuple(m + after - before for m, before, after in ends)
    return None if min(rest) < 0 else {**conv, "padding": start, "more_padding": rest}


def prelu_by_parts(step: Step) -> Sequence[Step]:
    """A PReLU with a slope a channel, behind no convolution: max(x, 0) + slope * min(x, 0)."""
    if step.op != "prelu":
        return ()
    slopes, (x,) = step.attrs["slopes"], step.inputs
    below, above = Step("clamp", [], clamp=(None, 0.0)), Step("clamp", [], clamp=(0.0, None))
    scaled = Step("conv2d", [], slopes.attrs, slopes)
    rewire(below, x)
    rewire(above, x)
    rewire(scaled, below)
    above.observed = scaled.observed = step.observed  # each is the sum, or zero
    step.op, step.attrs = "add", {}
    rewire(step, above, scaled)
    return above, below, scaled


def clamp_into_producer(step: Step) -> Sequence[Step]:
    """A clamp that alone reads a step, behind what only moves values or not, is that step's."""
    maker = _clampable(step.inputs[0]) if step.op == "clamp" else None
    if maker is not None:
        maker.clamp = merge(maker.clamp, step.clamp)
        maker.observed = step.observed
        if step.chain is not None:
            maker.place = step.place
        hand_over(step, step.inputs[0])
    return ()


def _clampable(step: Step) -> Step | None:
    """The step whose values this one passes on, if it can clamp and nothing else reads them."""
    while OPS[step.op].rearranges and len(step.users) == 1:
        step = step.inputs[0]
    fits = "clamp" in OPS[step.op].attrs and len(step.users) == 1 and step.slope is None
    return step if fits else None


def hard_sigmoid(step: Step) -> Sequence[Step]:
    """clamp(factor * x + offset, 0, 1), as ONNX's HardSigmoid is read, is one function."""
    factor, offset, x = 1.0, 0.0, step.inputs[0] if step.inputs else step
    while is_affine(x) and len(x.users) == 1:
        slope, rest = x.attrs["params"]
        factor, offset, x = factor * slope, factor * rest + offset, x.inputs[0]
    unit = step.op == "clamp" and step.clamp == (0.0, 1.0)
    if unit and x is not step.inputs[0]:
        step.op, step.clamp = "activation", (None, None)
        step.attrs = {"fn": "affine_hardsigmoid", "params": (factor, offset)}
        rewire(step, x)
    return ()


def gate_into_convolution(step: Step) -> Sequence[Step]:
    """Fuse x * sigmoid(conv(...)), and a residual added to it, into the convolution."""
    convolution = _gate_of(step)
    if convolution is None:
        return ()
    (x,) = (s for s in step.inputs if s is not convolution.users[0])
    shape = x.shape
    step.attrs = {**convolution.attrs, "gate": True}
    step.op, step.layer, step.shape = "conv2d", convolution.layer, None
    rewire(step, convolution.inputs[0], x)
    _add_behind_gate(step, shape)
    return ()


def _gate_of(step: Step) -> Step | None:
    """The convolution whose sigmoid a product of two maps of one size has as a factor."""
    for factor in step.inputs if step.op == "mul" and len(step.inputs) == 2 else []:
        if factor.op != "activation" or factor.attrs["fn"] != "sigmoid" or len(factor.users) > 1:
            continue
        maker = factor.inputs[0]
        alone = maker.op == "conv2d" and len(maker.users) == 1 and len(maker.inputs) == 1
        plain = alone and maker.slope is None and maker.clamp == (None, None)
        shapes = {s.shape for s in step.inputs}
        if plain and len(shapes) == 1 and None not in shapes:
            return maker
    return None


def _add_behind_gate(step: Step, shape: tuple[int, ...] | None) -> None:
    """Let a gated convolution add what an `add` that alone reads it adds; the sum keeps its place,
    behind all that it reads.
    """
    if len(step.users) != 1 or step.clamp != (None, None):
        return
    (add,) = step.users
    others = [s for s in add.inputs if s is not step]
    if add.op == "add" and len(others) == 1 and others[0].shape == shape:
        become(add, step, others[0])


def merge(first: Bounds, second: Bounds) -> Bounds:
    """Bounds of clamp(clamp(x, first), second)."""
    return _clip(first[0], second, second[0]), _clip(first[1], second, second[1])


def _clip(bound: float | None, by: Bounds, otherwise: float | None) -> float | None:
    if bound is None:
        return otherwise
    lo, hi = by
    bound = bound if lo is None else max(bound, lo)
    return bound if hi is None else min(bound, hi)


def flatten_before_layers(step: Step) -> Sequence[Step]:
    """An image in a row, of which layers alone read as many numbers as there are."""
    at = step.attrs
    in_a_row = step.op == "rearrange" and at["rank"] == 2 and len(at["split"]) == 3
    if in_a_row and at["order"] == tuple(range(len(at["order"]))):
        if all(user.layer is not None for user in step.users):
            step.op, step.attrs = "flatten", {}
    return ()


CHAIN_FUSIONS: tuple[Fusion, ...] = (
    sum_into_layer,
    slopes_into_convolution,
    prelu_by_parts,
    clamp_into_producer,
)
FUSIONS: tuple[Fusion, ...] = (
    fold_constants,
    spelled_function,
    padding_into_convolutions,
    prelu_by_parts,
    clamp_into_producer,
    hard_sigmoid,
    gate_into_convolution,
    affine_into_affine,
    affine_into_layer_before,
    affine_into_layers_after,
    factor_into_matmul,
    attention_of_products,
    attention_by_numbers,
    sum_behind_layer,
    flatten_before_layers,
)
