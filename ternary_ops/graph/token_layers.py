# SPDX-License-Identifier: Apache-2.0
"""Linear layers that mix tokens, and those that no layer follows, by the structure of a trace.

Followed through a trace is the axis along which the channels of each value lie, counted from the
last, without a run: axis 1 behind a convolution, the last behind LayerNorm and linear layers, then
wherever transposes, reshapes and means put it. A linear layer reads the last axis; where that of
the channels is another, its weights run over tokens and hold for every channel alike, as those of
MLP-Mixer, ResMLP, gMLP and SPACH's token MLPs do. Where the axis is not known, the layer counts as
one over channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx, nn

from ternary_ops.graph import torch_ops as ops
from ternary_ops.graph.channel_ops import kind_of
from ternary_ops.graph.nodes import arguments_of, is_size, layer_class, module_of, operator_of

_SEVERAL = (ops.CHUNK, ops.SPLIT, ops.TENSOR_SPLIT, ops.UNBIND)


class _Place(NamedTuple):
    """Number of axes of a value, and of those behind its channels; None: not known."""

    rank: int | None = None
    behind: int | None = None

    def at(self, axis: int) -> int | None:
        """An axis of the value, counted from its first."""
        return axis if axis >= 0 or self.rank is None else axis + self.rank

    @property
    def first(self) -> int | None:
        """The channels' axis, from the first; without a rank from the last, below 0."""
        if self.behind is None:
            return None
        return -1 - self.behind if self.rank is None else self.rank - 1 - self.behind


def _of(rank: int | None, axis: int | None) -> _Place:
    """A value of so many axes whose channels lie along one of them, from the first."""
    inside = rank is not None and axis is not None and 0 <= axis < rank
    return _Place(rank, rank - 1 - axis if inside else None)  # type: ignore[operator]


def token_mixing(graph: fx.Graph) -> set[nn.Module]:
    """The linear layers whose weights run over tokens."""
    places: dict[fx.Node, _Place] = {}
    found: set[nn.Module] = set()
    for node in graph.nodes:
        inputs = [places[m] for m in node.all_input_nodes]
        places[node] = _READ.get(kind_of(node), _unknown)(node, inputs)
        module = module_of(node)
        if module is not None and _is_linear(node) and inputs[0].behind:
            found.add(module)
    return found


def ends(graph: fx.Graph) -> list[nn.Module]:
    """The linear layers whose results reach no other layer: classifiers, of which there may be
    several."""
    followed: dict[fx.Node, bool] = {}
    found: list[nn.Module] = []
    for node in reversed(graph.nodes):
        followed[node] = any(followed[user] or kind_of(user) == "layer" for user in node.users)
        module = module_of(node)
        if module is not None and _is_linear(node) and not followed[node]:
            found.append(module)
    return found


def _is_linear(node: fx.Node) -> bool:
    return kind_of(node) == "layer" and not hasattr(module_of(node), "kernel_size")


def _unknown(node: fx.Node, inputs: list[_Place]) -> _Place:
    return _Place(inputs[0].rank if inputs else None)


def _layer(node: fx.Node, inputs: list[_Place]) -> _Place:
    x = inputs[0]
    if _is_linear(node):
        return x if x.behind else x._replace(behind=0)
    sides = len(getattr(module_of(node), "kernel_size", (1, 1)))
    return _Place(sides + 2, sides)


def _norm(node: fx.Node, inputs: list[_Place]) -> _Place:
    module = module_of(node)
    last = module is not None and layer_class(module) is nn.LayerNorm
    return inputs[0]._replace(behind=0) if last and inputs[0].behind is None else inputs[0]


def _same(node: fx.Node, inputs: list[_Place]) -> _Place:
    """Of each number alone: the axis of the first operand that has one."""
    return next((place for place in inputs if place.behind is not None), _unknown(node, inputs))


def _reduce(node: fx.Node, inputs: list[_Place]) -> _Place:
    x, said = inputs[0], arguments_of(node, ops.MEAN)
    if said is None or x.rank is None or x.first is None:
        return _Place()
    dims = said["dim"] if isinstance(said["dim"], (tuple, list)) else (said["dim"],)
    if not all(isinstance(d, int) for d in dims):
        return _Place()
    gone = {x.at(d) for d in dims}
    if x.first in gone:
        return _Place()
    if said["keepdim"]:
        return x
    return _of(x.rank - len(gone), x.first - sum(d < x.first for d in gone if d is not None))


