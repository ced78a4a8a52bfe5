# SPDX-License-Identifier: Apache-2.0
"""Ranges of the values that no layer owns: what calibrate saw, kept until compile reads it.

A layer keeps the ranges of its input and output itself. Sums, products, concats, functions and a
BatchNorm that stays unfolded have no layer, so the network itself keeps theirs: a plain attribute,
which `state_dict` saves as one tensor [2] a value and `load_state_dict` restores. A value goes by
how it is computed, not by its place, so that a range is never read for another value.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ternary_ops.graph.nodes import is_size

Ranges = dict[str, tuple[float, float]]
INPUT_VALUE = "ternary_ops_input"  # in the meta of a part: its input's name in the whole
_KEPT = "_tops_ranges"  # on the network
_SIZE = "size"  # the name of every number
_ENTRY = "_tops_range_of_"  # in a state_dict, before a value's name


def name_values(graph: fx.Graph, first: str | None = None) -> None:
    """Set node.meta["value"] of every node: two nodes of one name compute the same. `first` is the
    name of the input, where the graph is a part of another.

    The result of a module that is called once goes by the module's path; everything else by the
    operation, its constants and the names of its operands. Integers do not count, since a trace on
    an example has sizes as integers, and a symbolic one as values: calls that differ in nothing
    else go by their order. Earlier versions counted them: the "former" name.
    """
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    alike: Counter[str] = Counter()
    for node in graph.nodes:
        former, made = _made(node, calls, "former"), _made(node, calls, "value")
        alike[made] += 1
        node.meta["former"], node.meta["value"] = _hash(former), _hash(f"{made} {alike[made]}")
        if node.op == "placeholder" and first is not None:
            node.meta["former"] = node.meta["value"] = first
        if _is_number(node):
            node.meta["value"] = _SIZE


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _made(node: fx.Node, calls: Counter[Any], kind: str) -> str:
    """What makes a value, in words; kind: which of its operands' names are meant."""
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module" and calls[node.target] == 1:
        return f"module {node.target}"

    def name(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return _Named(str(value.meta[kind]))
        return _Named(_SIZE) if type(value) is int and kind == "value" else value

    given = fx.node.map_aggregate((node.args, dict(node.kwargs)), name)
    return f"{node.op} {_target(node)} {given!r}"


def _is_number(node: fx.Node) -> bool:
    """True for sizes and what is computed from them alone."""
    known = [operand.meta["value"] == _SIZE for operand in node.all_input_nodes]
    return is_size(node) or (bool(known) and all(known))


def value_name(node: fx.Node) -> str:
    """The name that name_values gave the value of a node; "" for a node made since."""
    return str(node.meta.get("value", ""))


def range_seen(
    ranges: Mapping[str, tuple[float, float]], node: fx.Node
) -> tuple[float, float] | None:
    """The range that calibrate, of this or an earlier version, saw of a node's value."""
    return ranges.get(value_name(node), ranges.get(str(node.meta.get("former", ""))))


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__name__', '')}"


class _Named:
    """A value's name in the repr of arguments."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


def is_entry(key: str) -> bool:
    """True for a key under which the state_dict of a network, as a root, has a range."""
    return key.startswith(_ENTRY)


def ranges_of(model: nn.Module) -> Ranges:
    """Ranges stored by keep_ranges; empty if none were."""
    return dict(getattr(model, _KEPT, {}))


def keep_ranges(model: nn.Module, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Let a network keep ranges, by the names of values, in place of those it has."""
    setattr(model, _KEPT, dict(ranges))
    travel_in_state(model)


def travel_in_state(model: nn.Module) -> None:
    """Make state_dict and load_state_dict of a network carry its ranges; once is enough."""
    if _save not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_save)  # type: ignore[no-untyped-call]
        model.register_load_state_dict_pre_hook(_load)  # type: ignore[no-untyped-call]


def _save(model: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, bounds in ranges_of(model).items():
        state[f"{prefix}{_ENTRY}{name}"] = torch.tensor(bounds, dtype=torch.float64)


def _load(
    model: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """A state without such entries, as earlier versions wrote it, leaves none."""
    start = f"{prefix}{_ENTRY}"
    found: Ranges = {}
    for key in [key for key in state if key.startswith(start)]:
        bounds = state.pop(key)
        if isinstance(bounds, Tensor) and bounds.shape == (2,):
            found[key.removeprefix(start)] = float(bounds[0]), float(bounds[1])
        else:
            errors.append(f"{key}: expected a range [2], got {bounds!r:.80}")
    setattr(model, _KEPT, found)
