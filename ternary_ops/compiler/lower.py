# SPDX-License-Identifier: Apache-2.0
"""From steps to a program: which values are uint8, with which ranges, and the nodes that follow.

A value is quantized when a layer with uint8 activations reads it, to the widest range of such
layers; max pools, concat, resizing and what only moves values pass the question on to their
readers. A value that no layer owns but that an add, a product, a function or an average would read
as uint8 takes the `output_range` of the layer that makes it, or the range that calibrate saw of a
value without a layer. Where calibrate saw none, as in networks of earlier versions, it takes a
range that follows from its operands, with a warning: that may use few of the 256 codes. All others
stay float: the edges of the network, whatever float layers touch, and what a BatchNorm reads whose
scales would make rounding show. quantize and dequantize nodes appear where a reader needs the other
form.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ternary_ops.compiler.fuse import Bounds, Step
from ternary_ops.compiler.read_layers import Layer, Range, range_of
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Array, Params, Weight
from ternary_ops.reference.activations import over_codes
from ternary_ops.reference.arithmetic import affine_params, fine_params

_log = logging.getLogger(__name__)
_KEEPS_RANGE = (
    "max_pool2d",
    "flatten",
    "slice",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "resize",
    "unflatten",
)
_FLOATS = ("softmax", "layer_norm")
_GAIN = 1.0  # rounding of what a BatchNorm reads must not show more than that of what it makes
_CHEAP = 100  # weights of a filter over an image: 3 x 5 x 5 values of colour


def lower(steps: Sequence[Step], shape: Sequence[int]) -> Graph:
    """The program of `steps` for inputs like `shape`, [N, C, H, W] or [N, K].

    Raises UnsupportedModel that names every layer whose range is not set.
    """
    _collect_ranges(steps)
    emitter = _Emitter(shape)
    for step in steps:
        emitter.emit(step)
    emitter.as_float(steps[-1])
    if emitter.unset:
        names = ", ".join(sorted(emitter.unset))
        raise UnsupportedModel(
            need(
                "layers with uint8 activations need their ranges",
                f"none for {names}",
                "Call calibrate(model, batches) first, with samples that reach these layers.",
            )
        )
    if emitter.derived:
        _log.warning(
            "ranges derived from operands, which may be far too wide, since none was observed: %s. "
            "Call calibrate(model, batches) again.",
            ", ".join(sorted(emitter.derived)),
        )
    return Graph(_used(emitter.nodes), tuple(emitter.weights))


def _used(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Without what nobody reads: codes of a value that all its readers took as floats."""
    live = {len(nodes) - 1}
    for i in range(len(nodes) - 1, 0, -1):
        if i in live:
            live.update(nodes[i].inputs)
    number = {old: new for new, old in enumerate(sorted(live | {0}))}
    return tuple(
        replace(nodes[old], inputs=tuple(number[j] for j in nodes[old].inputs)) for old in number
    )


def _collect_ranges(steps: Sequence[Step]) -> None:
    """Fill `wanted` and `flexible`, readers first."""
    for step in reversed(steps):
        for user in step.users:
            if user.op in (*_KEEPS_RANGE, "concat"):
                if user.op != "resize" or user.inputs[0] is step:  # the second gives its size only
                    step.wanted = _widest(step.wanted, user.wanted)
                    step.flexible |= user.flexible
                    step.fine = _widest(step.fine, user.fine)
            elif user.op == "activation" or _normalizes(user, step):
                step.flexible |= user.flexible or user.wanted is not None
            elif user.op in _FLOATS:
                continue
            elif user.layer is None:
                step.flexible = True
            elif user.layer.integer:
                if user.inputs[0] is step and user.layer.fine:
                    step.fine = _widest(step.fine, user.layer.input_range)
                elif user.inputs[0] is step:
                    step.wanted = _widest(step.wanted, user.layer.input_range)
                if step in user.inputs[1:]:
                    step.flexible = True


def _normalizes(user: Step, step: Step) -> bool:
    """True for a BatchNorm that may read codes of a joined value. One behind a layer has no range
    to read: calibrate sees the end of the layer's chain alone.
    """
    layer = user.layer
    if layer is None or not layer.follows or step.layer is not None or step in user.inputs[1:]:
        return False
    read, made = step.observed, user.wanted or user.observed
    return read is None or made is None or _gain(layer, read, made) <= _GAIN


