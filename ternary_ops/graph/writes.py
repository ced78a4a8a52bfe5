# SPDX-License-Identifier: Apache-2.0
"""Writes into parts of tensors: a trace does not see that the whole tensor changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ternary_ops.graph.lines import calling_line


def writes_into_parts(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Calls that `run`, of the model, makes to write into a part of another tensor or into another
    form of it, each with the path of its module and the line of its code.
    """
    with _Writes(model) as seen:
        run()
    return list(dict.fromkeys(seen.found))


class _Writes(TorchFunctionMode):
    """Notes such calls while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: list[str] = []
        self._paths = {module: path for path, module in model.named_modules()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, and note it where it writes into a view."""
        name, x = getattr(func, "__name__", ""), args[0] if args else None
        writes = name.endswith("_") and not name.endswith("__")  # x += y is x.add_(y), too
        if isinstance(x, Tensor) and (name == "__setitem__" or (writes and x._is_view())):
            self.found.append(f"{name}() in {self._place()}")
        return func(*args, **(kwargs or {}))

    def _place(self) -> str:
        """The innermost module of the model that runs, and the line."""
        frame: FrameType | None = sys._getframe(1)
        line, path = calling_line(), "forward"
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and self._paths.get(module):
                path = self._paths[module]
                break
            frame = frame.f_back
        return f"{path} ({line})" if line else path
