# SPDX-License-Identifier: Apache-2.0
"""A traced graph as plain data, and back: calls by the names of the operator table alone.

A node is [name, op, target, args, kwargs]. Arguments are JSON; whatever JSON lacks is an object of
one key: a node's name, a tuple, a slice, a dtype. What is read may come from anywhere: functions,
methods and attributes are those of `torch_ops` and of arithmetic on sizes, and every name that the
code of a torch.fx graph is made of is checked.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ternary_ops.errors import FormatError, UnsupportedModel, need
from ternary_ops.graph import torch_ops
from ternary_ops.io.safetensors import DAMAGED

_SPACES: dict[str, Any] = {
    "torch": torch,
    "torch.nn.functional": F,
    "torch.linalg": torch.linalg,
    "torch.special": torch.special,
    "operator": operator,
}
_ON_SIZES = (operator.floordiv, operator.mod, operator.truediv)
_METHODS = frozenset(
    {"size", "dim", "numel"} | {c for c in torch_ops.BY_CALL if isinstance(c, str)}
)
_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "T", "mT")
_PATH = re.compile(r"[^.\"'\\\s]+(\.[^.\"'\\\s]+)*")  # of a module or tensor
_OPS = ("placeholder", "get_attr", "call_function", "call_method", "call_module", "output")


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Every function that a file may name."""
    found: dict[str, Callable[..., Any]] = {"getattr": getattr, "abs": abs}
    for call in (*torch_ops.BY_CALL, *_ON_SIZES):
        name = getattr(call, "__name__", "")
        for space, holder in _SPACES.items():
            own: Any = getattr(holder, name, None)
            if own is call:
                found[f"{space}.{name}"] = own
    return found


def encode(graph: fx.Graph) -> list[list[Any]]:
    """The nodes of a graph as data. Raises UnsupportedModel, which names calls without a name in a
    file.
    """
    names = {call: name for name, call in _functions().items()}
    rows = []
    for node in graph.nodes:
        target: Any = node.target
        if node.op == "call_function":
            target = names.get(target)
        if target is None or (node.op == "call_method" and target not in _METHODS):
            called = getattr(node.target, "__name__", str(node.target))
            do = "Write it with the functions and layers that compile takes."
            what = "a network whose calls a file can name"
            raise UnsupportedModel(need(what, f"{called}()", do))
        rows.append([node.name, node.op, str(target), *_values((node.args, dict(node.kwargs)))])
    return rows


def _values(value: tuple[Any, ...]) -> list[Any]:
    return [_value(v) for v in value]


def _value(value: Any) -> Any:
    """One argument as JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (tuple, torch.Size)):
        return {"tuple": _values(tuple(value))}
    if isinstance(value, list):
        return _values(tuple(value))
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _value(v) for k, v in value.items()}}
    if isinstance(value, slice):
        return {"slice": _values((value.start, value.stop, value.step))}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, (torch.dtype, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    do = "Write the call without it."
    raise UnsupportedModel(need("arguments that a file can hold", f"a {type(value).__name__}", do))


def decode(rows: Any) -> fx.Graph:
    """The graph of data that `encode` made. Raises FormatError for what it cannot have made."""
    if not isinstance(rows, list):
        raise FormatError(need("a list of nodes", type(rows).__name__, DAMAGED))
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for row in rows:
        if not (isinstance(row, list) and len(row) == 5 and all(type(v) is str for v in row[:3])):
            raise _damaged("a node [name, op, target, args, kwargs]", row)
        name, op, target = row[:3]
        if name in made or not _is_name(name) or op not in _OPS:
            raise _damaged("a node with a name of its own and a known op", row[:2])
        args, kwargs = (_read(value, made) for value in row[3:])
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise _damaged("arguments of a node", row[3:])
        if not all(_is_name(key) for key in kwargs):
            raise _damaged("names of arguments", sorted(kwargs))
        made[name] = graph.create_node(op, _target(op, target, args), args, kwargs, name)
    ops = [node.op for node in graph.nodes]
    if ops.count("output") != 1 or ops[-1] != "output" or ops.count("placeholder") != 1:
        raise _damaged("a graph of one input and one output", sorted(set(ops)))
    return graph


def _target(op: str, target: str, args: tuple[Any, ...]) -> Any:
    """What a node calls, of what may be called."""
    if op == "call_function":
        function = _functions().get(target)
        if function is None:
            raise _damaged("a function of the operator table", target)
        if function is getattr and (len(args) != 2 or args[1] not in _ATTRIBUTES):
            raise _damaged(f"one of the attributes {', '.join(_ATTRIBUTES)}", args[1:])
        return function
    known = {
        "call_method": target in _METHODS,
        "placeholder": _is_name(target),
        "output": target == "output",
    }
    if not known.get(op, _PATH.fullmatch(target) is not None):
        raise _damaged(f"a target of {op}", target)
    return target


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _read(value: Any, made: Mapping[str, fx.Node]) -> Any:
    """The inverse of _value."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [_read(v, made) for v in value]
    if isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        reader = _READERS.get(kind)
        if reader is not None:
            return reader(inner, made)
    raise _damaged("an argument", value)


def _read_node(inner: Any, made: Mapping[str, fx.Node]) -> fx.Node:
    if not isinstance(inner, str) or inner not in made:
        raise _damaged("an earlier node", inner)
    return made[inner]


def _read_parts(inner: Any, made: Mapping[str, fx.Node]) -> tuple[Any, ...]:
    if not isinstance(inner, list):
        raise _damaged("a list of arguments", inner)
    return tuple(_read(v, made) for v in inner)


def _read_slice(inner: Any, made: Mapping[str, fx.Node]) -> slice:
    parts = _read_parts(inner, made)
    if len(parts) != 3:
        raise _damaged("a slice of three parts", inner)
    return slice(*parts)


def _read_dict(inner: Any, made: Mapping[str, fx.Node]) -> dict[str, Any]:
    if not isinstance(inner, dict):
        raise _damaged("named arguments", inner)
    return {key: _read(v, made) for key, v in inner.items()}


def _read_torch(inner: Any, made: Mapping[str, fx.Node]) -> Any:
    found = getattr(torch, inner, None) if isinstance(inner, str) else None
    if not isinstance(found, (torch.dtype, torch.memory_format)):
        raise _damaged("a dtype or memory format", inner)
    return found


def _read_float(inner: Any, made: Mapping[str, fx.Node]) -> float:
    if inner not in ("inf", "-inf", "nan"):
        raise _damaged("inf, -inf or nan", inner)
    return float(inner)


def _read_device(inner: Any, made: Mapping[str, fx.Node]) -> torch.device:
    if inner not in ("cpu", "cuda", "meta"):
        raise _damaged("a device", inner)
    return torch.device(inner)


_READERS: dict[str, Callable[[Any, Mapping[str, fx.Node]], Any]] = {
    "node": _read_node,
    "tuple": _read_parts,
    "slice": _read_slice,
    "dict": _read_dict,
    "torch": _read_torch,
    "float": _read_float,
    "device": _read_device,
    "ellipsis": lambda inner, made: Ellipsis,
}


def _damaged(what: str, got: Any) -> FormatError:
    return FormatError(need(f"{what} in the graph of a network", f"{got!r:.80}", DAMAGED))
