# SPDX-License-Identifier: Apache-2.0
"""One operator of PyTorch; `torch_ops` lists all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Kinds = tuple[type[nn.Module], ...]
REQUIRED = object()


@dataclass(frozen=True, eq=False)
class TorchOp:
    """One operator in all its spellings.

    name: for people. modules: classes of torch.nn and ternary_ops.nn. calls: functions, and methods
    by name. arguments: those after the tensor, in PyTorch's order, with its defaults; a module has
    them as attributes. subclasses: classes derived from the modules compute the same. named: calls
    recognized by the function's name alone, since its package may be absent.
    """

    name: str
    modules: Kinds = ()
    calls: tuple[Any, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    subclasses: bool = False
    named: tuple[str, ...] = ()