def _move(node: fx.Node, inputs: list[_Place]) -> _Place:
    x, op = inputs[0] if inputs else _Place(), operator_of(node)
    if is_size(node):
        return _Place()
    if op in _MOVES:
        return _MOVES[op](node, x)
    if op in (ops.CONCAT, ops.EXPAND, ops.ROLL, ops.REPEAT, ops.NARROW, *_SEVERAL):
        x = _same(node, inputs)
        fewer = op is ops.UNBIND and x.rank is not None
        return x._replace(rank=x.rank - 1) if fewer else x  # type: ignore[operator]
    return _Place(None, 0 if x.behind == 0 else None)  # other moves leave the last axis, mostly


def _transpose(node: fx.Node, x: _Place) -> _Place:
    said = arguments_of(node, ops.TRANSPOSE)
    dims = [] if said is None else [said["dim0"], said["dim1"]]
    if x.behind is None or not all(isinstance(d, int) for d in dims) or not dims:
        return _Place(x.rank)
    if x.rank is None and any(d >= 0 for d in dims):
        return _Place()
    a, b = (x.at(d) for d in dims)
    to = b if x.first == a else a if x.first == b else x.first
    return x._replace(behind=-1 - to) if x.rank is None else _of(x.rank, to)  # type: ignore[operator]


def _turn(node: fx.Node, x: _Place) -> _Place:
    """x.mT, x.T."""
    swapped = {0: 1, 1: 0}.get(-1 if x.behind is None else x.behind, x.behind)
    return x._replace(behind=swapped) if node.args[1] == "mT" or x.rank == 2 else _Place(x.rank)


def _permute(node: fx.Node, x: _Place) -> _Place:
    order = _numbers(node, ops.PERMUTE, "dims")
    if order is None or x.first is None:
        return _Place(x.rank)
    axes = [d % len(order) for d in order]
    return _of(len(axes), axes.index(x.first % len(axes)))


def _numbers(node: fx.Node, op: Any, name: str) -> list[int] | None:
    """Integers that a method is given, one by one or as a sequence."""
    given = node.kwargs.get(name, node.args[1:])
    if isinstance(given, (tuple, list)) and len(given) == 1:
        given = given[0] if isinstance(given[0], (tuple, list)) else given
    if not isinstance(given, (tuple, list)) or not all(isinstance(d, int) for d in given):
        return None
    return [int(d) for d in given] or None


def _flatten(node: fx.Node, x: _Place) -> _Place:
    module = module_of(node)
    names = ("start_dim", "end_dim")
    said: dict[str, Any] = {"start_dim": 0, "end_dim": -1}
    said |= dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    said |= {} if module is None else {n: getattr(module, n) for n in names}
    if x.rank is None or x.first is None or not all(isinstance(v, int) for v in said.values()):
        return _Place(None, 0 if x.behind == 0 else None)
    start, end = (d % x.rank for d in said.values())
    less = min(max(x.first - start, 0), end - start)
    return _of(x.rank - (end - start), x.first - less)


def _reshape(node: fx.Node, x: _Place) -> _Place:
    """Channels that lie last stay there, those of an image stay on axis 1: sizes need not be known
    to see what networks do."""
    sizes = node.kwargs.get("shape", node.args[1:])
    if isinstance(sizes, (tuple, list)) and len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    rank = len(sizes) if isinstance(sizes, (tuple, list)) and sizes else None
    if isinstance(sizes, (tuple, list)) and len(sizes) == 1 and isinstance(sizes[0], fx.Node):
        rank = None  # another value's shape
    if x.behind == 0:
        return _Place(rank, 0)
    return _of(rank, 1 if x.first == 1 else None)


def _getitem(node: fx.Node, x: _Place) -> _Place:
    source, index = node.args
    if isinstance(source, fx.Node) and operator_of(source) in _SEVERAL:
        return x
    items = index if isinstance(index, tuple) else (index,)
    plain = all(isinstance(i, (int, slice)) for i in items)
    if x.rank is None or x.first is None or not plain:
        return _Place(None, 0 if x.behind == 0 else None)
    gone = [axis for axis, i in enumerate(items) if isinstance(i, int)]
    if x.first in gone:
        return _Place(x.rank - len(gone))
    return _of(x.rank - len(gone), x.first - sum(axis < x.first for axis in gone))


_MOVES = {
    ops.TRANSPOSE: _transpose,
    ops.PERMUTE: _permute,
    ops.FLATTEN: _flatten,
    ops.RESHAPE: _reshape,
    ops.GETITEM: _getitem,
    ops.ATTRIBUTE: _turn,
}
_READ = {
    "layer": _layer,
    "norm": _norm,
    "pointwise": _same,
    "window": _same,
    "pad": _same,
    "softmax": _same,
    "reduce": _reduce,
    "move": _move,
}
