# SPDX-License-Identifier: Apache-2.0
"""Random programs for tests: every op of the format, values spread over the whole uint8 range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases import ProgramCase, matmul, program_cases, token_attention
from numpy.typing import NDArray

from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.weight import Weight


class Builder:
    """Append nodes and random weights; every method returns the index of what it added."""

    def __init__(self, seed: int, c: int, rank: int = 4) -> None:
        self.rng = np.random.default_rng(seed)
        self.weights: list[Weight] = []
        self.nodes = [Node("input", (), {"c": c, "rank": rank})]

    def __call__(self, op: str, *inputs: int, **attrs: Any) -> int:
        self.nodes.append(Node(op, inputs, attrs))
        return len(self.nodes) - 1

    def params(self, low: float = -3.0, high: float = 3.0) -> tuple[float, int]:
        """Scale and zero point of a range near [low, high]."""
        high *= self.rng.uniform(0.8, 1.2)
        scale = float(np.float32((high - low) / 255))
        return scale, int(np.clip(np.rint(-low / scale), 0, 255))

    def fine_params(self, low: float = -3.0, high: float = 3.0) -> tuple[float, int]:
        """The same for eleven bits."""
        scale, zp = self.params(low, high)
        return scale, min(max(zp, 4), 251)

    def weight(
        self,
        kind: str,
        o: int,
        i: int,
        r: int = 1,
        s: int = 1,
        bias: bool = True,
        zeros: float = 0.5,
        slopes: int = 0,
    ) -> int:
        """Filters that keep the variance of a unit input; a share `zeros` of the quads is empty."""
        shape = (o, r, s, i)
        if kind == "float":
            array: NDArray[Any] = self.rng.normal(size=shape).astype(np.float32)
        elif kind == "int8":
            array = self.rng.integers(-127, 128, shape).astype(np.int8)
        else:
            array = self.rng.integers(-1, 2, shape).astype(np.int8)
        empty = self.rng.random((o, r, s, -(-i // 4))) < zeros
        array = np.where(np.repeat(empty, 4, axis=3)[..., :i], 0, array).astype(array.dtype)
        power = np.sqrt((array.astype(np.float64) ** 2).sum(axis=(1, 2, 3)) + 1)
        scale = (self.rng.uniform(0.5, 2, o) / power).astype(np.float32)
        if kind == "float":
            array = array * scale[:, None, None, None]
        offset = self.rng.normal(size=o).astype(np.float32) if bias else None
        slope = self.rng.uniform(-0.5, 1.5, slopes).astype(np.float32) if slopes else None
        own = None if kind == "float" else scale
        self.weights.append(Weight(f"w{len(self.weights)}", kind, array, own, offset, slope))
        return len(self.weights) - 1

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), tuple(self.weights))


def image_program(seed: int = 0) -> Graph:
    """u8 from edge to edge, with every integer op: stem, pools, residual block, head."""
    b = Builder(seed, c=3)
    relu = (0.0, None)
    x = b("quantize", 0, y=b.params())
    stem = b.weight("int8", 18, 3, 5, 5)
    x = b("conv2d", x, w=stem, stride=(2, 2), padding=(2, 2), clamp=relu, y=b.params(0))
    x = b("max_pool2d", x, kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil=bool(seed % 2))
    wide = b.weight("ternary", 18, 18, 3, 3)
    y = b("conv2d", x, w=wide, padding=(1, 1), clamp=(0.0, 2.5), y=b.params(0, 2.5))
    grouped = b.weight("ternary", 18, 9, 3, 3, bias=False)
    y = b("conv2d", y, x, w=grouped, padding=(2, 2), dilation=(2, 2), groups=2, y=b.params())
    y = b("conv2d", y, w=b.weight("ternary", 18, 18, slopes=18), y=b.params())
    z = b("clamp", y, clamp=(-1.0, None), y=b.params(-1))
    y = b("add", y, z, clamp=(-2.0, 4.0), y=b.params(-2, 4))
    y = b(
        "avg_pool2d",
        y,
        kernel=(2, 3),
        stride=(1, 2),
        padding=(1, 1),
        include_pad=False,
        y=b.params(),
    )
    depthwise = b.weight("int8", 18, 1, 3, 1, slopes=1)
    y = b("conv2d", y, w=depthwise, stride=(1, 2), padding=(1, 0), groups=18, y=b.params())
    y = b("adaptive_avg_pool2d", y, size=(2, 3), y=b.params(-2, 2))
    y = b("flatten", y)
    y = b("linear", y, w=b.weight("ternary", 21, 18 * 6), clamp=relu, y=b.params(0))
    r = b("linear", y, w=b.weight("int8", 21, 21), y=b.params())
    y = b("linear", r, y, w=b.weight("ternary", 21, 21), y=b.params())
    b("linear", y, w=b.weight("int8", 10, 21))
    return b.graph()


def mixed_program(seed: int = 0) -> Graph:
    """Float and integer parts side by side: float, weight-only and integer layers, float pools."""
    b = Builder(seed, c=5)
    x = b("conv2d", 0, w=b.weight("float", 12, 5, 3, 3), padding=(1, 1), clamp=(0.0, None))
    q = b("quantize", x, y=b.params(0))
    q = b("conv2d", q, w=b.weight("ternary", 12, 12, 3, 3), padding=(1, 1))
    fine, w = b("quantize", q, y=b.fine_params(), fine=True), b.weight("int8", 12, 12, 3, 3)
    z = b("conv2d", fine, q, w=w, padding=(1, 1), clamp=(-2.0, 3.0))
    q = b("quantize", z, y=b.params())
    q = b("conv2d", q, z, w=b.weight("ternary", 12, 12))
    y = b("conv2d", x, q, w=b.weight("ternary", 12, 12, 1, 1, slopes=12))
    y = b("conv2d", y, w=b.weight("float", 12, 12, slopes=12, zeros=0.8))
    y = b("add", y, x, clamp=(-3.0, None))
    y = b("max_pool2d", y, kernel=(2, 2), dilation=(2, 1), padding=(1, 0), stride=(1, 1))
    y = b("avg_pool2d", y, kernel=(2, 2), divisor=3)
    q = b("quantize", y, y=b.params())
    q = b("avg_pool2d", q, kernel=(2, 2), stride=(2, 2), ceil=True)
    y = b("clamp", q, clamp=(-1.5, 1.5))
    y = b("adaptive_avg_pool2d", y, size=(1, 1))
    y = b("flatten", y)
    y = b("linear", y, w=b.weight("float", 9, 12))
    q = b("quantize", y, y=b.params())
    y = b("dequantize", q)
    b("linear", y, w=b.weight("int8", 7, 9))
    return b.graph()


def flat_program(seed: int = 0) -> Graph:
    """Rank 2 input, linear layers alone."""
    b = Builder(seed, c=19, rank=2)
    x = b("quantize", 0, y=b.params())
    x = b("linear", x, w=b.weight("ternary", 33, 19), clamp=(0.0, None), y=b.params(0))
    x = b("linear", x, w=b.weight("ternary", 6, 33, bias=False), y=b.params())
    b("dequantize", x)
    return b.graph()


def wide_program(seed: int = 0) -> Graph:
    """Branches: functions, products, squeeze-excite, concat, shuffles, resize; u8, then floats."""
    b = Builder(seed, c=6)
    x = b("quantize", 0, y=b.params())
    x = b("conv2d", x, w=b.weight("ternary", 16, 6, 3, 3), padding=(1, 1), y=b.params())
    y = b("activation", x, fn="hardswish", y=b.params(-0.4))
    gate = b("adaptive_avg_pool2d", y, size=(1, 1), y=b.params(-0.4))
    gate = b("linear", b("flatten", gate), w=b.weight("int8", 16, 16), y=b.params())
    gate = b("unflatten", gate)
    gate = b("activation", gate, fn="sigmoid", y=b.params(0, 1))
    y = b("mul", y, gate, clamp=(-0.25, None), y=b.params(-0.3))
    y = b("mul", y, x, clamp=(None, 4.0), y=b.params(-2, 4))
    up = b("pixel_shuffle", x, factor=(2, 1), crop=(1, 0))
    up = b("resize", up, y, mode="bilinear")
    part = b("slice", x, begin=5, end=13)
    y = b("concat", up, part, y, y=b.params())
    y = b("channel_shuffle", y, groups=8)
    y = b("resize", y, mode="nearest", zoom=(0.75, 2.0))
    y = b("resize", y, mode="bilinear", align=True, size=(6, 8))
    y = b("pixel_unshuffle", y, factor=(2, 4))
    y = b("activation", y, fn="affine", params=(-1.5, 0.25))
    y = b("activation", y, fn="gelu")
    y = b("layer_norm", y, w=b.weight("float", 32 * 8, 1), eps=1e-5)
    z = b("layer_norm", y, w=b.weight("float", 32 * 8, 1), eps=0.5, y=b.params())
    y = b("concat", y, b("dequantize", z))
    b("flatten", b("softmax", y))
    return b.graph()


def token_program(seed: int = 0) -> Graph:
    """Tokens [N, L, 12]: every operator that takes them, on uint8, then on floats."""
    b = Builder(seed, c=12, rank=3)
    q = b("quantize", 0, y=b.params())
    x = b("linear", q, w=b.weight("ternary", 22, 12), clamp=(0.0, None), y=b.params(0))
    x = b("activation", x, fn="gelu", y=b.params(-0.4))
    x = b("linear", x, q, w=b.weight("int8", 12, 22), y=b.params())
    x = b("add", x, q, clamp=(-2.0, 4.0), y=b.params(-2, 4))
    y = b("mul", x, q, y=b.params())
    y = b("clamp", y, clamp=(None, 1.5), y=b.params(-3, 1.5))
    y = b("concat", x, y, q, y=b.params())
    y = b("dequantize", y)
    codes = b("layer_norm", y, w=b.weight("float", 36, 1, zeros=0), eps=1e-5, y=b.params())
    beside = b("linear", codes, w=b.weight("int8", 18, 36))
    y = b("layer_norm", y, w=b.weight("float", 36, 1, zeros=0), eps=1e-5)
    y = b("linear", y, beside, w=b.weight("float", 18, 36), clamp=(-3.0, None))
    z = b("linear", y, y, w=b.weight("int8", 18, 18))
    z = b("softmax", b("add", y, z))
    b("mul", b("activation", y, fn="silu"), z)
    return b.graph()


def broadcast_program(seed: int = 0) -> Graph:
    """Sums and products of values with axes of size 1 on either side, of uint8, then of floats."""
    b = Builder(seed, c=7)
    q = b("quantize", 0, y=b.params())
    x = b("conv2d", q, w=b.weight("ternary", 10, 7, zeros=0.0), y=b.params())
    one = b("conv2d", q, w=b.weight("int8", 1, 7, zeros=0.0), y=b.params())
    x = b("add", one, x, clamp=(-3.0, None), y=b.params())
    x = b("mul", x, one, y=b.params())
    x = b("add", b("adaptive_avg_pool2d", x, size=(1, 1), y=b.params(-6, 6)), x, y=b.params())
    x = b("mul", b("reduce", one, fn="max", axes=(2,)), x, y=b.params())
    x = b("add", x, b("reduce", one, fn="min", axes=(3,)), y=b.params())
    x = b("mul", b("reduce", x, fn="max", axes=(2, 3)), b("slice", x, begin=6, end=7), y=b.params())
    y = b("mul", b("dequantize", x), b("dequantize", one))
    y = b("add", b("reduce", y, fn="max", axes=(2,)), b("reduce", y, fn="min", axes=(1, 3)))
    y = b("mul", b("dequantize", x), y, clamp=(None, 4.0))
    b("add", b("adaptive_avg_pool2d", b("dequantize", one), size=(1, 1)), y)
    return b.graph()


def _token_case(case: Any) -> Callable[[int], Graph]:
    """Of a case whose operator takes tokens alone."""

    def make(seed: int = 0) -> Graph:
        b = Builder(seed, c=12, rank=3)
        case.build(b)
        return b.graph()

    return make


def _case_program(case: ProgramCase) -> Callable[[int], Graph]:
    def make(seed: int = 0) -> Graph:
        b = Builder(seed, c=case.channels)
        case.build(b)
        return b.graph()

    return make


PROGRAMS: dict[str, Callable[..., Graph]] = {
    "image": image_program,
    "mixed": mixed_program,
    "flat": flat_program,
    "wide": wide_program,
    "tokens": token_program,
    "broadcast": broadcast_program,
    "matmul": _token_case(matmul),
    "attention": _token_case(token_attention),
    **{op: _case_program(case) for op, case in program_cases().items()},
}


def example(graph: Graph, n: int, h: int, w: int, seed: int = 0) -> NDArray[np.float32]:
    """A random batch for the program's input; of tokens, h each."""
    at = graph.nodes[0].attrs
    shape = (n, h, at["c"]) if at["rank"] == 3 else (n, at["c"], h, w)[: at["rank"]]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


