# SPDX-License-Identifier: Apache-2.0
"""ONNX operators that compute nothing from the image's values: constants, sizes, what is copied.

A list of sizes is an object array whose entries are whole numbers or traced nodes that give one, so
that what exporters do with the shape of a batch stays true for every batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from ternary_ops.interchange.loader import Loader
from ternary_ops.interchange.onnx_package import Unsupported
from ternary_ops.interchange.rules import Attributes, Made

Array = NDArray[Any]


def whole_numbers(loader: Loader, node: Any, number: int, what: str) -> list[int] | None:
    """A constant list of whole numbers in an input; None where it is left out."""
    array = loader.constant(node, number)
    if array is None:
        return None
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise Unsupported(
            f"{what} as a list of whole numbers", f"{array.dtype} {list(array.shape)}"
        )
    return [int(v) for v in np.atleast_1d(array)]


def axes_of(loader: Loader, node: Any, at: Attributes) -> list[int] | None:
    """Axes as an attribute, or as the second input of later opsets."""
    given = at.get("axes")
    return whole_numbers(loader, node, 1, "axes") if given is None else [int(a) for a in given]


def shape(loader: Loader, node: Any, at: Attributes) -> Made:
    """Sizes, or those from `start` to `end`."""
    name = node.input[0]
    if loader.is_constant(name):
        return np.asarray(loader.constants[name].shape[at.get("start", 0) : at.get("end")])
    x = loader.value(node, 0)
    rank = loader.rank(name)
    axes = range(rank)[at.get("start", 0) : at.get("end")]
    loader.sizes[node.output[0]] = _listed([loader.size(x, axis) for axis in axes])
    return None


def _listed(entries: list[Any]) -> NDArray[np.object_]:
    array = np.empty(len(entries), object)
    array[:] = entries
    return array


def fact(loader: Loader, node: Any, number: int, what: str) -> Array:
    """A constant or a list of sizes; Unsupported for a value that depends on the image."""
    name = node.input[number]
    if name in loader.sizes:
        return loader.sizes[name]
    array = loader.constant(node, number)
    if array is None:
        raise Unsupported(f"input {number}, {what}", "none")
    return array


def is_fact(loader: Loader, name: str) -> bool:
    """True if a value is a constant or a list of sizes."""
    return name in loader.sizes or loader.is_constant(name)


def keep(loader: Loader, node: Any, array: Array) -> Made:
    """The result of an operator on facts: constants are returned, sizes are noted."""
    if array.dtype != object:
        return array
    loader.sizes[node.output[0]] = array
    return None


def gather(loader: Loader, node: Any, at: Attributes) -> Made:
    """Gather from a list of sizes, or from a constant."""
    array, index = fact(loader, node, 0, "sizes or a constant"), loader.constant(node, 1)
    axis = _axis(at.get("axis", 0), array.ndim)
    if index is None or index.dtype.kind not in "iu":
        raise Unsupported("whole numbers as indices", None if index is None else index.dtype)
    if index.size and not -array.shape[axis] <= index.min() <= index.max() < array.shape[axis]:
        raise Unsupported(f"indices below {array.shape[axis]}", index.ravel().tolist())
    if array.dtype == object and index.ndim == 0:
        picked = np.empty((), object)
        picked[()] = array[int(index)]
        return keep(loader, node, picked)
    return keep(loader, node, np.take(array, index, axis))


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Unsupported(f"an axis of {rank}", f"axis = {axis}")
    return axis % rank


def slices(loader: Loader, node: Any, at: Attributes) -> Made:
    """Slice of a list of sizes, or of a constant."""
    array = fact(loader, node, 0, "sizes or a constant")
    index: list[slice] = [slice(None)] * array.ndim
    for axis, cut in cuts(loader, node, at, array.ndim).items():
        index[axis] = cut
    return keep(loader, node, array[tuple(index)])


def cuts(loader: Loader, node: Any, at: Attributes, rank: int) -> dict[int, slice]:
    """What a Slice leaves of each axis that it cuts."""
    lists = [whole_numbers(loader, node, n, "bounds") for n in range(1, len(node.input))]
    starts, ends, axes, steps = (*lists, None, None, None, None)[:4]
    if loader.opset is not None and loader.opset < 10:
        starts, ends, axes = at["starts"], at["ends"], at.get("axes")
    if starts is None or ends is None:
        raise Unsupported("starts and ends", "none")
    made: dict[int, slice] = {}
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = _axis(number if axes is None else axes[number], rank)
        step = 1 if steps is None else steps[number]
        if step < 1:
            raise Unsupported("steps forwards", f"steps = {steps}")
        made[axis] = slice(start, end, step)
    return made


def expanded(array: Array, axes: list[int]) -> Array:
    """Insert an axis of length 1 at each of `axes`, counted in the result."""
    rank = array.ndim + len(axes)
    places = {_axis(a, rank) for a in axes}
    if len(places) != len(axes):
        raise Unsupported("different axes", f"axes = {axes}")
    made: Array = np.expand_dims(array, tuple(places))
    return made


def squeezed(array: Array, axes: list[int] | None) -> Array:
    """Remove axes of length 1."""
    if axes is None:
        axes = [a for a, n in enumerate(array.shape) if n == 1]
    places = [_axis(a, array.ndim) for a in axes]
    if any(array.shape[a] != 1 for a in places):
        raise Unsupported("axes of length 1", f"axes {axes} of {list(array.shape)}")
    return array.reshape([n for a, n in enumerate(array.shape) if a not in places])


def concatenated(loader: Loader, node: Any, at: Attributes) -> Made:
    """Lists of sizes and numbers, or constants, one behind the other."""
    parts = [fact(loader, node, n, "sizes or a constant") for n in range(len(node.input))]
    axis = at.get("axis", 1)
    ranks = {part.ndim for part in parts}
    if len(ranks) != 1 or 0 in ranks:
        raise Unsupported("parts of as many axes", sorted(ranks))
    axis = _axis(axis, ranks.pop())
    rests = {tuple(n for a, n in enumerate(p.shape) if a != axis) for p in parts}
    if len(rests) != 1:
        raise Unsupported("parts that fit", [list(p.shape) for p in parts])
    if any(p.dtype == object for p in parts):
        parts = [p.astype(object) for p in parts]
    return keep(loader, node, np.concatenate(parts, axis))


def arithmetic(loader: Loader, node: Any, function: Callable[[Any, Any], Any]) -> Made:
    """Of two constants, or of sizes and whole numbers."""
    a, b = (fact(loader, node, n, "sizes or a constant") for n in (0, 1))
    if function is operator.truediv:
        return keep(loader, node, _divided(a, b))
    if not _whole(a, b) and a.dtype != b.dtype:
        raise Unsupported("two constants of one type", f"{a.dtype} and {b.dtype}")
    return keep(loader, node, _each(loader, function, a, b))


def _whole(*arrays: Array) -> bool:
    return all(array.dtype == object or array.dtype.kind in "iu" for array in arrays)


def _divided(a: Array, b: Array) -> Array:
    if a.dtype == b.dtype == np.float32:
        with np.errstate(divide="ignore", invalid="ignore"):
            exact: Array = np.asarray(a / b, np.float32)
        return exact
    plain = a.dtype != object and b.dtype != object and _whole(a, b)
    if not plain or (b == 0).any() or (a < 0).any() or (b < 0).any():
        got = " and ".join("sizes" if v.dtype == object else f"{v.dtype}" for v in (a, b))
        raise Unsupported("a quotient of constant floats or positive whole numbers", got)
    return np.asarray(a // b)


def _each(loader: Loader, function: Callable[[Any, Any], Any], a: Array, b: Array) -> Array:
    try:
        a, b = np.broadcast_arrays(a, b)
    except ValueError as error:
        raise Unsupported("shapes that fit", f"{list(a.shape)} and {list(b.shape)}") from error
    if a.dtype != object and b.dtype != object:
        return np.asarray(function(a, b), np.result_type(a, b))
    made = np.empty(a.shape, object)
    for place in np.ndindex(*a.shape):
        pair = [v if isinstance(v, fx.Node) else int(v) for v in (a[place], b[place])]
        numbers = [v for v in pair if isinstance(v, int)]
        # Lengths are positive; 0 and -1 would mean something else to Reshape.
        if function is operator.sub or min(numbers, default=1) < 1:
            raise Unsupported("sums and products of sizes and positive numbers", f"of {numbers}")
        made[place] = loader.call(function, *pair)
    return made


def same(loader: Loader, node: Any, at: Attributes) -> Made:
    """The input itself: an identity in eval mode."""
    if is_fact(loader, node.input[0]):
        return keep(loader, node, fact(loader, node, 0, "sizes or a constant"))
    return loader.value(node, 0)


def dropout(loader: Loader, node: Any, at: Attributes) -> Made:
    """Nothing, unless the file says that it trains."""
    training = loader.constant(node, 2)
    if training is not None and bool(training.any()):
        raise Unsupported("eval mode", "training_mode = True")
    return same(loader, node, at)


def cast(loader: Loader, node: Any, at: Attributes) -> Made:
    """Of a constant or of sizes; a computed value is float32 and stays so."""
    helper, name = loader.onnx.helper, node.input[0]
    names = {v: k for k, v in loader.onnx.TensorProto.DataType.items()}
    wanted = names.get(at["to"], at["to"])
    if name in loader.values:
        if wanted != "FLOAT":
            raise Unsupported("to = FLOAT for a computed value", f"to = {wanted}")
        return same(loader, node, at)
    if wanted not in ("FLOAT", "INT32", "INT64", "BOOL", "UINT8", "INT8"):
        raise Unsupported("to = FLOAT, INT32, INT64, BOOL, UINT8 or INT8", f"to = {wanted}")
    array = fact(loader, node, 0, "sizes or a constant")
    if array.dtype == object:
        if wanted not in ("INT32", "INT64"):
            raise Unsupported("sizes as whole numbers", f"to = {wanted}")
        return keep(loader, node, array)
    dtype = helper.tensor_dtype_to_np_dtype(at["to"])
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if not (limits.min <= array.min() and array.max() <= limits.max):  # NaN neither
            raise Unsupported(f"numbers that {wanted} holds", f"{array.min()} to {array.max()}")
    made: Array = array.astype(dtype)
    return made


def constant(loader: Loader, node: Any, at: Attributes) -> Made:
    """The array of a Constant node."""
    if "value" in at:
        return loader.array(at["value"])
    for name, dtype in (
        ("value_float", np.float32),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_ints", np.int64),
    ):
        if name in at:
            return np.asarray(at[name], dtype)
    raise Unsupported("a constant of numbers", sorted(at))
