# SPDX-License-Identifier: Apache-2.0
"""Cases of the codegen report: launchers on tensors of the shapes that matter.

bytes       bytes the launches move, each tensor once per pass over it
least_bytes lower bound of any kernel: packed weights, inputs and outputs, once each
unit        unit of `units`, for instructions per unit; a linear layer's weights count once for
            every 128 rows of x, since they are extracted anew for each
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ternary_ops.gpu.capture import Launch
from ternary_ops.ops._gpu import gpu_module


@dataclass(frozen=True)
class Case:
    """One case: its launch, the trip counts of each launch's loops, and the bytes it moves."""

    name: str
    launch: Callable[[], object]
    trips: Callable[[Launch], Sequence[float]]
    unit: str
    units: float
    macs: float
    bytes: int
    least_bytes: int
    dtype: str


def _turns(one: Launch, count: float) -> list[float]:
    """The trip counts of a kernel of one loop, which the compiler may have unrolled."""
    return [count] if one.binary.loops else []


def linear(m: int, n: int, k: int, dtype: torch.dtype) -> Case:
    """Ternary weights; x uint8 (computed in int8) or floats."""
    kernels, output = gpu_module("linear"), gpu_module("_epilogue").Output
    integer = dtype == torch.uint8
    x = torch.zeros(m, k, dtype=dtype)
    packed = torch.zeros(kernels.packed_bytes(n, k, True), dtype=torch.uint8)
    scale = torch.ones(n)
    made = torch.float32 if integer else dtype
    quantized = (1.0, 0) if integer else None

    def launch() -> None:
        kernels.run(x, packed, n, True, scale, None, quantized, output(made))

    def trips(one: Launch) -> list[float]:
        at = one.arguments
        if one.name == "_matvec":
            return _turns(one, math.ceil(int(at["WORDS"]) / int(at["BW"])))
        return _turns(one, int(at["K"]) / 256 / int(at["SPLIT"])) if one.name == "_matmul" else []

    y_bytes = m * n * torch.empty(0, dtype=made).element_size()
    least = n * k // 4 + 4 * n + x.nbytes + y_bytes
    moved = packed.nbytes + 4 * n + x.nbytes + y_bytes
    if integer:
        moved += 2 * m * k  # codes are written and read again
    name = f"linear {m}x{k} @ {k}x{n} {_short(dtype)}"
    units = n * k * math.ceil(m / 128)
    macs = float(m * n * k)
    return Case(name, launch, trips, "weight", units, macs, moved, least, _short(dtype))


