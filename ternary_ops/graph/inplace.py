# SPDX-License-Identifier: Apache-2.0
"""Make what in-place operations change visible in a traced graph."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

# These return the very tensor they are given, in eval mode.
_SAME = (nn.Identity, nn.modules.dropout._DropoutNd)


def name_inplace_results(graph: fx.Graph) -> None:
    """Redirect reads of a tensor after an in-place operation to that operation's result.

    `y = relu_(x); return y + x` adds y to itself, yet a trace says y + x. Identity and the like
    hand on the same tensor, so their results are followed too.
    """
    same: dict[fx.Node, list[fx.Node]] = {}  # every name of one tensor, shared between the names
    modules = dict(graph.owning_module.named_modules()) if graph.owning_module else {}
    for node in list(graph.nodes):
        changed = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if changed is None:
            continue
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _SAME):
            names = same.setdefault(changed, [changed])
            names.append(node)
            same[node] = names
        elif works_in_place(node, module):
            names = same.setdefault(changed, [changed])
            for name in names:
                name.replace_all_uses_with(node, delete_user_cb=_later_than(node))
            same[node] = names
            names.append(node)


def _later_than(node: fx.Node) -> Any:
    return lambda user: node < user


def works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """True for calls that write into their first operand; module: what a call_module node calls."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    name = getattr(node.target, "__name__", "")
    written = name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv")
    return node.op == "call_function" and (written or node.kwargs.get("inplace") is True)
