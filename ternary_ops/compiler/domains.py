# SPDX-License-Identifier: Apache-2.0
"""Third pass: which values are uint8 or uint11, with which ranges, and which stay float.

A value is quantized when a layer with uint8 activations reads it, to the widest range of such
layers; max pools, concat, resizing and what only moves values pass the question on to their
readers. A value that no layer owns but that an add, a product, a function or an average would read
as uint8 takes the `output_range` of the layer that makes it, or the range that calibrate saw of a
value without a layer. Where calibrate saw none, as in networks of earlier versions, it takes a
range that follows from its operands, with a warning: that may use few of the 256 codes. All others
stay float: the edges of the network, whatever float layers touch, and what a BatchNorm reads whose
scales would make rounding show. So do values that some reader takes as floats, as a LayerNorm does,
and what adds up to floats: a sum of many parts, like the residual stream of a transformer, would
lose all parts that are smaller than a step of its codes. Of a long stream every sum would be
rounded once more (streams.py). Readers of codes get it quantized.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

from ternary_ops.compiler.read_layers import Layer, Range, range_of
from ternary_ops.compiler.step import CODES, FINE, FLOATS, Step
from ternary_ops.compiler.streams import long_sums
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.graph.nodes import Bounds
from ternary_ops.program.ops import OPS
from ternary_ops.program.ops.attention import MOST_SUMMED
from ternary_ops.program.weight import Array, Params
from ternary_ops.reference.activations import over_codes
from ternary_ops.reference.arithmetic import affine_params

_log = logging.getLogger(__name__)
_GAIN = 1.0  # rounding of what a BatchNorm reads must not show more than that of what it makes
_CHEAP = 100  # weights of a filter over an image: 3 x 5 x 5 values of colour


class Uncalibrated(UnsupportedModel):
    """Layers with uint8 activations have no range."""


def choose_domains(steps: Sequence[Step]) -> None:
    """Set `reads` and `y` of every step: first what its readers ask for, last to first, then what
    it reads and makes, first to last.

    Raises Uncalibrated, which names every layer whose range is not set.
    """
    for step in long_sums(steps):
        step.precise = True
    for step in reversed(steps):
        for user in step.users:
            _ask(step, user)
    chooser = _Chooser()
    for step in steps:
        chooser.choose(step)
    if chooser.unset:
        names = ", ".join(sorted(chooser.unset))
        raise Uncalibrated(
            need(
                "ranges of all layers with uint8 activations",
                f"none for {names}",
                "Call calibrate(model, batches) first, with samples that reach these layers.",
            )
        )
    if chooser.derived:
        _log.warning(
            "ranges derived from operands, which may be far too wide, since none was observed: %s. "
            "Call calibrate(model, batches) again.",
            ", ".join(sorted(chooser.derived)),
        )


def codes_of(step: Step) -> Params:
    """Scale and zero point of a step's value where it is read as uint8."""
    if step.y is not None:
        return step.y
    bounds = step.wanted or step.fine or _before_moves(step).observed
    if bounds is None:
        raise ValueError("a value without a range was read as uint8")
    return _affine(bounds)


def is_cheap(step: Step) -> bool:
    """True for a convolution of the image: making it twice costs less than rounding it."""
    layer = step.layer
    if layer is None or layer.follows or step.op != "conv2d" or len(step.inputs) > 1:
        return False
    return step.inputs[0].op == "input" and math.prod(layer.weight.shape[1:]) <= _CHEAP


def _ask(step: Step, user: Step) -> None:
    """Collect a reader's requirements on a step's value."""
    if user.op == "output":
        return
    if all(x is not step or i in OPS[user.op].sized_by for i, x in enumerate(user.inputs)):
        return
    layer = user.layer
    if _reads_floats(user) or (layer is not None and not layer.integer and not layer.follows):
        step.precise = True
    elif user.op == "attention":
        codes = step not in user.inputs[3:] and _may_read_codes(user)
        step.flexible |= codes
        step.precise |= not codes
    elif user.op == "concat" or OPS[user.op].keeps_params:
        step.wanted = _widest(step.wanted, user.wanted)
        step.flexible |= user.flexible
        step.precise |= user.precise
        step.fine = _widest(step.fine, user.fine)
    elif user.op == "activation" or _normalizes(user, step):
        step.flexible |= user.flexible or user.wanted is not None
    elif layer is None:
        _ask_joined(step, user)
    elif layer.integer:
        if user.inputs[0] is step and layer.fine:
            step.fine = _widest(step.fine, layer.input_range)
        elif user.inputs[0] is step:
            step.wanted = _widest(step.wanted, layer.input_range)
        if step in user.inputs[1:]:
            _ask_joined(step, user)


