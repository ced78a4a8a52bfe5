# SPDX-License-Identifier: Apache-2.0
"""Sizes of programs that were traced on an example: any, or the example's alone.

Such a trace knows every size as a number. The network is traced again on another batch and another
size: where that gives the same program, it holds for all sizes, otherwise for the first one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ternary_ops.errors import UnsupportedModel, UnsupportedShape, need
from ternary_ops.graph.batches import batch_of
from ternary_ops.program.graph import Graph, Node
from ternary_ops.program.shapes import sizes_of
from ternary_ops.program.weight import Weight

_log = logging.getLogger(__name__)
_BATCH, _OTHER_BATCH = 3, 2
Read = Callable[[Tensor], Graph]  # the program of a network traced on an example


def read_at_sizes(x: Tensor, read: Read) -> Graph:
    """The program of a network that `read` traces: for every batch, and for every image size or
    that of x, which its input then says.

    Raises what `read` raises, and UnsupportedModel where the batch is part of the network.
    """
    made = read(batch_of(x, _BATCH))
    more = batch_of(x, _OTHER_BATCH)
    if x.ndim > 2:
        for others in _other_sizes(more):
            try:
                same = all(same_program(made, read(other)) for other in others)
            except (UnsupportedModel, UnsupportedShape) as error:
                _log.info("not at other sizes: %s", error)
                continue
            if same:
                return made
            break
    _check_batch(made, more, read)
    return made if x.ndim == 2 else _fixed(made, sizes_of(x.shape))


def _other_sizes(x: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """x resized: first to odd sizes, which any halving feels, then to multiples of its own, one
    axis after the other. What holds for all of a tuple holds for every size.
    """
    if x.ndim == 3:
        yield (torch.cat([x, x[:, :1]], 1),)
        yield (torch.cat([x, x], 1),)
        return
    h, w = x.shape[2:]
    for sizes in (((h + 13, w + 6),), ((h, 2 * w), (2 * h, w))):
        yield tuple(F.interpolate(x, size, mode="bilinear") for size in sizes)


def _check_batch(made: Graph, more: Tensor, read: Read) -> None:
    what = "a network that treats every sample of a batch alike"
    do = "Take the batch size from the input's shape."
    try:
        same = same_program(made, read(more))
    except (UnsupportedModel, UnsupportedShape) as error:
        got = f"one that fails on {len(more)}: {error}"
        raise UnsupportedModel(need(what, got, do)) from error
    if not same:
        raise UnsupportedModel(need(what, "a batch size that is part of its code", do))


def _fixed(graph: Graph, sizes: tuple[int, ...]) -> Graph:
    """The program with an input of these sizes alone."""
    first, *rest = graph.nodes
    nodes = Node("input", (), {**first.attrs, "size": sizes}), *rest
    return Graph(nodes, graph.weights)


def same_program(a: Graph, b: Graph) -> bool:
    """True for graphs of the same nodes and the same weights."""
    if a.nodes != b.nodes or len(a.weights) != len(b.weights):
        return False
    return all(_same_weight(v, w) for v, w in zip(a.weights, b.weights, strict=True))


def _same_weight(a: Weight, b: Weight) -> bool:
    if a.kind != b.kind or not np.array_equal(a.array, b.array):
        return False
    return all(
        (v is None and w is None) or (v is not None and w is not None and np.array_equal(v, w))
        for v, w in ((a.scale, b.scale), (a.bias, b.bias), (a.slope, b.slope))
    )
