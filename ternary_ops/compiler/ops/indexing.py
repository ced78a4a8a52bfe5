# SPDX-License-Identifier: Apache-2.0
"""Parts of a tensor: indexing, chunk, split and their kin, along any axis but the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from ternary_ops.compiler.axes import Sizes, Value
from ternary_ops.compiler.call import Call, Made, shape_of, shapes_of, sizes_of
from ternary_ops.compiler.ops.row import Row
from ternary_ops.compiler.parts import Range, part, picked, selected, unfolded
from ternary_ops.compiler.unsupported import Consequence, Unsupported
from ternary_ops.graph import torch_ops
from ternary_ops.graph.constants import attribute_of


def _split(call: Call) -> list[Value]:
    """chunk, split and tensor_split: the sizes of what they make say all."""
    x, at = call.value(), call.arguments()
    axis = at["dim"] % len(x.axes)
    parts, begin = [], (0,) * x.examples
    for i in range(len(shapes_of(call.node)[0])):
        length = sizes_of(call.node, i)[axis]
        end = tuple(map(sum, zip(begin, length, strict=True)))
        parts.append(part(x, axis, Range(begin, end)))
        begin = end
    return parts


def _unbind(call: Call) -> list[Value]:
    x = call.value()
    axis = call.arguments()["dim"] % len(x.axes)
    count = x.sizes[axis]
    if len(set(count)) > 1:
        raise Unsupported("how many parts it makes depends on the input")
    return [selected(x, axis, (i,) * x.examples) for i in range(count[0])]


def _narrow(call: Call) -> Value:
    x, at = call.value(), _said(call)
    begin, length = call.number(at["start"]), call.number(at["length"])
    return part(x, at["dim"], Range(begin, _plus(begin, length)))


def _select(call: Call) -> Value:
    x, at = call.value(), _said(call)
    return _one(call, x, at["dim"], at["index"])


def _index_select(call: Call) -> Value:
    x, at = call.value(), _said(call)
    return picked(x, at["dim"], _places(_constant(at["index"]), x.sizes[at["dim"]]))


def _said(call: Call) -> dict[str, Any]:
    """Arguments of a function or method."""
    names = ("input", *call.operator.arguments)  # type: ignore[union-attr]
    return {**dict(zip(names, call.node.args, strict=False)), **call.node.kwargs}


def _plus(a: Sizes, b: Sizes) -> Sizes:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _one(call: Call, x: Value, axis: int, index: Any) -> Value:
    """One number of an axis, without the axis."""
    numbers, size = call.number(index), x.sizes[axis]
    return selected(x, axis, tuple(i % n for i, n in zip(numbers, size, strict=True)))


def _item(call: Call) -> Made:
    """x[...] of a tensor, or of several."""
    x, index = call.node.args
    if not isinstance(x, fx.Node):
        raise Unsupported("it does not work on a tensor that comes from the input")
    if shape_of(x) == ():
        made = call.values(x)
        if isinstance(made, list) and isinstance(index, (int, slice)):
            return made[index]
        raise Consequence
    return _indexed(call, call.value(x), index if isinstance(index, tuple) else (index,))


def _indexed(call: Call, x: Value, index: tuple[Any, ...]) -> Value:
    given = [i for i in index if i is not Ellipsis]
    if len(given) < len(index):
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        used = sum(i is not None for i in given)
        index = (*index[:at], *[slice(None)] * (len(x.axes) - used), *index[at + 1 :])
    axis = lists = 0
    for i in map(_constant, index):
        if i is None:
            x = x.seen_as([*x.axes[:axis], (), *x.axes[axis:]])
            axis += 1
        elif isinstance(i, slice):
            x = part(x, axis, _range(call, x, axis, i))
            axis += 1
        elif isinstance(i, (list, tuple, Tensor)) and not lists:
            x, lists = _taken(x, axis, i), 1
            axis += getattr(i, "ndim", 1)
        else:
            x = _one(call, x, axis, i)
    return x


def _taken(x: Value, axis: int, index: Any) -> Value:
    """Numbers at constant places, under as many axes as the index has."""
    places = index.flatten() if isinstance(index, Tensor) else index
    x = picked(x, axis, _places(places, x.sizes[axis]))
    if places is index:
        return x
    shape: list[Sizes] = [(n,) * x.examples for n in index.shape]
    return x.reshaped([*x.sizes[:axis], *shape, *x.sizes[axis + 1 :]])


def _range(call: Call, x: Value, axis: int, cut: slice) -> Range:
    """A slice for each example."""
    size = x.sizes[axis]
    start, stop = (None if v is None else call.number(v) for v in (cut.start, cut.stop))
    step = 1 if cut.step is None else cut.step
    if type(step) is not int:
        raise Unsupported("its step is not a constant")
    found = [
        slice(start and start[k], stop and stop[k], step).indices(n) for k, n in enumerate(size)
    ]
    return Range(tuple(f[0] for f in found), tuple(max(f[:2]) for f in found), step)


def _constant(index: Any) -> Any:
    """The tensor of an index that is a constant of the network."""
    if isinstance(index, fx.Node) and index.op == "get_attr":
        return attribute_of(index.graph.owning_module, str(index.target))
    return index


def _places(index: Any, size: Sizes) -> list[int]:
    """Constant places along an axis."""
    values = index.tolist() if isinstance(index, Tensor) else index
    if not isinstance(values, (list, tuple)) or not all(type(v) is int for v in values):
        raise Unsupported("its index is not a constant list of places")
    if len(set(size)) > 1 and min(values) < 0:
        raise Unsupported("its index counts from an end that the input moves")
    return [v % size[0] for v in values]


def _unfold(call: Call) -> Value:
    x, at = call.value(), _said(call)
    size, step = at["size"], at["step"]
    if type(size) is not int or type(step) is not int:
        raise Unsupported("its windows depend on the size of the input")
    return unfolded(x, at["dimension"], size, step)


_PARTS = Row(_split, "")
ROWS = {
    torch_ops.CHUNK: Row(_split),
    torch_ops.SPLIT: Row(_split),
    torch_ops.TENSOR_SPLIT: Row(_split),
    torch_ops.UNBIND: Row(_unbind),
    torch_ops.NARROW: Row(_narrow),
    torch_ops.SELECT: Row(_select),
    torch_ops.INDEX_SELECT: Row(_index_select),
    torch_ops.GETITEM: Row(_item, "indexing"),
    torch_ops.UNFOLD: Row(_unfold),
}
