# SPDX-License-Identifier: Apache-2.0
"""Data movement: concatenation, channel slices, shuffles and views; values stay as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import fx

from ternary_ops.compiler.call import Call, Consequence, Unsupported, channel_axis, pair, shape_of
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.step import Step
from ternary_ops.graph import torch_ops
from ternary_ops.graph.nodes import operator_of
from ternary_ops.graph.torch_ops import TorchOp

_ONE_BATCH = "its batch size is a constant; write x.size(0)"


def _concat(call: Call) -> Step:
    """Along channels."""
    node = call.node
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, Sequence) or not all(isinstance(p, fx.Node) for p in parts):
        raise Unsupported("its parts are not a list of tensors")
    ranks = {len(shape_of(part) or ()) for part in parts if isinstance(part, fx.Node)}
    rank = ranks.pop() if len(ranks) == 1 else 0
    if rank not in (2, 3, 4) or not isinstance(dim, int) or dim % rank != channel_axis(rank):
        raise Unsupported("a concatenation is supported along channels")
    steps = [call.step(part) for part in parts if isinstance(part, fx.Node)]
    return steps[0] if len(steps) == 1 else Step("concat", steps)


def _split(call: Call) -> None:
    """Its parts are read one by one, see _item."""
    if any(operator_of(user) is not torch_ops.GETITEM for user in call.node.users):
        raise Unsupported("its parts are supported one by one")
    if call.node.meta.get("sizes") is None or len(shape_of(call.source) or ()) != 4:
        raise Unsupported("parts are supported along the channels of an image")


def _item(call: Call) -> Step:
    """A part of chunk or split, x[:, a:b], or x[:, :, None, None]."""
    x, index = call.node.args
    if isinstance(x, fx.Node) and _spreads(x, call):
        return Step("unflatten", [call.input()])
    if isinstance(x, fx.Node) and operator_of(x) is torch_ops.SPLIT and isinstance(index, int):
        sizes = x.meta["sizes"]
        if sizes is None:
            raise Consequence
        index %= len(sizes)
        begin = sum(sizes[:index])
        return _slice(call, x.args[0], begin, begin + sizes[index])
    if isinstance(x, fx.Node) and isinstance(index, tuple) and len(shape_of(x) or ()) == 4:
        return _indexed(call, x, index)
    raise Unsupported("it is no part of chunk or split, nor x[:, a:b]")


def _slice(call: Call, whole: Any, begin: int, end: int) -> Step:
    return Step("slice", [call.step(whole)], {"begin": begin, "end": end})


def _indexed(call: Call, x: fx.Node, index: tuple[Any, ...]) -> Step:
    full = slice(None)
    rest = [i for k, i in enumerate(index) if k != 1 and i is not Ellipsis]
    cut = index[1] if len(index) > 1 else full
    if any(i != full for i in rest) or not isinstance(cut, slice) or cut.step not in (None, 1):
        raise Unsupported("only channels may be cut, as x[:, a:b]")
    if not all(v is None or isinstance(v, int) for v in (cut.start, cut.stop)):
        raise Unsupported("its bounds are not constants")
    begin, end, _ = cut.indices((shape_of(x) or (0, 0))[1])
    return _slice(call, x, begin, end)


def _shuffle(op: str, argument: str) -> Row:
    """Pixel shuffle and unshuffle."""

    def make(call: Call) -> Step:
        x, factor = call.input(4), call.arguments()[argument]
        return Step(op, [x], {"factor": pair(factor)})

    return Row(make)


def _channel_shuffle(call: Call) -> Step:
    x, groups = call.input(4), call.arguments()["groups"]
    return Step("channel_shuffle", [x], {"groups": groups})


def _view(call: Call) -> Step:
    """view or reshape: of a gate, of a channel shuffle, or a flatten."""
    node = call.node
    x = node.args[0] if node.args else None
    if isinstance(x, fx.Node) and _spreads(x, call):
        if not _stays_free((*node.args[1:2], -1, -1)):
            raise Unsupported(_ONE_BATCH)
        return Step("unflatten", [call.input()])
    shuffled = _shuffle_by_hand(call)
    return _flatten(call) if shuffled is None else shuffled


def _spreads(x: fx.Node, call: Call) -> bool:
    """True for [N, C] as [N, C, 1, 1], as squeeze-excite writes it."""
    before = shape_of(x)
    return before is not None and len(before) == 2 and call.shape == (*before, 1, 1)


def _transpose(call: Call) -> Step:
    """Inside a channel shuffle."""
    shuffled = _shuffle_by_hand(call)
    return call.refuse() if shuffled is None else shuffled


def _shuffle_by_hand(call: Call) -> Step | None:
    """A channel shuffle for the last of its nodes, what it moves for the others; None for other
    nodes.
    """
    found = _around(call.node)
    if found is None:
        return None
    first, last = found
    x, groups = first.args[0], (shape_of(first) or (0, 0))[1]
    if call.node is not last or not isinstance(x, fx.Node):
        return call.input()
    return Step("channel_shuffle", [call.step(x)], {"groups": groups})


def _around(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The first and last node of view, transpose(1, 2), contiguous, view around `node`."""
    last = node
    for _ in range(4):
        chain = _ends_shuffle(last)
        if chain is not None and node in chain:
            return chain[0], last
        if len(last.users) != 1:
            return None
        (last,) = last.users
    return None