def _gain(layer: Layer, read: Range, made: Range) -> float:
    """By how much rounding to codes of the range `read`, scaled by a layer, exceeds rounding to
    those of the range `made`; root mean square over channels.
    """
    steps = _affine(read)[0] * layer.weight.effective_scale(None) / _affine(made)[0]
    return float(np.sqrt(np.mean(np.square(steps, dtype=np.float64))))


def _widest(a: Range | None, b: Range | None) -> Range | None:
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])


def _is_cheap(step: Step) -> bool:
    """True for a convolution of the image: making it twice costs less than rounding it."""
    layer = step.layer
    if layer is None or layer.follows or step.op != "conv2d" or len(step.inputs) > 1:
        return False
    return step.inputs[0].op == "input" and math.prod(layer.weight.shape[1:]) <= _CHEAP


def _affine(bounds: Range) -> Params:
    scale, zp = affine_params(*bounds)
    return float(scale), zp


class _Emitter:
    """Appends nodes; knows of every step its node and whether that made uint8."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.nodes = [Node("input", (), {"c": shape[1], "rank": len(shape)})]
        self.weights: list[Weight] = []
        self.unset: set[str] = set()
        self.derived: set[str] = set()
        self._made: dict[Step, tuple[int, Params | None]] = {}
        self._other_form: dict[Step, int] = {}  # its quantize or dequantize node
        self._fine: dict[tuple[Step, Params], int] = {}
        self._weight_index: dict[Weight, int] = {}

    def emit(self, step: Step) -> None:
        """Append the nodes of a step."""
        if step.op == "input":
            self._made[step] = 0, None
        elif step.op in _FLOATS:
            attrs = dict(step.attrs)
            if step.layer is not None:
                attrs["w"] = self._weight(step.layer.weight)
            self._made[step] = self._node(step.op, [self.as_float(step.inputs[0])], attrs), None
        elif step.layer is not None:
            self._emit_layer(step, step.layer)
        elif step.op in _KEEPS_RANGE:
            integer = step.wanted is not None or self._is_uint8(step.inputs[0])
            integer &= step.fine is None
            x = self._read(step.inputs[0], integer)
            y = self._params_of(step.inputs[0]) if integer else None
            sizes = [self._made[like][0] for like in step.inputs[1:]]
            self._made[step] = self._append(step, [x, *sizes]), y
        else:
            integer = any(map(self._is_uint8, step.inputs)) and all(map(self._fits, step.inputs))
            integer &= step.fine is None
            if step.op == "concat":  # it moves values as they come: codes only for who reads codes
                integer &= step.flexible or step.wanted is not None
            y = self._output(step) if integer else None
            inputs = [self._read(x, integer) for x in step.inputs]
            self._made[step] = self._append(step, inputs, y=y), y

    def as_float(self, step: Step) -> int:
        """The node of a step's value as floats."""
        node, y = self._made[step]
        if y is None:
            return node
        if step not in self._other_form:
            made = self.nodes[node]
            self._other_form[step] = (
                self._node(made.op, made.inputs, {**made.attrs, "y": None})
                if _is_cheap(step)
                else self._node("dequantize", [node], {})
            )
        return self._other_form[step]

    def _as_fine(self, step: Step, bounds: Range) -> int:
        """The node of a step's value in eleven bits."""
        scale, zp = fine_params(*bounds)
        key = step, (float(scale), zp)
        if key not in self._fine:
            attrs = {"y": key[1], "fine": True}
            self._fine[key] = self._node("quantize", [self.as_float(step)], attrs)
        return self._fine[key]

    def _as_uint8(self, step: Step) -> int:
        node, y = self._made[step]
        if y is not None:
            return node
        if step not in self._other_form:
            attrs = {"y": self._params_of(step)}
            self._other_form[step] = self._node("quantize", [node], attrs)
        return self._other_form[step]

    def _read(self, step: Step, integer: bool) -> int:
        return self._as_uint8(step) if integer else self.as_float(step)

    def _is_uint8(self, step: Step) -> bool:
        return self._made[step][1] is not None

    def _fits(self, step: Step) -> bool:
        """True for a value that is uint8 or whose range is known."""
        return self._is_uint8(step) or (step.wanted or step.fine) is not None

    def _params_of(self, step: Step) -> Params:
        """Scale and zero point of a step's value where it is read as uint8."""
        y = self._made[step][1]
        if y is not None:
            return y
        bounds = step.wanted or step.fine
        if bounds is None:
            raise ValueError("a value without a range was read as uint8")
        return _affine(bounds)

    def _emit_layer(self, step: Step, layer: Layer) -> None:
        x, *others = step.inputs
        if layer.integer and layer.input_range is None:
            self.unset.add(layer.weight.name)
        follows = layer.follows and self._is_uint8(x)
        integer = (layer.integer and self._fits(x)) or follows
        known = step.wanted is not None or all(map(self._fits, others))
        y = self._output(step) if integer and known else None
        weight = layer.weight if step.slope is None else replace(layer.weight, slope=step.slope)
        attrs = {**step.attrs, "w": self._weight(weight), "clamp": step.clamp, "y": y}
        if integer and layer.fine and layer.input_range is not None:
            inputs = [self._as_fine(x, layer.input_range)]
        else:
            inputs = [self._read(x, integer)]
        inputs += [self._beside(other, integer, y is None) for other in others]
        self._made[step] = self._node(step.op, inputs, attrs), y

    def _beside(self, step: Step, integer: bool, float_sum: bool) -> int:
        """The node of a gate or residual: uint8 beside integers, unless it was made as floats to be
        read precisely, or it joins floats that are there or cost next to nothing.
        """
        precise = step.fine is not None
        if float_sum:
            precise |= not self._is_uint8(step) or _is_cheap(step)
        return self._read(step, integer and self._fits(step) and not precise)

    def _output(self, step: Step) -> Params | None:
        """Scale and zero point that an integer step writes; None where floats are read."""
        if step.fine is not None:
            return None
        if step.wanted is not None:
            return _affine(step.wanted)
        if not step.flexible:
            return None
        if step.observed is not None:
            return _affine(step.observed)
        if step.op in ("avg_pool2d", "adaptive_avg_pool2d"):
            return self._params_of(step.inputs[0])  # an average stays in the range
        layer = step.layer
        if layer is not None and not layer.follows and not step.attrs.get("gate"):
            if layer.output_range is None:
                self.unset.add(layer.weight.name)
                return None
            return _affine(layer.output_range)
        return _affine(self._follow(step))

    def _follow(self, step: Step) -> Range:
        """A range that a step's value cannot leave, from those of its operands."""
        params = [self._params_of(x) for x in step.inputs]
        ranges = [range_of(*p) for p in params]
        if step.op == "activation":
            return _finite_ends(over_codes(step.attrs["fn"], step.attrs["params"], *params[0]))
        if step.op == "concat":
            return min(lo for lo, _ in ranges), max(hi for _, hi in ranges)
        if step.place:
            self.derived.add(step.place)
        if step.op == "mul":
            corners = [a * b for a in ranges[0] for b in ranges[1]]
            return _clamped((min(corners), max(corners)), step.clamp)
        if step.attrs.get("gate"):  # a share between 0 and 1 of the gate
            ranges[:2] = [(min(ranges[1][0], 0.0), max(ranges[1][1], 0.0))]
        elif step.layer is not None:
            ranges[0] = step.layer.image_of(ranges[0])
        lo, hi = (sum(ends) for ends in zip(*ranges, strict=True))
        return _clamped((lo, hi), step.clamp)

    def _append(self, step: Step, inputs: Sequence[int], **more: Any) -> int:
        attrs = {**step.attrs, **more}
        if step.op in ("add", "mul", "clamp"):
            attrs["clamp"] = step.clamp
        return self._node(step.op, inputs, attrs)

    def _node(self, op: str, inputs: Sequence[int], attrs: dict[str, Any]) -> int:
        self.nodes.append(Node(op, tuple(inputs), attrs))
        return len(self.nodes) - 1

    def _weight(self, weight: Weight) -> int:
        if weight not in self._weight_index:
            self._weight_index[weight] = len(self.weights)
            self.weights.append(weight)
        return self._weight_index[weight]


def _finite_ends(values: Array) -> Range:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _clamped(bounds: Range, clamp: Bounds) -> Range:
    (lo, hi), (least, most) = bounds, clamp
    if least is not None:
        lo, hi = max(lo, least), max(hi, least)
    if most is not None:
        lo, hi = min(lo, most), min(hi, most)
    return lo, hi