def _ask_joined(step: Step, user: Step) -> None:
    """Of a sum, a product or an average: codes where it makes codes. What it makes as floats it
    reads as floats, since codes would lose what no reader asks to lose; an average hides that.
    """
    codes = not user.precise and (user.flexible or user.wanted is not None)
    codes |= OPS[user.op].averages
    step.flexible |= codes
    step.precise |= not codes


def _reads_floats(step: Step) -> bool:
    operator = OPS[step.op]
    return operator.floats_only or step.attrs.get("fn") in operator.float_functions


def _layers_alone(step: Step) -> bool:
    """True where nothing but layers with uint8 activations reads a value, as it is or elsewhere."""
    for user in step.users:
        layer = user.layer
        if layer is not None and not layer.follows:
            if not layer.integer or layer.fine or step in user.inputs[1:]:
                return False
        elif user.op == "output" or not OPS[user.op].rearranges or not _layers_alone(user):
            return False
    return True


def _may_read_codes(attention: Step) -> bool:
    """True for an attention whose result layers round, where every head has whole packets of four
    channels and its sums fit 32 bits.
    """
    if attention.precise or attention.wanted is None:
        return False
    heads, tokens = attention.attrs["heads"], attention.attrs["tokens"]
    shapes = [x.shape for x in attention.inputs[:3]]
    if tokens > MOST_SUMMED or None in shapes:
        return False
    widths = [shape[1] // heads for shape in shapes if shape is not None]
    return max(widths) <= MOST_SUMMED and all(width % 4 == 0 for width in widths)


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


class _Chooser:
    """Chooses step by step; remembers layers without ranges, and values whose range it derived."""

    def __init__(self) -> None:
        self.unset: set[str] = set()
        self.derived: set[str] = set()

    def choose(self, step: Step) -> None:
        """Set `reads` and `y` of one step, those before it are set."""
        if step.layer is not None and OPS[step.op].is_layer:
            self._choose_layer(step, step.layer)
        elif step.op in ("input", "output") or _reads_floats(step):
            step.reads = [FLOATS] * len(step.inputs)
            if step.op == "layer_norm" and _layers_alone(step):
                step.y = self._output(step)
        elif step.op == "attention":
            operands, biases = step.inputs[:3], step.inputs[3:]
            codes = any(x.y is not None for x in operands) and all(map(_fits, operands))
            codes &= _may_read_codes(step)
            step.y = self._output(step) if codes else None
            step.reads = [*[CODES if codes else FLOATS] * 3, *[FLOATS] * len(biases)]
        elif 0 in OPS[step.op].sized_by:
            step.reads = [None] * len(step.inputs)
        elif OPS[step.op].keeps_params:
            x, *sized_like = step.inputs
            asked = step.wanted is not None and not step.precise
            codes = (asked or x.y is not None) and step.fine is None
            codes = codes and not _border_outside(step, x)
            step.reads = [CODES if codes else FLOATS, *[None] * len(sized_like)]
            step.y = codes_of(x) if codes else None
        else:
            self._choose_joined(step)

    def _choose_joined(self, step: Step) -> None:
        """Sums, products, functions, averages, clamps and concatenations."""
        fits = all(_fits(x) or _is_gate(x, step) for x in step.inputs)
        codes = any(x.y is not None for x in step.inputs) and fits and step.fine is None
        if step.op == "concat":  # it moves values as they come: codes only for who reads codes
            codes &= (step.flexible or step.wanted is not None) and not step.precise
            # A class token may be much smaller than the tokens it joins: codes would lose it.
            codes &= step.attrs.get("axis", 1) == 1 or all(x.y is not None for x in step.inputs)
        step.y = self._output(step) if codes else None
        step.reads = [CODES if codes else FLOATS] * len(step.inputs)

    def _choose_layer(self, step: Step, layer: Layer) -> None:
        x, *others = step.inputs
        if layer.integer and layer.input_range is None:
            self.unset.add(layer.weight.name)
        follows = layer.follows and x.y is not None
        codes = (layer.integer and _fits(x)) or follows
        known = (step.wanted or _whole_range(step)) is not None or all(map(_fits, others))
        step.y = self._output(step) if codes and known else None
        fine = codes and layer.fine and layer.input_range is not None
        step.reads = [FINE if fine else CODES if codes else FLOATS]
        step.reads += [_beside(other, codes, step.y is None) for other in others]

    def _output(self, step: Step) -> Params | None:
        """Scale and zero point that an integer step writes; None where floats are read."""
        if step.fine is not None or step.precise:
            return None
        if step.wanted is not None:
            # Layers may read a part of the value alone; others read all of it.
            own = _own_range(step) if step.flexible else None
            return _affine(_widest(step.wanted, own) or step.wanted)
        if not step.flexible:
            return None
        if step.observed is None and OPS[step.op].averages:
            return codes_of(step.inputs[0])
        if _owns_range(step) and step.layer is not None and step.layer.output_range is None:
            self.unset.add(step.layer.weight.name)
            return None
        return _affine(_whole_range(step) or self._follow(step))

    def _follow(self, step: Step) -> Range:
        """A range that a step's value cannot leave, from those of its operands."""
        params = [codes_of(x) for x in step.inputs]
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
            ranges[0] = step.layer.output_range or step.layer.image_of(ranges[0])
        lo, hi = (sum(ends) for ends in zip(*ranges, strict=True))
        return _clamped((lo, hi), step.clamp)


def _border_outside(step: Step, x: Step) -> bool:
    """True for a border of numbers that the codes of the image cannot say."""
    value = step.attrs.get("value")
    if step.op != "pad" or step.attrs["mode"] != "constant" or value is None:
        return False
    lo, hi = range_of(*codes_of(x))
    return not lo <= value <= hi


def _owns_range(step: Step) -> bool:
    """True for a value whose range its layer keeps."""
    layer = step.layer
    return layer is not None and not layer.follows and not step.attrs.get("gate")


def _own_range(step: Step) -> Range | None:
    """What calibrate saw of a value that no layer reads whole."""
    return step.layer.output_range if step.layer and _owns_range(step) else step.observed


def _whole_range(step: Step) -> Range | None:
    """What calibrate saw of all that a step makes; of a sum outside a chain it saw no range."""
    if step.observed is not None:
        return step.observed
    whole = step.chain is not None or len(step.inputs) == 1
    return _own_range(step) if whole else None


def _fits(step: Step) -> bool:
    """True for a value that is uint8 or whose range is known."""
    return step.y is not None or (step.wanted or step.fine) is not None


def _is_gate(x: Step, product: Step) -> bool:
    """True for floats of known range that a product spreads over an image: rounding them costs less
    than the image's codes as floats.
    """
    made = _before_moves(x)
    if product.op != "mul" or made.observed is None or made.shape is None:
        return False
    sizes = [other.shape for other in product.inputs if other is not x]
    return all(shape is not None and math.prod(made.shape) < math.prod(shape) for shape in sizes)


def _before_moves(step: Step) -> Step:
    """What a step moves to other places."""
    while step.observed is None and len(step.inputs) == 1 and OPS[step.op].rearranges:
        step = step.inputs[0]
    return step


def _beside(step: Step, integer: bool, float_sum: bool) -> str:
    """Domain in which a gate or residual is read: uint8 beside integers, unless it was made as
    float for precision, or joins floats that exist already or cost next to nothing.
    """
    precise = step.fine is not None
    if float_sum:
        precise |= step.y is None or is_cheap(step)
    return CODES if integer and _fits(step) and not precise else FLOATS


def _widest(a: Range | None, b: Range | None) -> Range | None:
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])


def _affine(bounds: Range) -> Params:
    scale, zp = affine_params(*bounds)
    return float(scale), zp


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