def _ends_shuffle(last: fx.Node) -> list[fx.Node] | None:
    chain, kinds = [last], [operator_of(last)]
    inner: tuple[TorchOp | None, ...] = (torch_ops.CONTIGUOUS, torch_ops.TRANSPOSE)
    while len(chain) < 4 and isinstance(x := chain[0].args[0] if chain[0].args else 0, fx.Node):
        if len(x.users) != 1:
            break
        chain.insert(0, x)
        kinds.insert(0, operator_of(x))
        if kinds[0] not in inner:
            break
    if len(chain) < 3 or (kinds[0], kinds[1], kinds[-1]) != _BY_HAND or chain[1].args[1:] != (1, 2):
        return None
    first = chain[0].args[0]
    before = shape_of(first) if isinstance(first, fx.Node) else None
    wide, after = shape_of(chain[0]), shape_of(last)
    if before is None or len(before) != 4 or before != after or len(wide or ()) != 5:
        return None
    free = all(_stays_free(n.args[1:]) for n in (chain[0], last))
    return chain if free and wide is not None and wide[3:] == before[2:] else None


def _stays_free(sizes: tuple[Any, ...]) -> bool:
    """No constant batch, height or width."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    ends = (sizes[0], *sizes[-2:])
    return all(isinstance(v, fx.Node) or v == -1 for v in ends)


def _flatten(call: Call) -> Step:
    """Any spelling of [N, C, H, W] -> [N, C*H*W] or [N, K] -> [N, K] that holds for every N."""
    before, after = shape_of(call.source), call.shape
    if before is None or len(before) not in (2, 4) or after != (before[0], math.prod(before[1:])):
        raise Unsupported(f"it reshapes {before} to {after}; only [N, -1] is supported")
    if call.operator is torch_ops.RESHAPE:
        sizes = call.node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], Sequence):
            sizes = tuple(sizes[0])
        if not sizes or not (isinstance(sizes[0], fx.Node) or sizes[0] == -1):
            raise Unsupported(_ONE_BATCH)
    x = call.input()
    return Step("flatten", [x]) if len(before) == 4 else x


_BY_HAND = (torch_ops.RESHAPE, torch_ops.TRANSPOSE, torch_ops.RESHAPE)
ROWS = {
    torch_ops.CONCAT: Row(_concat, "cat"),
    torch_ops.SPLIT: Row(_split, "chunk and split of channels"),
    torch_ops.GETITEM: Row(_item, ""),
    torch_ops.PIXEL_SHUFFLE: _shuffle("pixel_shuffle", "upscale_factor"),
    torch_ops.PIXEL_UNSHUFFLE: _shuffle("pixel_unshuffle", "downscale_factor"),
    torch_ops.CHANNEL_SHUFFLE: Row(_channel_shuffle),
    torch_ops.FLATTEN: Row(_flatten),
    torch_ops.RESHAPE: Row(_view, ""),
    torch_ops.TRANSPOSE: Row(_transpose, ""),
}
