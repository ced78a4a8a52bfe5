# SPDX-License-Identifier: Apache-2.0
"""Tensors that are derived from a layer's state, and write back to it what is written into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_ASSIGNS = ("__setitem__", "__iand__", "__ior__", "__ixor__", "__iadd__", "__isub__", "__imul__")


class StateView(Tensor):
    """A derived tensor of a layer: in-place changes of it change the layer.

    Without this, `layer.mask.copy_(m)` would be lost in silence. Every other operation takes it as
    the plain tensor it is and returns plain tensors; its `grad` and `requires_grad_` are those of
    the parameter that learns it, if there is one.
    """

    _write: Callable[[Tensor], None]
    _leaf: nn.Parameter | None

    @staticmethod
    def of(
        value: Tensor, write: Callable[[Tensor], None], leaf: nn.Parameter | None = None
    ) -> StateView:
        """value, linked to `write`, which is given the whole tensor after each change."""
        view = value.as_subclass(StateView)
        view._write, view._leaf = write, leaf
        return view

    @property
    def data(self) -> Tensor:  # type: ignore[override]  # torch declares an attribute
        """The values without gradient, linked as this is."""
        return StateView.of(_plain(self).detach(), self._write, self._leaf)

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]  # torch declares an attribute
        """True if the underlying parameter is trained."""
        return self._leaf is not None and self._leaf.requires_grad

    @property
    def grad(self) -> Tensor | None:
        """Gradient of the underlying parameter."""
        return None if self._leaf is None else self._leaf.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self._leaf is not None:
            self._leaf.grad = value

    def requires_grad_(self, requires_grad: bool = True) -> StateView:
        """Start or stop training the underlying parameter."""
        if self._leaf is not None:
            self._leaf.requires_grad_(requires_grad)
        return self

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            plain = [
                tree_map(_plain, a) if isinstance(a, (list, tuple)) else _plain(a) for a in args
            ]
            made = func(*plain, **tree_map(_plain, kwargs or {}))
        name = getattr(func, "__name__", "")
        changed = args[0] if args else None
        if isinstance(changed, StateView) and _in_place(name):
            changed._write(_plain(changed).detach())
            return None if name == "__setitem__" else changed
        if isinstance(changed, StateView) and name == "detach":
            return StateView.of(made, changed._write, changed._leaf)
        return made


def _in_place(name: str) -> bool:
    return name in _ASSIGNS or (name.endswith("_") and not name.endswith("__"))


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, StateView) else value
