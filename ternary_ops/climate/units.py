# SPDX-License-Identifier: Apache-2.0
"""Units of fields, by pint and cf-xarray: converted where they can be, refused otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ternary_ops.climate.xarray_package import INSTALL
from ternary_ops.errors import BadConfig, need, needs_package

_DO = "Pass units={'tas': 'degC'} (--units tas=degC), or set the attribute 'units'."


def units_of(field: Any, given: Mapping[str, str]) -> str:
    """Units of a field: those given for its name, else its attribute; never guessed (BadConfig)."""
    found = given.get(str(field.name), field.attrs.get("units"))
    if not isinstance(found, str) or not found.strip():
        raise BadConfig(need(f"units of {field.name!r}", "none in its attributes", _DO))
    return found


def check_names(given: Mapping[str, str], names: set[str]) -> None:
    """Raise BadConfig for units of a variable that no data set has."""
    unknown = sorted(set(given) - names)
    if unknown:
        got = f"units of {unknown[0]!r}"
        raise BadConfig(need(f"units of {', '.join(sorted(names))}", got, "Check the name."))


@lru_cache(maxsize=256)
def conversion(source: str, target: str) -> tuple[float, float]:
    """Factor and offset from one unit to another: value * factor + offset.

    Raises BadConfig where either is unknown, or where they measure different things.
    """
    if source == target:
        return 1.0, 0.0
    with needs_package("pint", "units", INSTALL), needs_package("cf_xarray", "units", INSTALL):
        import cf_xarray.units
        import pint
    registry: Any = cf_xarray.units.units
    try:
        one, other = registry.parse_units(source), registry.parse_units(target)
        zero = float(registry.Quantity(0.0, one).to(other).magnitude)
        # From far away, so that the offset of temperatures costs no digits.
        high = float(registry.Quantity(2.0**20, one).to(other).magnitude)
    except (pint.errors.PintError, ValueError, TypeError, AttributeError) as error:
        what = f"units that convert to {target!r}"
        raise BadConfig(need(what, f"{source!r} ({' '.join(str(error).split())})", _DO)) from None
    return (high - zero) / 2.0**20, zero


def to_units(field: Any, units: str, given: Mapping[str, str]) -> Any:
    """The field in other units; float64 where numbers change, and lazy as it was."""
    factor, offset = conversion(units_of(field, given), units)
    if (factor, offset) == (1.0, 0.0):
        return field
    # A whole offset of temperatures, 273.15, is added alone: a factor of 1 must not round.
    values = field.astype("float64")
    made = values + offset if abs(factor - 1) < 1e-12 else values * factor + offset
    return made.rename(field.name).assign_attrs({**field.attrs, "units": units})