def conv2d(
    n: int,
    c: int,
    h: int,
    o: int,
    k: int,
    dtype: torch.dtype = torch.uint8,
    kept: float = 1.0,
    w: int = 0,
    stride: int = 1,
) -> Case:
    """k x k, padded, of h x w (0: h x h) pixels; `kept` < 1: that share of blocks of a tap, 64
    channels and 64 rows.
    """
    w = w or h
    out_h, out_w = (-(-side // stride) for side in (h, w))
    kind = "conv2d" if kept == 1.0 else "sparse_conv2d"
    kernels, output = gpu_module(kind), gpu_module("_epilogue").Output
    integer = dtype == torch.uint8
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-1, 2, (o, k, k, c), dtype=torch.int8, generator=generator)
    blocks = torch.zeros(-(-o // 64) * k * k * -(-c // 64), dtype=torch.int8)
    blocks[torch.randperm(len(blocks), generator=generator)[: round(kept * len(blocks))]] = 1
    grid = blocks.view(-(-o // 64), k, k, -(-c // 64))
    values *= grid.repeat_interleave(64, 0)[:o].repeat_interleave(64, 3)[..., :c]
    packed = kernels.prepack(values, 1, True, not integer)
    x, scale = torch.zeros(n, c, h, w, dtype=dtype), torch.ones(o)
    made = torch.uint8 if integer else dtype

    def launch() -> None:
        kernels.run(
            x, packed, (o, k, k, c), True, scale, None, (stride, stride), (k // 2, k // 2), (1, 1),
            1, (1.0, 0) if integer else None, output(made),
        )  # fmt: skip

    def trips(one: Launch) -> list[float]:
        if one.name == "_conv":
            return _turns(one, int(one.arguments["STEPS"]))
        if one.name != "_sparse":
            return []
        steps = sum(-(-int(row) // int(one.arguments["USED"])) for row in grid.sum((1, 2, 3)))
        return _turns(one, steps / len(grid))

    macs = float(kept * n * out_h * out_w * o * c * k * k)
    y_bytes = n * o * out_h * out_w * torch.empty(0, dtype=made).element_size()
    copy = n * c * (h + k - 1) * (w + k - 1) * x.element_size()
    by = f" by {stride}" if stride > 1 else ""
    share = f" {100 * kept:.0f} % of blocks" if kept < 1.0 else ""
    return Case(
        f"{kind} {n}x{c}x{h}x{w}, {o} of {k}x{k}{by} {_short(dtype)}{share}",
        *(launch, trips, "MAC", macs, macs),
        x.nbytes + 2 * copy + packed.nbytes + y_bytes,
        x.nbytes + round(kept * o * k * k * c) // 4 + y_bytes,
        _short(dtype),
    )


def block_sparse(n: int, c: int, h: int, o: int, k: int, kept: float, block: int = 64) -> Case:
    """k x k, padded, float16; `kept` of the blocks of `block` x `block` channels, as many in each
    row of blocks, which lie at random.
    """
    kernels = gpu_module("block_sparse_conv2d")
    generator = torch.Generator().manual_seed(0)
    across = k * k * (c // block)
    each, rows = round(kept * across), o // block
    chosen = [torch.randperm(across, generator=generator)[:each].sort().values for _ in range(rows)]
    col = torch.cat(chosen).int()
    crow = torch.arange(0, each * rows + 1, each, dtype=torch.int32)
    values = torch.zeros(len(col), block, block, dtype=torch.float16)
    x = torch.zeros(n, c, h, h, dtype=torch.float16)

    def launch() -> None:
        kernels.run(x, values, crow, col, o, (k, k), None, (1, 1), (k // 2, k // 2), (1, 1), 1)

    def trips(one: Launch) -> list[float]:
        return _turns(one, each) if one.name == "_block_sparse" else []

    macs = float(n * h * h * values.numel())
    y_bytes = 2 * n * o * h * h
    copy = 2 * n * c * (h + k - 1) ** 2
    what = f"{n}x{c}x{h}x{h}, {o} of {k}x{k} fp16 {100 * kept:.0f} % of {block}x{block}"
    return Case(
        f"block_sparse_conv2d {what}",
        *(launch, trips, "MAC", macs, macs),
        x.nbytes + 2 * copy + values.nbytes + y_bytes,
        x.nbytes + values.nbytes + y_bytes,
        "fp16",
    )


def sr_gate(c: int, h: int, w: int, dtype: torch.dtype = torch.float16) -> Case:
    """SPAN's gate."""
    kernels = gpu_module("sr_gate")
    x = torch.zeros(1, c, h, w, dtype=dtype)
    moved = 3 * x.nbytes
    return Case(
        f"sr_gate {c}x{h}x{w} {_short(dtype)}",
        lambda: kernels.run(x, x, None, None, 0.5, (h, w), (0, 0)),
        lambda one: [],
        *("value", x.numel(), 0.0, moved, moved, _short(dtype)),
    )


def esa(c: int, f: int, h: int, w: int, dtype: torch.dtype = torch.float16) -> Case:
    """EFDN's attention: x is read in two passes, y written once."""
    kernels = gpu_module("attention")
    x = torch.zeros(1, c, h, w, dtype=dtype)
    shapes = [(f, c, 1), (f, f, 1), *[(f, f, 3)] * 4, (c, f, 1)]
    weights = [torch.zeros(o, i, k, k) for o, i, k in shapes]
    biases = [torch.zeros(len(weight)) for weight in weights]
    pixels = h * w
    small = f * pixels * x.element_size()
    macs = float(pixels * (9 * c * f / 4 + 2 * c * f))
    return Case(
        f"esa {c}, {f}, {h}x{w} {_short(dtype)}",
        lambda: kernels.esa(x, weights, biases),
        lambda one: _turns(one, 9.0) if one.name == "_strided" else [],
        *("pixel", pixels, macs, 3 * x.nbytes + small // 4 * 2 + small // 36 * 2, 3 * x.nbytes),
        _short(dtype),
    )


def hf_attention(
    c: int, f: int, h: int, w: int, dtype: torch.dtype = torch.float16, layers: int = 4
) -> Case:
    """FMEN-S's attention, one block: a tile reads what lies around it too."""
    kernels = gpu_module("attention")
    x = torch.zeros(1, c, h, w, dtype=dtype)
    shapes = [(f, c), *[(f, f)] * (layers - 2), (c, f)]
    weights = [torch.zeros(o, i, 3, 3) for o, i in shapes]
    biases = [torch.zeros(len(weight)) for weight in weights]
    pixels = h * w

    def trips(one: Launch) -> list[float]:
        """By depth: tiles, then a layer's pixels, then its taps, unless they are unrolled."""
        at = one.arguments
        sides = iter(int(at["TILE"]) + 2 * around for around in reversed(range(layers)))
        turns: list[float] = []
        loops = sorted(one.binary.loops, key=lambda loop: loop.first)
        for loop in loops:
            depth = sum(o.first <= loop.first and loop.last <= o.last for o in loops)
            if depth == 2:
                turns.append(math.ceil(next(sides) ** 2 / int(at["BP"])))
            else:
                turns.append(int(at["tiles"]) / one.grid[0] if depth == 1 else 9.0)
        return turns

    macs = 9.0 * pixels * sum(o * i for o, i in shapes)
    # Of a device with 100 to 150 processors.
    tile = kernels.tile_side(1, h, w, 120)
    moved = round(x.nbytes * (tile + 2 * len(shapes)) ** 2 / tile**2) + x.nbytes
    return Case(
        f"hf_attention {c}, {f}, {h}x{w} {_short(dtype)}",
        lambda: kernels.hf_attention(x, weights, biases, [0.1] * (layers - 1)),
        trips,
        *("pixel", pixels, macs, moved, 2 * x.nbytes, _short(dtype)),
    )


def attention(
    n: int, heads: int, tokens: int, width: int, dtype: torch.dtype = torch.float16
) -> Case:
    """Of tokens with themselves; keys and values are read once for each block of queries."""
    kernels = gpu_module("tokens")
    q = torch.zeros(n, heads, tokens, width, dtype=dtype)
    macs = 2.0 * n * heads * tokens * tokens * width

    def trips(one: Launch) -> list[float]:
        return _turns(one, math.ceil(tokens / int(one.arguments["BN"])))

    blocks = math.ceil(tokens / 64)
    return Case(
        f"attention {n}x{heads}x{tokens}x{width} {_short(dtype)}",
        lambda: kernels.attention(q, q, q, None, width**-0.5),
        trips,
        *("MAC", macs, macs, (2 + 2 * blocks) * q.nbytes, 4 * q.nbytes, _short(dtype)),
    )


def layer_norm_codes(rows: int, channels: int, dtype: torch.dtype = torch.float16) -> Case:
    """LayerNorm of tokens to codes."""
    kernels, output = gpu_module("tokens"), gpu_module("_epilogue").Output
    x, weight = torch.zeros(rows, channels, dtype=dtype), torch.ones(channels)
    moved = x.nbytes + x.numel() + 2 * weight.nbytes
    return Case(
        f"layer_norm_codes {rows}x{channels} {_short(dtype)}",
        lambda: kernels.layer_norm_codes(x, weight, weight, 1e-6, output(torch.uint8, 0.1, 128)),
        lambda one: [],
        *("value", x.numel(), 0.0, moved, moved, _short(dtype)),
    )


def _short(dtype: torch.dtype) -> str:
    known = {torch.uint8: "int8", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return known[dtype]


def all_cases() -> list[Any]:
    """Every kernel of kernels/, at the shapes of docs/gpu.md."""
    linears = [
        linear(m, 4096, 4096, dtype)
        for m, dtype in (
            *((1, torch.uint8), (16, torch.uint8), (512, torch.uint8)),
            *((1, torch.float16), (16, torch.float16), (512, torch.float16)),
            (16, torch.bfloat16),
        )
    ]
    convolutions = [
        conv2d(1, 64, 256, 64, 3),
        conv2d(1, 64, 256, 64, 3, torch.float16),
        *(conv2d(32, c, 3584 // c, c, 3) for c in (64, 128, 256, 512)),
        conv2d(32, 256, 14, 256, 3, kept=0.25),
        conv2d(32, 256, 14, 256, 3, torch.float16, kept=0.25),
        block_sparse(32, 256, 14, 256, 3, 0.25),
        block_sparse(1, 4096, 32, 4096, 1, 0.25),
    ]
    gates = [sr_gate(48, 180, 320), esa(50, 16, 180, 320), hf_attention(50, 16, 180, 320)]
    gates.append(hf_attention(50, 16, 720, 1280))
    tokens = [attention(8, 4, 784, 64), attention(32, 3, 197, 64), layer_norm_codes(6304, 192)]
    return [*linears, *convolutions, *gates, *tokens]
