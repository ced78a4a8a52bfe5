# SPDX-License-Identifier: Apache-2.0
"""xarray, as this room imports it: one place that names the extra where it is missing."""

from __future__ import annotations

from typing import Any

from ternary_ops.errors import needs_package

INSTALL = "pip install 'ternary-ops[climate]'"

with needs_package("xarray", "climate data", INSTALL):
    import xarray

xr: Any = xarray
