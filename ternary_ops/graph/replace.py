# SPDX-License-Identifier: Apache-2.0
"""Put modules of a network in the place of others, wherever it holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

# What nn.Module keeps of the hooks that users registered on it.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)


def replace_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put `new[m]` in the place of m under every name it has, in the model's plain lists, tuples
    and dicts too; users' hooks move along.
    """
    for old, layer in new.items():
        for name in _HOOKS:
            layer.__dict__[name] = old.__dict__[name]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[name] = new[child]
                if isinstance(parent, nn.TransformerEncoderLayer):
                    # Its fused path, which this turns off, reads weights instead of calling layers.
                    parent.activation_relu_or_gelu = 0
        for name, value in vars(parent).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                parent.__dict__[name] = _swapped(value, new, set())


def _swapped(value: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """The value with modules replaced: lists and dicts in place, since others may hold them."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if type(value) not in (list, tuple, dict) or id(value) in seen:
        return value
    seen.add(id(value))
    places = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    changed = {key: made for key, old in places if (made := _swapped(old, new, seen)) is not old}
    if isinstance(value, tuple) and changed:
        return tuple(changed.get(i, old) for i, old in places)
    for key, made in changed.items():
        value[key] = made
    return value
