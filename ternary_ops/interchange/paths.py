# SPDX-License-Identifier: Apache-2.0
"""Module paths for layers that are named after the weights of a file."""

from __future__ import annotations

import itertools
import keyword
import re

from torch import Tensor, fx, nn

_RESERVED = frozenset(dir(nn.Module())) | frozenset(dir(fx.GraphModule)) | {"graph"}


def put(root: nn.Module, name: str, module: nn.Module) -> str:
    """Add a module under a path like `name`, "layer1.0.conv"; returns the path.

    Characters that no attribute can have become "_"; Python's words and the attributes of torch
    modules get a "_" behind them. A name that is taken gets a number.
    """
    *before, last = [_part(p) for p in re.split(r"[./]", name) if p] or ["layer"]
    parent, path = root, ""
    for number, part in enumerate(before):
        child = parent._modules.get(part)
        if child is None:
            child = nn.Module()
            parent.add_module(part, child)
        elif type(child) is not nn.Module:
            # Not into another layer, which may be replaced as a whole.
            last = "_".join([*before[number:], last])
            break
        parent, path = child, f"{path}{part}."
    free = _free(parent, last)
    parent.add_module(free, module)
    return path + free


def put_buffer(root: nn.Module, values: Tensor) -> str:
    """Add a constant; returns its path."""
    name = _free(root, "constant")
    root.register_buffer(name, values)
    return name


def _free(parent: nn.Module, name: str) -> str:
    """The name, with a number if it is taken."""
    numbered = (f"{name}_{i}" for i in itertools.count(1))
    return next(n for n in itertools.chain([name], numbered) if not hasattr(parent, n))


def _part(text: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9_]", "_", text)
    if kept[0].isdigit() and not kept.isdigit():
        kept = f"n{kept}"
    return f"{kept}_" if keyword.iskeyword(kept) or kept in _RESERVED else kept
