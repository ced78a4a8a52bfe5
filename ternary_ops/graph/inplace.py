# SPDX-License-Identifier: Apache-2.0
"""Make what in-place operations change visible in a traced graph."""

from __future__ import annotations

from typing import Any

from torch import fx, nn


def name_inplace_results(graph: fx.Graph) -> None:
    """Let whoever reads a tensor after an in-place operation read that operation's result.

    `y = relu_(x); return y + x` adds y to itself, yet a trace says y + x. Identity and the like
    hand on the same tensor, so their results are followed too.
    """
    same: dict[fx.Node, list[fx.Node]] = {}  # every name of one tensor, shared between the names
    for node in list(graph.nodes):
        changed = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if changed is not None and _in_place(node):
            names = same.setdefault(changed, [changed])
            for name in names:
                name.replace_all_uses_with(node, delete_user_cb=_later_than(node))
            same[node] = names
            names.append(node)
        elif changed is not None and _hands_on(node):
            names = same.setdefault(changed, [changed])
            names.append(node)
            same[node] = names


def _later_than(node: fx.Node) -> Any:
    return lambda user: node < user


def _in_place(node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(_module(node), "inplace", False)) and not _hands_on(node)
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    name = getattr(node.target, "__name__", "")
    written = name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv")
    return node.op == "call_function" and (written or node.kwargs.get("inplace") is True)


def _hands_on(node: fx.Node) -> bool:
    """Identity, and Dropout in eval mode, return the very tensor they are given."""
    return node.op == "call_module" and isinstance(
        _module(node), (nn.Identity, nn.modules.dropout._DropoutNd)
    )


def _module(node: fx.Node) -> nn.Module:
    owner = node.graph.owning_module
    if owner is None:
        raise ValueError("the graph belongs to no module")
    return owner.get_submodule(str(node.target))
