# SPDX-License-Identifier: Apache-2.0
"""Random networks over every operator of a program: values, and the operators drawn on them.

What people build from these is in topologies.py; a seed gives the same network everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cases import activations, program_cases
from engine_access import Graph, Node, Weight
from programs import Builder

KINDS = ("float", "int8", "quads", "ternary", "fine", "mixed")
FUNCTIONS = {name: params for name, (params, _) in activations.FUNCTIONS.items()}
_BOUNDS = ((None, None), (None, None), (0.0, None), (0.0, None), (0.0, 1.5), (-1.0, 2.0))
_KERNELS = ((3, 3), (3, 3), (3, 3), (1, 1), (1, 1), (5, 5), (1, 5), (5, 1), (7, 3), (3, 1))


@dataclass(frozen=True)
class Val:
    """A value of the network that is being drawn. level: values of one level have one image size,
    whatever the input's; whole: it depends on the whole image.
    """

    id: int
    channels: int
    level: int
    floats: bool


class Draw:
    """Operators with drawn attributes. width: channels of the trunk."""

    def __init__(self, seed: int, kind: str, width: int, channels: int) -> None:
        self.rng = np.random.default_rng((seed, 7))
        self.kind, self.width = kind, width
        self.b = Builder(seed, c=channels)
        self.levels: dict[Any, int] = {}
        self.shared: dict[Any, int] = {}
        self.input = Val(0, channels, 0, True)

    # drawing

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def number(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    # numbers between operators

    def start(self) -> Val:
        return self.input if self.kind == "float" else self.codes(self.input)

    def codes(self, x: Val) -> Val:
        """uint8."""
        if not x.floats:
            return x
        return replace(x, id=self.b("quantize", x.id, y=self.b.params()), floats=False)

    def real(self, x: Val) -> Val:
        """Floats."""
        return x if x.floats else replace(x, id=self.b("dequantize", x.id), floats=True)

    def alike(self, x: Val, other: Val) -> Val:
        """In the form of the other."""
        return self.real(x) if other.floats else self.codes(x)

    def _y(self, x: Val, attrs: dict[str, Any], low: float = -3.0, high: float = 3.0) -> bool:
        """Give the output a range; True: it is floats."""
        lo, hi = attrs.get("clamp", (None, None))
        low, high = max(low, -9.0 if lo is None else lo), min(high, 9.0 if hi is None else hi)
        if x.floats or (self.kind == "mixed" and self.chance(0.2)):
            return True
        attrs["y"] = self.b.params(low, max(high, low + 0.5))
        return False

    def level(self, x: Val, *key: Any) -> int:
        """The level of what this operator makes of x's."""
        return self.levels.setdefault((x.level, *key), len(self.levels) + 1)

    # layers

    def conv(
        self,
        x: Val,
        o: int | None = None,
        kernel: tuple[int, int] | None = None,
        stride: int = 1,
        groups: int = 1,
        others: tuple[Val, ...] = (),
        gate: bool = False,
        valid: bool = False,
    ) -> Val:
        """valid: any padding, so that the image's size changes."""
        x = self._fine(x) if groups == 1 and not x.floats else x
        fine = x.id >= 0 and self.b.nodes[x.id].attrs.get("fine", False)
        kernel = kernel or self.pick(*_KERNELS)
        dilation = (1, 1) if stride > 1 or self.chance(0.85) else (self.number(1, 3), 2)
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        if valid:
            padding = (self.number(0, 4), self.number(0, 4))
        o = o or self.width
        same = stride == 1 and not valid
        attrs: dict[str, Any] = {
            "padding": padding,
            "stride": (stride, stride) if not valid else (stride, self.number(1, 2)),
            "dilation": dilation,
            "groups": groups,
            "gate": gate,
        }
        if not same and self.chance(0.3):
            attrs["more_padding"] = (self.number(0, 2), self.number(0, 1))
        slopes = 0 if gate or not self.chance(0.12) else self.pick(1, o)
        if not slopes:
            attrs["clamp"] = self.pick(*_BOUNDS)
        floats = self._y(x, attrs)
        attrs["w"] = self._weight(x, fine, o, x.channels // groups, kernel, slopes)
        made = self.b("conv2d", x.id, *(v.id for v in others), **attrs)
        where = (
            x.level
            if same
            else self.level(
                x, kernel, padding, attrs["stride"], dilation, attrs.get("more_padding", (0, 0))
            )
        )
        return Val(made, o, where, floats)

    def _fine(self, x: Val) -> Val:
        if self.kind != "fine" or not self.chance(0.4):
            return x
        real = self.real(x)
        return replace(x, id=self.b("quantize", real.id, y=self.b.fine_params(), fine=True))

    def _weight(
        self, x: Val, fine: bool, o: int, i: int, kernel: tuple[int, int], slopes: int
    ) -> int:
        """Sometimes filters that another layer has too."""
        if fine:
            form = "int8"
        elif x.floats:
            form = "float" if self.chance(0.8) else self.pick("int8", "ternary")
        else:
            forms = {"ternary": "ternary", "int8": "int8", "quads": "int8"}
            form = forms.get(self.kind) or self.pick("int8", "ternary")
        key = form, o, i, kernel, slopes
        if key in self.shared and self.chance(0.25):
            return self.shared[key]
        zeros = self.pick(0.75, 0.9, 0.95) if self.kind == "quads" else self.pick(0, 0.5, 0.9)
        bias = self.chance(0.8)
        if o * -(-i // 4) * kernel[0] * kernel[1] * (1 - zeros) < 8:
            zeros = 0  # nothing would be left
        made = self.b.weight(form, o, i, *kernel, bias=bias, zeros=float(zeros), slopes=slopes)
        self.shared[key] = made
        return made

    def linear(self, x: Val, o: int, residual: Val | None = None, features: int = 0) -> Val:
        attrs: dict[str, Any] = {"clamp": self.pick(*_BOUNDS)}
        floats = self._y(x, attrs)
        form = "float" if x.floats and self.chance(0.7) else self.pick("int8", "ternary")
        attrs["w"] = self.b.weight(form, o, features or x.channels, bias=self.chance(0.8))
        rest = () if residual is None else (residual.id,)
        return Val(self.b("linear", x.id, *rest, **attrs), o, x.level, floats)

    # what has no weights

    def clamp(self, x: Val) -> Val:
        attrs: dict[str, Any] = {"clamp": self.pick((0.0, None), (-1.0, 2.0), (None, 2.5))}
        floats = self._y(x, attrs)
        return replace(x, id=self.b("clamp", x.id, **attrs), floats=floats)

    def activation(self, x: Val, fn: str | None = None) -> Val:
        fn = fn or self.pick(*FUNCTIONS)
        if fn in activations.DOMAINS:  # towers of exponentials leave float32
            bounds = activations.DOMAINS[fn]
            x = replace(x, id=self.b("clamp", x.id, clamp=bounds, **self._kept(x)))
        attrs: dict[str, Any] = {}
        floats = self._y(x, attrs)
        made = self.b("activation", x.id, fn=fn, params=FUNCTIONS[fn], **attrs)
        return replace(x, id=made, floats=floats)

    def _kept(self, x: Val) -> dict[str, Any]:
        return {} if x.floats else {"y": self.b.params()}

    def add(self, a: Val, b: Val) -> Val:
        b = self.alike(self.like(b, a), a)
        attrs: dict[str, Any] = {"clamp": self.pick(*_BOUNDS)}
        floats = self._y(a, attrs)
        return replace(a, id=self.b("add", a.id, b.id, **attrs), floats=floats)

    def mul(self, a: Val, b: Val) -> Val:
        """b: of a's size, or with axes of size 1."""
        b = self.alike(b, a)
        attrs: dict[str, Any] = {"clamp": (-4.0, 4.0)}
        floats = self._y(a, attrs)
        return replace(a, id=self.b("mul", a.id, b.id, **attrs), floats=floats)

    def concat(self, *parts: Val) -> Val:
        first = parts[0]
        same = [self.alike(self.like(p, first), first) for p in parts]
        attrs: dict[str, Any] = {}
        if not first.floats:
            attrs["y"] = self.b.params()
            if self.chance(0.4):  # the range of a part, which can then lie in the whole's memory
                attrs["y"] = self.b.nodes[first.id].attrs.get("y") or attrs["y"]
        made = self.b("concat", *(p.id for p in same), **attrs)
        return replace(first, id=made, channels=sum(p.channels for p in same))

    def stack(self, axis: int, *parts: Val) -> Val:
        """Behind each other along rows (2) or columns (3)."""
        first = parts[0]
        same = [self.alike(self.like(p, first), first) for p in parts]
        y = {} if first.floats else {"y": self.b.nodes[first.id].attrs.get("y") or self.b.params()}
        made = self.b("concat", *(p.id for p in same), axis=axis, **y)
        return replace(first, id=made, level=self.level(first, "stack", axis, len(parts)))

    def max_pool(self, x: Val, kernel: int, stride: int, same: bool = True) -> Val:
        padding = kernel // 2 if same else self.number(0, kernel // 2)
        attrs = {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": (padding,) * 2}
        if not same:
            attrs["stride"] = (stride, self.number(1, 3))
        ceil = self.chance(0.3)
        made = self.b("max_pool2d", x.id, ceil=ceil, **attrs)
        kept = stride == 1 and same and kernel % 2 == 1
        return replace(
            x, id=made, level=x.level if kept else self.level(x, "max", *attrs.values(), ceil)
        )

    def avg_pool(self, x: Val, kernel: int, stride: int) -> Val:
        same = stride == 1 and kernel % 2 == 1
        padding = kernel // 2 if same else self.number(0, kernel // 2)
        attrs: dict[str, Any] = {
            "kernel": (kernel, kernel),
            "stride": (stride, stride),
            "padding": (padding, padding),
            "ceil": self.chance(0.3),
        }
        where = x.level if same else self.level(x, "avg", *attrs.values())
        divisor = self.number(1, 10) if self.chance(0.2) else None
        attrs |= {"include_pad": self.chance(0.5), "divisor": divisor}
        floats = self._y(x, attrs)
        return replace(x, id=self.b("avg_pool2d", x.id, **attrs), level=where, floats=floats)

    def adaptive(self, x: Val, size: tuple[int, int]) -> Val:
        attrs: dict[str, Any] = {"size": size}
        floats = self._y(x, attrs, -2.0, 2.0)
        made = self.b("adaptive_avg_pool2d", x.id, **attrs)
        return replace(x, id=made, level=self.level(x, "to", size), floats=floats)

    def flatten(self, x: Val) -> Val:
        return replace(x, id=self.b("flatten", x.id))

    def unflatten(self, x: Val) -> Val:
        return replace(x, id=self.b("unflatten", x.id))

    def slice(self, x: Val, begin: int, end: int) -> Val:
        made = self.b("slice", x.id, begin=begin, end=end)
        return replace(x, id=made, channels=end - begin)

    def channel_shuffle(self, x: Val, groups: int) -> Val:
        return replace(x, id=self.b("channel_shuffle", x.id, groups=groups))

    def pixel_shuffle(self, x: Val, factor: tuple[int, int], crop: tuple[int, int]) -> Val:
        made = self.b("pixel_shuffle", x.id, factor=factor, crop=crop)
        left = x.channels // (factor[0] * factor[1])
        return replace(x, id=made, channels=left, level=self.level(x, "up", factor, crop))

    def pixel_unshuffle(self, x: Val, factor: tuple[int, int]) -> Val:
        """Of an image made a multiple of the factor."""
        sized = self.resize(x, size=(factor[0] * self.number(2, 9), factor[1] * self.number(2, 9)))
        made = self.b("pixel_unshuffle", sized.id, factor=factor)
        return replace(
            sized,
            id=made,
            channels=x.channels * factor[0] * factor[1],
            level=self.level(sized, "down", factor),
        )

    def resize(
        self,
        x: Val,
        size: tuple[int, int] | None = None,
        zoom: tuple[float, float] | None = None,
    ) -> Val:
        mode = self.pick("nearest", "nearest-exact", "bilinear", "bicubic")
        align = mode[0] == "b" and zoom is None and self.chance(0.5)
        made = self.b("resize", x.id, mode=mode, align=align, size=size, zoom=zoom)
        return replace(x, id=made, level=self.level(x, "size", size, zoom))

    def like(self, x: Val, other: Val) -> Val:
        """Of the other's image size."""
        if x.level == other.level:
            return x
        mode = self.pick("nearest", "bilinear", "bicubic")
        align = mode != "nearest" and self.chance(0.3)
        made = self.b("resize", x.id, other.id, mode=mode, align=align)
        return replace(x, id=made, level=other.level)

    def _several(self, x: Val) -> Val:
        """Floats of two channels or more: of a single one, softmax and norms make one number."""
        real = self.real(x)
        return real if real.channels > 1 else self.conv(real, self.number(2, 5))

    def softmax(self, x: Val) -> Val:
        real = self._several(x)
        groups = self.pick(*(g for g in range(1, real.channels) if real.channels % g == 0))
        return replace(real, id=self.b("softmax", real.id, groups=groups))

    def along(self, x: Val) -> Val:
        """The largest or the smallest number of each pixel, or of each row of a channel."""
        axes = self.pick((1,), (3,), (1, 3))
        return replace(x, id=self.b("reduce", x.id, fn=self.pick("max", "min"), axes=axes))

    def layer_norm(self, x: Val) -> Val:
        real = self._several(x)
        w = self.b.weight("float", real.channels, 1, zeros=0.0)
        return replace(real, id=self.b("layer_norm", real.id, w=w, eps=1e-5))

    def case(self, x: Val, op: str) -> Val:
        """An operator with a case of its own (tests/cases)."""
        made: Val = program_cases()[op].draw(self, x)
        return made

    def graph(self, output: Val) -> Graph:
        """Everything that the output, as floats, depends on."""
        last = self.real(output)
        return trimmed(self.b.nodes, self.b.weights, last.id)


def trimmed(nodes: list[Node], weights: list[Weight], output: int) -> Graph:
    """A program of what `output` depends on."""
    used = {0, output}
    for i in range(output, 0, -1):
        if i in used:
            used |= set(nodes[i].inputs)
    order = sorted(used)
    place = {old: new for new, old in enumerate(order)}
    kept = [nodes[i] for i in order]
    layers = sorted({n.attrs["w"] for n in kept if "w" in n.attrs})
    number = {old: new for new, old in enumerate(layers)}
    made = []
    for node in kept:
        attrs = dict(node.attrs)
        if "w" in attrs:
            attrs["w"] = number[attrs["w"]]
        made.append(Node(node.op, tuple(place[j] for j in node.inputs), attrs))
    return Graph(tuple(made), tuple(weights[i] for i in layers))
