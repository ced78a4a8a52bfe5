# SPDX-License-Identifier: Apache-2.0
"""Every kernel against its NumPy reference on random problems: what `ternary-ops verify` runs.

Torch-free. Integer results must be equal bit for bit; float results are held to
|y - r| <= BOUND * eps * (sum |w| |x| * scale + |bias|), eps = 2**-23: float32 sums of a few hundred
products stay well below it, while one wrong or missing product exceeds it by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ternary_ops import reference, runtime
from ternary_ops._native import core
from ternary_ops.layout import codes

Array = NDArray[Any]

BOUND = 4.0
PROBLEMS = 32
# More threads than this machine may have: the partition must not change a result.
THREADS = (1, 3)


@dataclass(frozen=True)
class Check:
    """One kernel on one instruction set: how many problems, and the largest difference if any."""

    kernel: str
    isa: str
    problems: int
    worst: str
    passed: bool


@dataclass(frozen=True)
class Conv:
    """A random convolution; every array and number the core takes."""

    x: Array
    x_zp: int
    weights: Array
    wtype: str
    kind: str
    scale: Array
    bias: Array
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    y: tuple[float, int] | None

    def reference(self) -> Array:
        """The result in NumPy."""
        window = (self.stride, self.padding, self.dilation, self.groups)
        if self.x.dtype == np.uint8:
            acc: Array = reference.conv2d_acc(self.x, self.x_zp, self.weights, *window)
        else:
            acc = reference.conv2d(self.x, self.weights, None, None, *window)
        return reference.epilogue(acc, self.scale, self.bias, y=self.y)

    def magnitude(self) -> Array:
        """sum |w| |x| * scale + |bias|, what a float error is measured against."""
        window = (self.stride, self.padding, self.dilation, self.groups)
        total = reference.conv2d(np.abs(self.x), np.abs(self.weights), None, None, *window)
        return total * self.scale[:, None, None] + np.abs(self.bias)[:, None, None]

    def native(self) -> Array:
        """The result of the kernels in force."""
        stored = np.ascontiguousarray(_stored(self.weights, self.wtype))
        o, i, r, s = self.weights.shape
        address = stored.ctypes.data
        packed = core().prepack(self.kind, self.wtype, address, o, r, s, i, self.groups)
        shape = self.reference().shape
        out = np.empty(shape, np.uint8) if self.y else np.full(shape, np.nan, np.float32)
        core().conv2d(
            *(self.x.ctypes.data, _cell(self.x), self.x_zp, *self.x.shape),
            *(packed.ctypes.data, packed.nbytes, self.scale.ctypes.data, self.bias.ctypes.data),
            *(*self.stride, *self.padding, *self.dilation),
            *(out.ctypes.data, _cell(out), *(self.y or (1.0, 0))),
        )
        return out


def run(isa: str, seed: int = 0) -> Iterator[Check]:
    """Check every kernel with `isa` forced; raises UnsupportedDevice when it is not here."""
    with runtime.force_isa(isa):
        for kind in ("dense", "sparse"):
            for wtype, cell, y in _COMBINATIONS:
                name = f"conv2d {kind} {wtype} {cell}->{y}"
                yield _check(name, isa, _conv_problems(kind, wtype, cell, y, seed))
        for wtype, cell, y in _COMBINATIONS:
            name = f"linear {wtype} {cell}->{y}"
            yield _check(name, isa, _linear_problems(wtype, cell, y, seed))
        yield _check("whole program", isa, _program_problems(seed))


_COMBINATIONS = (
    ("ternary", "u8", "u8"),
    ("ternary", "u8", "f32"),
    ("int8", "u8", "u8"),
    ("int8", "u8", "f32"),
    ("float", "f32", "f32"),
)

# A problem gives (native result, reference, magnitude or None where equality is demanded).
Problem = Callable[[], tuple[Array, Array, Array | None]]


def _check(name: str, isa: str, problems: list[Problem]) -> Check:
    worst, passed = 0.0, True
    for problem in problems:
        for threads in THREADS:
            with runtime.num_threads(threads):
                got, expected, magnitude = problem()
            error = _error(got, expected, magnitude)
            worst = max(worst, error)
            passed &= error <= (0 if magnitude is None else BOUND)
    unit = "" if worst == 0 else f"{worst:.2g}"
    return Check(name, isa, len(problems) * len(THREADS), unit, passed)


def _error(got: Array, expected: Array, magnitude: Array | None) -> float:
    if got.shape != expected.shape or got.dtype != expected.dtype or not np.isfinite(got).all():
        return float("inf")
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if magnitude is not None:
        difference = difference / (np.finfo(np.float32).eps * (magnitude + 1e-30))
    return float(difference.max(initial=0))


def _conv_problems(kind: str, wtype: str, cell: str, y: str, seed: int) -> list[Problem]:
    rng = np.random.default_rng([seed, crc32(f"{kind} {wtype} {cell} {y}".encode())])
    return [_conv_problem(_random_conv(rng, kind, wtype, cell, y)) for _ in range(PROBLEMS)]


def _conv_problem(conv: Conv) -> Problem:
    expected = conv.reference()
    magnitude = None if conv.x.dtype == np.uint8 else conv.magnitude()
    return lambda: (conv.native(), expected, magnitude)


def _random_conv(rng: np.random.Generator, kind: str, wtype: str, cell: str, y: str) -> Conv:
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    i, o = int(rng.integers(1, 21)), int(rng.integers(1, 14)) * groups
    r, s, stride_h, stride_w = (int(v) for v in rng.integers(1, 4, 4))
    dilation = tuple(int(v) for v in rng.integers(1, 3, 2))
    padding = tuple(int(v) for v in rng.integers(0, 3, 2))
    least = [d * (k - 1) + 1 for d, k in zip(dilation, (r, s), strict=True)]
    h, w = (int(v + rng.integers(0, 30)) for v in least)
    n = int(rng.integers(1, 4))
    weights = _random_weights(rng, (o, i, r, s), wtype, 0.3 if kind == "sparse" else 0.9)
    if (kind, wtype) == ("sparse", "float"):
        weights = _in_blocks(rng, weights)
    x = _random_input(rng, (n, i * groups, h, w), cell)
    scale, bias = _affine_of(rng, o, wtype, i * r * s, cell)
    out = (0.05, int(rng.integers(0, 256))) if y == "u8" else None
    return Conv(
        x=x,
        x_zp=int(rng.integers(0, 256)) if cell == "u8" else 0,
        weights=weights,
        wtype=wtype,
        kind=kind,
        scale=scale,
        bias=bias,
        stride=(stride_h, stride_w),
        padding=(padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
        y=out,
    )


def _linear_problems(wtype: str, cell: str, y: str, seed: int) -> list[Problem]:
    rng = np.random.default_rng([seed, crc32(f"{wtype} {cell} {y}".encode())])
    return [_linear_problem(rng, m, wtype, cell, y) for m in (1, 1, 2, 3, 5, 8, 17, 64)]


def _linear_problem(rng: np.random.Generator, m: int, wtype: str, cell: str, y: str) -> Problem:
    k, n = (int(v) for v in rng.integers(1, 300, 2))
    weights = _random_weights(rng, (n, k), wtype, 0.7)
    x, zp = _random_input(rng, (m, k), cell), int(rng.integers(0, 256)) if cell == "u8" else 0
    scale, bias = _affine_of(rng, n, wtype, k, cell)
    out_params = (0.05, int(rng.integers(0, 256))) if y == "u8" else None
    acc: Array = (
        reference.linear_acc(x, zp, weights) if cell == "u8" else reference.linear(x, weights)
    )
    expected = reference.epilogue(acc, scale, bias, y=out_params)
    magnitude = None
    if cell == "f32":
        magnitude = reference.linear(np.abs(x), np.abs(weights)) * scale + np.abs(bias)
    stored = _stored(weights, wtype)

    kinds = {"ternary": ("two_bit", "base_three", "sparse"), "int8": ("dense", "sparse")}
    kind = str(rng.choice(kinds.get(wtype, ("dense",))))

    def problem() -> tuple[Array, Array, Array | None]:
        out = np.empty((m, n), np.uint8) if out_params else np.full((m, n), np.nan, np.float32)
        packed = core().prepack_linear(kind, wtype, stored.ctypes.data, n, k)
        core().linear(
            *(x.ctypes.data, _cell(x), 1.0, zp, m, k, wtype, n, packed.ctypes.data, packed.nbytes),
            *(scale.ctypes.data, bias.ctypes.data),
            *(out.ctypes.data, _cell(out), *(out_params or (1.0, 0))),
        )
        return out, expected, magnitude

    return problem


def _program_problems(seed: int) -> list[Problem]:
    """One small program with every operator of uint8, at three image sizes."""
    from ternary_ops.program.interpret import simulate

    rng = np.random.default_rng([seed, 1])
    graph = _every_operator(rng)
    program = runtime.Program(graph, (1, 5, 16, 16))

    def problem(n: int, h: int, w: int) -> Problem:
        x = rng.normal(size=(n, 5, h, w)).astype(np.float32)
        expected = simulate(graph, x)[-1]
        return lambda: (program(x), expected, None)

    return [problem(1, 16, 16), problem(2, 23, 9), problem(3, 8, 31)]


# Twelve channels in another order.
_THREE_GROUPS = {
    "split": ((3, 4), (-1,), (-1,)),
    "order": (1, 0, 2, 3),
    "axes": (2, 1, 1),
    "rank": 4,
}
# Images of 4 x 4 pixels as tokens, and back.
_TO_TOKENS = {"split": ((-1,), (4,), (4,)), "order": (0, 1, 2), "axes": (1, 2), "rank": 3}
_TO_IMAGE = {"split": ((-1,), (4, 4)), "order": (0, 1, 2), "axes": (1, 1, 1), "rank": 4}


def _every_operator(rng: np.random.Generator) -> Any:
    from ternary_ops.program.graph import Graph, Node
    from ternary_ops.program.weight import Weight

    def weight(name: str, kind: str, o: int, r: int, i: int) -> Weight:
        values = codes.channels_last(_random_weights(rng, (o, i, r, r), kind, 0.4))
        scale, bias = rng.uniform(0.01, 0.05, o), rng.normal(size=o)
        return Weight(name, kind, values, scale.astype(np.float32), bias.astype(np.float32))

    weights = (
        weight("stem", "int8", 12, 3, 5),
        weight("body", "ternary", 12, 3, 12),
        weight("head", "ternary", 7, 1, 12 * 4),
        Weight("shift", "float", rng.normal(size=(7, 1, 1, 1)).astype(np.float32)),
    )
    relu = {"clamp": (0.0, None)}
    nodes = [
        Node("input", (), {"c": 5}),
        Node("quantize", (0,), {"y": (0.03, 120)}),
        Node("conv2d", (1,), {"w": 0, "padding": (1, 1), "y": (0.04, 0), **relu}),
        Node("conv2d", (2, 2), {"w": 1, "padding": (1, 1), "y": (0.05, 0), **relu}),
        Node("max_pool2d", (3,), {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}),
        Node("avg_pool2d", (4,), {"kernel": (2, 2), "stride": (1, 1), "y": (0.03, 3)}),
        Node("clamp", (5,), {"clamp": (0.0, 6.0), "y": (0.025, 0)}),
        Node("add", (5, 6), {"clamp": (None, None), "y": (0.06, 9)}),
        Node("activation", (7,), {"fn": "silu", "y": (0.05, 8)}),
        Node("adaptive_avg_pool2d", (8,), {"size": (1, 1), "y": (0.05, 8)}),
        Node("activation", (9,), {"fn": "sigmoid", "y": (1 / 255, 0)}),
        Node("mul", (8, 10), {"y": (0.05, 8)}),
        Node("slice", (11,), {"begin": 1, "end": 9}),
        Node("channel_shuffle", (12,), {"groups": 4}),
        Node("pixel_shuffle", (13,), {"factor": (2, 1)}),
        Node("pixel_unshuffle", (14,), {"factor": (2, 1)}),
        Node("resize", (11,), {"mode": "nearest", "zoom": (2.0, 2.0)}),
        Node("resize", (16, 15), {"mode": "bilinear"}),
        Node("concat", (15, 17), {"y": (0.06, 7)}),
        Node("slice", (18,), {"begin": 3, "end": 15}),
        Node("pad", (19,), {"before": (1, 0), "after": (0, 1), "mode": "reflect"}),
        Node("crop", (20,), {"begin": (0, 1), "end": (1, 0)}),
        Node("rearrange", (21,), _THREE_GROUPS),
        Node("adaptive_avg_pool2d", (22,), {"size": (4, 4), "y": (0.05, 4)}),
        Node("rearrange", (23,), _TO_TOKENS),
        Node("attention", (24, 24, 24), {"heads": 3, "tokens": 16, "y": (0.05, 4)}),
        Node("rearrange", (25,), _TO_IMAGE),
        Node("reduce", (26,), {"fn": "max", "axes": (1,)}),
        Node("mul", (23, 27), {"y": (0.1, 4)}),
        Node("adaptive_max_pool2d", (28,), {"size": (2, 2)}),
        Node("flatten", (29,), {}),
        Node("linear", (30,), {"w": 2, "y": (0.1, 128)}),
        Node("unflatten", (31,), {}),
        Node("flatten", (32,), {}),
        Node("dequantize", (33,), {}),
        Node("constant", (0,), {"w": 3, "rank": 2}),
        Node("add", (34, 35), {}),
    ]
    return Graph(tuple(nodes), weights)


def _random_weights(
    rng: np.random.Generator, shape: tuple[int, ...], wtype: str, density: float
) -> Array:
    """[O, I, ...]: whole quads of four input channels are empty with probability 1 - density."""
    quads = (shape[0], codes.quads(shape[1]), *shape[2:])
    kept = np.repeat(rng.random(quads) < density, 4, axis=1)[:, : shape[1]]
    if wtype == "float":
        return np.ascontiguousarray(rng.normal(size=shape).astype(np.float32) * kept)
    top = 1 if wtype == "ternary" else 127
    values = rng.integers(-top, top + 1, shape).astype(np.int8)
    return np.ascontiguousarray(values * kept.astype(np.int8))


def _in_blocks(rng: np.random.Generator, weights: Array) -> Array:
    """Neighboring filters made alike in what is zero, values rounded to 16 bits or not: every form
    that the sparse float kernel reads.
    """
    rows = int(rng.choice([1, 2, 4]))
    kept = np.repeat(weights[::rows] != 0, rows, axis=0)[: len(weights)]
    values = rng.standard_normal(weights.shape).astype(np.float32) * kept
    form = rng.integers(3)
    if form == 0:
        values = values.astype(np.float16).astype(np.float32)
    elif form == 1:
        values = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.asarray(values)


def _random_input(rng: np.random.Generator, shape: tuple[int, ...], cell: str) -> Array:
    if cell == "u8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.normal(size=shape).astype(np.float32)


def _affine_of(
    rng: np.random.Generator, outputs: int, wtype: str, k: int, cell: str
) -> tuple[Array, Array]:
    """Scales that bring sums of k products to about 1, so that u8 outputs do not all saturate."""
    largest = {"ternary": 1, "int8": 64, "float": 1}[wtype] * (80 if cell == "u8" else 1)
    scale = rng.uniform(0.5, 2, outputs) / (largest * np.sqrt(k))
    if wtype == "float":
        scale = np.ones(outputs)
    return scale.astype(np.float32), rng.normal(size=outputs).astype(np.float32)


def _stored(weights: Array, wtype: str) -> Array:
    """Weights as the native core takes them: channels last, packed to codes or padded."""
    last = codes.channels_last(weights) if weights.ndim == 4 else weights
    if wtype == "ternary":
        return codes.pack_codes(last)
    return codes.pad_int8(last) if wtype == "int8" else np.ascontiguousarray(last)


def _cell(array: Array) -> str:
    return "u8" if array.dtype == np.uint8 else "f32"
