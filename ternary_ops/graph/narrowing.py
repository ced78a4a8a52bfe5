# SPDX-License-Identifier: Apache-2.0
"""Whether a traced network still computes the same once channels are gone from all of its values.

What moves values may count them: `x.view(n, 2, c // 2, h, w)` follows the width, `x[:, :64]` and
`x.view(n, 8, 32, -1)` do not. Both are run on the numbers of the channels that are left, and must
put them where they stood among those that are left of the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from ternary_ops.graph.channel_axes import ChannelAxes
from ternary_ops.graph.channel_ops import kind_of
from ternary_ops.graph.channels import name_of
from ternary_ops.graph.nodes import is_size
from ternary_ops.graph.trace import Interpreter

_COUNTS = "counts on channels that would be gone"
Kept = NDArray[np.bool_]  # for each number of ChannelGroups.classes, whether it is left


class Miscounted(NamedTuple):
    """An operator that would not follow, and why."""

    node: fx.Node
    why: str

    def __str__(self) -> str:
        return f"{name_of(self.node)} {self.why}"


def kept_mask(axes: ChannelAxes, node: fx.Node, kept: Kept) -> Tensor:
    """Of the channels of a value, which are left: bool, of its number of axes, to broadcast."""
    shape, dims = axes.shapes[node], axes.dims[node]
    left = torch.from_numpy(kept[axes.groups.classes(node)])
    return left.view([shape[d] if d in dims else 1 for d in range(len(shape))])


def miscounted(
    traced: fx.GraphModule, axes: ChannelAxes, x: Tensor, kept: Kept
) -> list[Miscounted]:
    """The operators that count on channels that would be gone, in their order.

    x: the input that the axes were read with.
    """
    run = _Narrowed(traced, axes, kept)
    fx.Interpreter.run(run, x)
    return run.found


class _Narrowed(Interpreter):
    """Runs what moves values and what asks for sizes; all else makes what it should make."""

    def __init__(self, traced: fx.GraphModule, axes: ChannelAxes, kept: Kept) -> None:
        super().__init__(traced)
        self._axes, self._kept = axes, kept
        self._moving = {n for n in traced.graph.nodes if _moves(n)}
        self._touched = {n for n in axes.dims if not kept[axes.groups.classes(n)].all()}
        self._unknown: set[fx.Node] = set()
        self.found: list[Miscounted] = []

    def run_node(self, n: fx.Node) -> Any:
        """The numbers of the channels that are left of a value; sizes as they are then."""
        if n.op == "output":
            return None
        if n not in self._axes.dims:
            return self._beside(n)
        wanted = self._numbers(n)
        if n in self._moving and self._unknown.isdisjoint(n.all_input_nodes):
            found = self._ran(n)
            touched = n in self._touched or not self._touched.isdisjoint(n.all_input_nodes)
            if not isinstance(found, Tensor) or found.shape != wanted.shape:
                self._miss(n, _COUNTS)
            elif kind_of(n) == "move" and touched and not torch.equal(found.float(), wanted):
                self._miss(n, "would mix up the channels that are left")
        return wanted

    def _miss(self, n: fx.Node, why: str) -> None:
        if not self.found or self.found[-1].node is not n:
            self.found.append(Miscounted(n, why))

    def _beside(self, n: fx.Node) -> Any:
        """Sizes and what is computed of them, constants, tuples, tensors that have no channels."""
        tensors = [m for m in n.all_input_nodes if m in self._axes.shapes or m in self._unknown]
        if n in self._axes.moved or is_size(n) or not tensors:
            return self._ran(n)
        self._unknown.add(n)
        shape = self._axes.shapes.get(n)
        return None if shape is None else torch.zeros(shape)

    def _ran(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except (RuntimeError, IndexError, ValueError, TypeError):
            # TypeError: what it counts on failed before it.
            self._miss(n, _COUNTS)
            self._unknown.add(n)
            return None

    def _numbers(self, n: fx.Node) -> Tensor:
        """The class of each channel left, at all of its places in the value."""
        shape, dims = self._axes.shapes[n], self._axes.dims[n]
        classes = self._axes.groups.classes(n)
        sizes = [shape[d] if d in dims else 1 for d in range(len(shape))]
        numbers = torch.from_numpy(classes).float().view(sizes).expand(shape)
        moved = n in self._moving or not self._moving.isdisjoint(n.users)
        if n not in self._touched:
            return numbers.contiguous() if moved else numbers
        left = torch.from_numpy(self._kept[classes]).view([shape[d] for d in dims])
        for place, d in enumerate(dims):
            others = tuple(i for i in range(len(dims)) if i != place)
            here = (left.amax(others) if others else left).nonzero().flatten()
            numbers, left = numbers.index_select(d, here), left.index_select(place, here)
        if not bool(left.all()):
            self._miss(n, "puts channels along several axes, which must stay full")
        return numbers


def _moves(n: fx.Node) -> bool:
    """True for what is run: its result says where channels are."""
    return kind_of(n) in ("move", "reduce", "pixels")
