# SPDX-License-Identifier: Apache-2.0
"""Programs: the graph (`ir`), its file form (`index`), its oracle (`simulate`), and `compile`.

Everything but `compile` and `lower` works without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ternary_ops.engine.compiler import compile  # noqa: A004

__all__ = ["compile"]


def __getattr__(name: str) -> Any:
    if name != "compile":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ternary_ops.engine.compiler import compile  # noqa: A004

    return compile
