# SPDX-License-Identifier: Apache-2.0
"""xarray, imported at first use: one place that names the extra where it is missing."""

from __future__ import annotations

from typing import Any

from ternary_ops.errors import needs_package

INSTALL = "pip install 'ternary-ops[climate]'"


class _AtFirstUse:
    """The module xarray: its attributes import it."""

    def __getattr__(self, name: str) -> Any:
        with needs_package("xarray", "climate data", INSTALL):
            import xarray
        return getattr(xarray, name)


xr: Any = _AtFirstUse()
