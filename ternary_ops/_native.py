# SPDX-License-Identifier: Apache-2.0
"""The door to the native module: loaded at first use, once, in the version of these files."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

from ternary_ops.errors import BuildMismatch


@lru_cache(maxsize=1)
def core() -> ModuleType:
    """Return `ternary_ops._core`.

    Raises:
        BuildMismatch: it is missing, or was built from another version of the package.
    """
    from ternary_ops._version import __version__

    try:
        from ternary_ops import _core
    except ImportError as error:
        raise BuildMismatch(
            f"the native module of ternary_ops {__version__} is missing or broken ({error}).\n"
            "  Reinstall: pip install --force-reinstall --no-deps . "
        ) from error
    if _core.version != __version__:
        raise BuildMismatch(
            f"the Python files are version {__version__}, the native module is {_core.version}.\n"
            "  Reinstall: pip install --force-reinstall --no-deps . , then restart Python."
        )
    module: ModuleType = _core
    return module