_BOUNDS = ((None, None), (0.0, None), (0.0, 1.5), (-1.0, 2.0))


def random_program(seed: int) -> Graph:
    """One to six random image ops on uint8, or on floats for every fourth seed: any window, stride,
    padding, dilation and groups.
    """
    draw = np.random.default_rng(seed)
    b = Builder(seed, c=int(draw.integers(1, 21)))
    integer, channels, x = seed % 4 != 0, b.nodes[0].attrs["c"], 0
    if integer:
        x = b("quantize", x, y=b.params(-draw.uniform(0, 3), draw.uniform(0.1, 3)))
    before = [(x, channels)]
    for _ in range(draw.integers(1, 7)):
        op = draw.choice(["conv2d"] * 5 + ["max_pool2d", "avg_pool2d", "adaptive", "clamp", "add"])
        if draw.random() < 0.4:
            x, channels = _random_move(b, draw, x, channels, before, integer)
            before.append((x, channels))
            continue
        attrs: dict[str, Any] = {}
        if integer and op != "max_pool2d":
            attrs["y"] = b.params(-draw.uniform(0, 3), draw.uniform(0.1, 3))
        if op in ("conv2d", "clamp", "add"):
            attrs["clamp"] = _BOUNDS[draw.integers(4)]
        if op == "conv2d":
            x, channels = _random_conv(b, draw, x, channels, attrs)
        elif op in ("max_pool2d", "avg_pool2d"):
            x = b(str(op), x, **attrs, **_random_pool(draw, str(op)))
        elif op == "adaptive":
            x = b("adaptive_avg_pool2d", x, size=_two(draw, 1, 7), **attrs)
        elif op == "clamp":
            x = b("clamp", x, **attrs)
        else:
            other, width = before[draw.integers(len(before))]
            x = b("add", x, other if width == channels else x, **attrs)
        before.append((x, channels))
    if integer and draw.random() < 0.5:
        b("conv2d", x, w=b.weight("int8", int(draw.integers(1, 10)), channels))
    elif integer:
        b("dequantize", x)
    return b.graph()


