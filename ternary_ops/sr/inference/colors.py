# SPDX-License-Identifier: Apache-2.0
"""Programs of 8-bit networks that keep colors and borders as they are. No torch.

Ranges that photos gave to activations cut off what saturated colors and white corners need, and
ranges that are wide enough for those cost every photo. So a network sees neither:

    m = local mean of x
    x' = x - excess(m)                  what of each channel's chroma lies beyond a bound
    r = network(x') - bilinear(x')      what the network adds to interpolation
    y = bilinear(x) + shrunk(r)         what rounding alone may add is nothing

x' is continued by one pixel on each side, where the network would surround it with zeros, and the
last layer leaves its outermost pixels out. Where chroma lies within the bound x' is x.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Weight
from ternary_ops.runtime import Program
from ternary_ops.sr.inference.fidelity import FAR, colors
from ternary_ops.sr.inference.pretrained import facts

# Of 12 x 12 pixels at every second one, interpolated between: nothing farther than 7 pixels enters
# the mean at a pixel, and at borders the zeros beyond do not count.
_WINDOW, _STEP, _BESIDE = 12, 2, 5
_LUMA = np.array([0.299, 0.587, 0.114])
_MOST = 2.25 / 255  # that a flat color may be off before it is rounded
_SIDES = (20, 48)  # of images of one color: what a network makes of one depends on its size
_AT_ONCE = 128
_NONE = (None, None)
# The image in eleven bits (fine): of 0..1 in 247 steps of eight, since flat colors with less chroma
# lie between those of 8 bits, and a step of those is a quarter of what they may be off.
_FINE = (1 / 247, 4)


def keep_colors(program: Program, chroma: float, rounding: float) -> Program:
    """The program with its input's chroma bounded, its borders continued, and a last bias with
    which flat colors come out as they went in.

    chroma: largest difference between a channel's local mean and luma that the network is given;
    white is 1. rounding: what is taken for it in what the network adds to interpolation, levels of
    255. The 4,913 colors of `fidelity.colors` are run to find the bias.

    Raises BadConfig for a bound outside 0..1, UnsupportedModel unless the program takes RGB,
    quantizes it first and ends in a 3x3 convolution clamped to 0..1 and a pixel shuffle.
    """
    if not 0 <= chroma <= 1:
        raise BadConfig(need("chroma as a bound in 0..1", chroma, "0.1 suits photos."))
    if not 0 <= rounding <= 2:
        raise BadConfig(need("rounding of 0 to 2 levels", rounding, "0.2 costs photos nothing."))
    _check(program.graph)
    free = _around(program.graph, chroma, rounding, _NONE)
    low, high = _off(Program(free, program.sample))
    settled = _with_last_bias(program.graph, -_needed(low, high))
    return Program(_around(settled, chroma, rounding, (0.0, 1.0)), program.sample)


def _check(graph: Graph) -> None:
    nodes = graph.nodes
    first, last, end = nodes[1], nodes[-2], nodes[-1]
    fits = nodes[0].attrs["c"] == 3 and first.op == "quantize"
    fits = fits and not any(0 in node.inputs for node in nodes[2:])
    fits &= all(n.op == "conv2d" and graph.weight(n).kind == "int8" for n in nodes if 1 in n.inputs)
    fits = fits and end.op == "pixel_shuffle" and last.op == "conv2d" and len(last.inputs) == 1
    fits = fits and last.attrs["clamp"] == (0.0, 1.0) and last.attrs["padding"] == (1, 1)
    if not fits or graph.weight(last).shape[1:3] != (3, 3) or graph.weight(last).bias is None:
        got = f"{nodes[1].op} ... {last.op}, {end.op}"
        do = "Pass a program that sr.to_program made of a quantized network."
        raise UnsupportedModel(
            need("an RGB program that quantizes the image first and shuffles last", got, do)
        )


class _Nodes:
    """Nodes of the new graph, and weights behind those of the old one."""

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        self.nodes: list[Node] = []
        self.weights = list(weights)

    def add(self, op: str, *inputs: int, **attrs: Any) -> int:
        """Its number."""
        self.nodes.append(Node(op, inputs, attrs))
        return len(self.nodes) - 1

    def mean(self, x: int, kernel: tuple[int, int], **attrs: Any) -> int:
        """Average of pixels, those beyond the border left out."""
        return self.add("avg_pool2d", x, kernel=kernel, include_pad=False, **attrs)

    def mix(self, name: str, matrix: Any, *inputs: int, bias: Any = None, **attrs: Any) -> int:
        """Channels mixed by a matrix [O, I]."""
        values = np.asarray(matrix, np.float32)[:, None, None, :]
        given = None if bias is None else np.asarray(bias, np.float32)
        self.weights.append(Weight(name, "float", values, None, given))
        return self.add("conv2d", *inputs, w=len(self.weights) - 1, **attrs)


def _around(graph: Graph, chroma: float, rounding: float, clamp: Any) -> Graph:
    """The graph between what bounds its colors and what gives them back."""
    new = _Nodes(graph.weights)
    x = new.add("input", c=3, rank=4)
    safe = new.add("add", x, _less_chroma(new, x, chroma), clamp=(0.0, 1.0))
    number = {0: _continued(new, safe)}
    for i, node in enumerate(graph.nodes[1:], 1):
        attrs = dict(node.attrs)
        if i == 1:
            attrs = {"y": _FINE, "fine": True}
        if i == len(graph.nodes) - 2:
            attrs |= {"padding": (0, 0), "clamp": _NONE}
        number[i] = new.add(node.op, *(number[j] for j in node.inputs), **attrs)
    zoom = tuple(float(side) for side in graph.nodes[-1].attrs["factor"])
    minus = new.add("activation", safe, fn="affine", params=(-1.0, 0.0))
    lower = new.add("resize", minus, mode="bilinear", zoom=zoom)
    detail = new.add("add", number[len(graph.nodes) - 1], lower)
    small = new.add("clamp", detail, clamp=(-rounding / 255, rounding / 255))
    less = new.add("activation", small, fn="affine", params=(-1.0, 0.0))
    kept = new.add("add", detail, less)
    larger = new.add("resize", x, mode="bilinear", zoom=zoom)
    new.add("add", larger, kept, clamp=clamp)
    return Graph(tuple(new.nodes), tuple(new.weights))


def _less_chroma(new: _Nodes, x: int, bound: float) -> int:
    """Correction to add to x so that the chroma of its local mean is bounded."""
    rows = new.mean(x, (1, _WINDOW), stride=(1, _STEP), padding=(0, _BESIDE))
    cells = new.mean(rows, (_WINDOW, 1), stride=(_STEP, 1), padding=(_BESIDE, 0))
    difference = np.eye(3) - _LUMA
    both = np.concatenate([difference, -difference])
    beyond = new.mix("colors.beyond", both, cells, bias=[-bound] * 6, clamp=(0.0, None))
    less = new.mix("colors.less", np.concatenate([-np.eye(3), np.eye(3)], 1), beyond)
    return new.add("resize", less, x, mode="bilinear")


def _continued(new: _Nodes, x: int) -> int:
    """x with one pixel more on each side, like those at its border: two means of two pixels make
    an image larger by one on each side, and what they blur is put back inside.
    """
    wide = new.mean(x, (2, 2), stride=(1, 1), padding=(1, 1))
    blurred = new.mean(wide, (2, 2), stride=(1, 1), padding=(1, 1))
    inside = new.mean(wide, (2, 2), stride=(1, 1))
    both = new.add("concat", x, inside)
    sharp = np.concatenate([np.eye(3), -np.eye(3)], 1)
    return new.mix("colors.continued", sharp, both, blurred, padding=(1, 1))


def _off(program: Program) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and most that each of the last layer's channels adds to a flat color; what the clamp to
    0..1 takes away does not count.
    """
    scale = facts(program).scale
    grays = np.repeat(np.arange(256.0)[:, None], 3, 1)
    many = np.concatenate([colors(17), grays]) / 255
    lows, highs = [], []
    far = FAR * scale
    for side in _SIDES:
        for start in range(0, len(many), _AT_ONCE):
            wanted = many[start : start + _AT_ONCE, :, None, None]
            x = np.broadcast_to(wanted, (len(wanted), 3, side, side)).astype(np.float32)
            off = program(x)[:, :, far:-far, far:-far].astype(np.float64) - wanted
            n, c, h, w = off.shape
            # [N, 3, H, scale, W, scale] -> channels of the last layer, as a pixel shuffle has them
            off = off.reshape(n, c, h // scale, scale, w // scale, scale)
            low, high = off.min((2, 4)).reshape(n, -1), off.max((2, 4)).reshape(n, -1)
            levels = np.repeat(wanted[..., 0, 0], scale**2, 1)
            lows.append(np.where(levels > _MOST, low, 0).min(0))
            highs.append(np.where(levels < 1 - _MOST, high, 0).max(0))
    return np.min(lows, 0), np.max(highs, 0)


def _needed(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much a channel is too high: as little as brings all colors within bounds, and half
    way between the farthest where none does.
    """
    least, most = high - _MOST, low + _MOST
    shift = np.clip(0.0, least, np.maximum(least, most))
    return np.where(least > most, (low + high) / 2, shift)


def _with_last_bias(graph: Graph, change: NDArray[np.float64]) -> Graph:
    index = graph.nodes[-2].attrs["w"]
    old = graph.weights[index]
    bias = np.asarray(old.bias, np.float64) + change
    weights = list(graph.weights)
    weights[index] = replace(old, bias=bias.astype(np.float32))
    return replace(graph, weights=tuple(weights))
