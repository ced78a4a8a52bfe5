# SPDX-License-Identifier: Apache-2.0
"""How large blocks are: rules from shape and target, without a device.

What ternary_ops.gpu.tune measured on a device goes before the rule, for the same arguments.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from ternary_ops.kernels._target import Target
from ternary_ops.kernels._unpack import DEPTH

Site = tuple[Any, ...]  # a rule's name and its arguments, the last of them a Target
_Rule = TypeVar("_Rule", bound=Callable[..., Any])
rules: dict[str, Callable[..., Any]] = {}  # by name, as they are
chosen: dict[Site, Any] = {}  # by measurement
asked: list[
    dict[Site, Any]
] = []  # one while a measurement listens: what rules were asked, and said


def measured(rule: _Rule) -> _Rule:
    """The rule, or what a measurement found better."""
    rules[rule.__name__] = rule

    @wraps(rule)
    def choose(*arguments: Any) -> Any:
        site = (rule.__name__, *arguments)
        blocks = rule(*arguments)
        for heard in asked:
            heard[site] = blocks
        return chosen.get(site, blocks)

    return choose  # type: ignore[return-value]


# Bytes of shared memory a block may use.
_SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99}
_SHARED_LEAST = 64  # AMD, and what is not known


class Blocks(NamedTuple):
    """rows of W and columns (rows of x) of a block, parts the depth is split into."""

    rows: int
    columns: int
    split: int
    warps: int
    stages: int


def shared_bytes(where: Target) -> int:
    """What a block may use."""
    return 1024 * _SHARED.get(where.arch if isinstance(where.arch, int) else 0, _SHARED_LEAST)


@measured
def linear_blocks(m: int, n: int, depth: int, itemsize: int, where: Target) -> Blocks:
    """For kernels/linear.py: depth is padded, itemsize that of x's elements (1: int8).

    A thread of a block with many rows has few instructions a weight; a block with few leaves more
    blocks for the processors. Hopper's products of four warps take 64 rows at a time.
    """
    integer, hopper = itemsize == 1, where.ptx and where.arch == 90
    if integer and m == 1 and where.ptx:
        return Blocks(8, 1, 1, 1, 1)
    if m <= 16:
        rows, columns, warps = (256 if integer and hopper and n >= 4096 else 128), 16, 4
    elif m <= 64:
        rows, columns, warps = 64, 64, 4
    else:
        rows, columns, warps = 128, 128, 4 if hopper and integer else 8
    if where.arch == 120 and m <= 16:
        rows, warps = 256, 8  # four warps spill a register
    if where.backend == "hip":
        rows, columns, warps = 64, min(columns, 64), 4
    if itemsize == 4:
        rows, columns = min(rows, 64), min(columns, 64)
    if integer:
        columns = min(columns, where.most_columns)
    buffered = rows * 64 + DEPTH * columns * itemsize
    while buffered > shared_bytes(where) and columns > 16:
        columns //= 2
        buffered = rows * 64 + DEPTH * columns * itemsize
    stages = max(2, min(3, shared_bytes(where) // buffered + 1))
    blocks, tiles, split = -(-n // rows) * -(-m // columns), depth // DEPTH, 1
    # Until about half the processors have a block, while parts have tiles enough to hide their
    # loads: what is before and after the loop costs every part.
    while split < 16 and 9 * where.processors > 20 * blocks * split and tiles >= 4 * split:
        split *= 2
    return Blocks(rows, columns, split, warps, stages)


class ConvBlocks(NamedTuple):
    """rows of weights and columns (pixels) of a block."""

    rows: int
    columns: int
    warps: int
    stages: int


@measured
def conv_blocks(
    pixels: int, rows: int, groups: int, depth: int, held: int, itemsize: int, where: Target
) -> ConvBlocks:
    """For kernels/conv2d.py and those like it; itemsize is that of the map's elements (1: int8).

    rows: of a group's weights, padded, or of a block that cannot grow, of which there are `groups`;
    depth: elements of a pixel a step reads, held: bytes of a row of weights it reads. Few rows and
    many columns cost the fewest instructions for what a plane is extracted for; on Hopper four
    warps take at least 64 rows, elsewhere a warp has registers for 2048 sums.
    """
    hopper = where.ptx and where.arch == 90 and itemsize <= 2
    all_rows, least = groups * rows, 64 if hopper else 32
    few = 2 * (all_rows // 128) * -(-pixels // least) <= where.processors
    rows = min(rows, 64 if rows % 128 or few else 128)
    columns = 128 if rows != 64 else 256 if hopper else 64
    if itemsize == 4 or where.backend == "hip":
        rows, columns = min(rows, 64), 64
    if itemsize == 1:
        columns = min(columns, where.most_columns)
    # Half the processors shall have a block, and of two stages there shall be room for two blocks.
    row_blocks = all_rows // rows
    while columns > least and 2 * row_blocks * -(-pixels // columns) <= where.processors:
        columns //= 2
    room = shared_bytes(where) // 2
    while columns > least and 2 * (depth * itemsize * columns + held * rows) > room:
        columns //= 2
    stages = 3 if 3 * (depth * itemsize * columns + held * rows) <= room else 2
    if hopper and rows >= 64:
        warps = 8 if rows * columns > 128 * 64 and rows == 128 else 4
    else:
        warps = max(1, rows * columns // 2048)
    if itemsize == 4 or where.backend == "hip":
        warps = 4
    return ConvBlocks(rows, columns, warps, stages)


class BlockSparseBlocks(NamedTuple):
    """rows of weights, columns (pixels) and depth of a product."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@measured
def block_sparse_blocks(
    pixels: int, n: int, m: int, out_channels: int, itemsize: int, where: Target
) -> BlockSparseBlocks:
    """For kernels/block_sparse_conv2d.py: n x m blocks, multiples of 16; itemsize that of x."""
    rows = min(n & -n, 64 if itemsize == 4 else 128)
    depth = min(m & -m, 128 // itemsize)
    row_blocks = -(-out_channels // n) * (n // rows)
    blocks = rules["conv_blocks"](pixels, rows, row_blocks, m, m * itemsize, itemsize, where)
    return BlockSparseBlocks(*blocks[:2], depth, *blocks[2:])


def neighbours(site: Site, blocks: Any) -> list[Any]:
    """Blocks that differ from these in one number, by a factor of 2 (stages: by 1), and are valid.

    Rows of convolutions stay: weights lie by them.
    """
    most = {"rows": 256, "columns": 256, "split": 16, "warps": 8, "stages": 4}
    least = {"rows": 16, "columns": 16, "split": 1, "warps": 1, "stages": 2}
    names = [name for name in blocks._fields if name in most]
    where: Target = site[-1]
    if site[0] != "linear_blocks":
        names.remove("rows")
    elif blocks.columns == 1:  # a matrix times a vector: no tensor cores, no loop to overlap
        names, least = ["rows", "warps"], least | {"rows": 4}
    else:
        most |= {"split": max(1, int(site[3]) // DEPTH)}
    found = []
    for name in names:
        value = getattr(blocks, name)
        steps = (value - 1, value + 1) if name == "stages" else (value // 2, value * 2)
        found += [
            blocks._replace(**{name: step}) for step in steps if least[name] <= step <= most[name]
        ]
    # Hopper's products of four warps take 64 rows.
    hopper = where.ptx and where.arch == 90
    return [b for b in found if not hopper or b.columns == 1 or b.rows < 64 or b.warps >= 4]