_FUNCTIONS = {"leaky_relu": (0.2,), "silu": (), "tanh": (), "elu": (0.7,), "softplus": (1.5, 20.0)}


def _random_move(
    b: Builder,
    draw: np.random.Generator,
    x: int,
    channels: int,
    before: list[tuple[int, int]],
    integer: bool,
) -> tuple[int, int]:
    """One op that maps, multiplies or moves values; what it makes and its channels."""
    y = {"y": b.params(-draw.uniform(0, 3), draw.uniform(0.1, 3))} if integer else {}
    op = draw.choice(["activation", "mul", "gate", "concat", "slice", "shuffle", "down", "resize"])
    if op == "activation":
        fn = str(draw.choice(list(_FUNCTIONS)))
        return b("activation", x, fn=fn, params=_FUNCTIONS[fn], **y), channels
    if op == "mul":
        return b("mul", x, x, clamp=_BOUNDS[draw.integers(4)], **y), channels
    if op == "gate":
        return b("mul", x, b("adaptive_avg_pool2d", x, size=(1, 1), **y), **y), channels
    if op == "concat":
        other, width = before[draw.integers(len(before))]
        other = b("resize", other, x, mode=str(draw.choice(["nearest", "bilinear"])))
        return b("concat", x, other, x, **y), 2 * channels + width
    if op == "slice":
        begin = int(draw.integers(0, channels))
        end = int(draw.integers(begin + 1, channels + 1))
        return b("slice", x, begin=begin, end=end), end - begin
    if op == "shuffle" and channels % 2 == 0:
        if draw.random() < 0.5:
            return b("channel_shuffle", x, groups=channels // 2), channels
        return b("pixel_shuffle", x, factor=(1, 2), crop=(0, 1)), channels // 2
    if op == "down":
        x = b("resize", x, mode="nearest", size=(6, 4))
        return b("pixel_unshuffle", x, factor=(3, 2)), channels * 6
    size = _two(draw, 1, 24)
    align = bool(draw.integers(2))
    return b("resize", x, mode="bilinear", align=align, size=size), channels


def _two(draw: np.random.Generator, least: int, most: int) -> tuple[int, int]:
    a, b = draw.integers(least, most + 1, 2)
    return int(a), int(b)


def _random_pool(draw: np.random.Generator, op: str) -> dict[str, Any]:
    kernel = _two(draw, 1, 4)
    attrs: dict[str, Any] = {
        "kernel": kernel,
        "stride": _two(draw, 1, 3),
        "ceil": bool(draw.integers(2)),
    }
    attrs["padding"] = tuple(int(draw.integers(0, k // 2 + 1)) for k in kernel)
    if op == "max_pool2d":
        # a dilated window beside a narrow image can hold padding alone, whose maximum is -inf
        return attrs | ({"dilation": _two(draw, 1, 2)} if attrs["padding"] == (0, 0) else {})
    divisor = int(draw.integers(1, 10)) if draw.random() < 0.3 else None
    return attrs | {"include_pad": bool(draw.integers(2)), "divisor": divisor}


def _random_conv(
    b: Builder, draw: np.random.Generator, x: int, channels: int, attrs: dict[str, Any]
) -> tuple[int, int]:
    if "y" in attrs and draw.random() < 0.15:
        return _random_fine_conv(b, draw, x, channels, attrs)
    groups = int(draw.choice([1, 1, 1, 2, 3, channels]))
    groups = groups if channels % groups == 0 else 1
    o, kernel = groups * int(draw.integers(1, max(1, 24 // groups) + 1)), _two(draw, 1, 5)
    kinds = ("ternary", "int8") if "y" in attrs else ("ternary", "float")
    w = b.weight(
        str(draw.choice(kinds)),
        o,
        channels // groups,
        *kernel,
        bias=draw.random() < 0.7,
        zeros=float(draw.choice([0, 0.5, 0.9, 1])),
    )
    dilation = _two(draw, 1, 3)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if o == channels and not any(span % 2 for span in spans) and draw.random() < 0.5:
        padding = tuple(span // 2 for span in spans)
        gate, others = [(False, [x]), (True, [x]), (True, [x, x])][draw.integers(3)]
        window = {"dilation": dilation, "padding": padding, "groups": groups, "gate": gate}
        return b("conv2d", x, *others, w=w, **window, **attrs), o
    window = {"stride": _two(draw, 1, 3), "padding": _two(draw, 0, 4), "dilation": dilation}
    return b("conv2d", x, w=w, groups=groups, **window, **attrs), o


def _random_fine_conv(
    b: Builder, draw: np.random.Generator, x: int, channels: int, attrs: dict[str, Any]
) -> tuple[int, int]:
    """Eleven bits of another range, and floats beside a sum of integers."""
    real = b("dequantize", x)
    fine = b(
        "quantize", real, y=b.fine_params(-draw.uniform(0, 2), draw.uniform(0.1, 2)), fine=True
    )
    w = b.weight("int8", channels, channels, 3, 1, zeros=float(draw.choice([0, 0.5, 0.95])))
    gate, others = [(False, []), (False, [real]), (True, [real, real])][draw.integers(3)]
    return b("conv2d", fine, *others, w=w, padding=(1, 0), gate=gate, **attrs), channels
