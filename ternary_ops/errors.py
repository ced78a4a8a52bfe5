# SPDX-License-Identifier: Apache-2.0
"""The named errors. Each derives from TernaryOpsError and the builtin a caller would expect."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The oldest releases that work. pyproject.toml asks for the same: tests/test_extras.py.
OLDEST = {"torch": "2.10"}


class TernaryOpsError(Exception):
    """Base of every error this package raises on purpose."""


class UnsupportedShape(TernaryOpsError, ValueError):
    """A shape, stride, group count or dtype that an operator cannot take."""


class UnsupportedDevice(TernaryOpsError, RuntimeError):
    """No kernel for this device, instruction set or dtype."""


class UnsupportedModel(TernaryOpsError, ValueError):
    """A network (or a layer of it) that cannot be planned, packed or compiled."""


class BadConfig(TernaryOpsError, ValueError):
    """An option that is unknown, out of range, or that no part of the model answers to."""


class BadWeights(TernaryOpsError, ValueError):
    """Weights that are not finite, or codes that are not valid."""


class FormatError(TernaryOpsError, ValueError):
    """A file that is not ours, is damaged, or has an unknown version."""


class BuildMismatch(TernaryOpsError, ImportError):
    """The Python files and the native module come from different versions."""


class MissingExtra(TernaryOpsError, ImportError):
    """An optional dependency is absent or too old; the message names the install command."""


def need(what: str, got: object, do: str) -> str:
    """expected `what`, got `got`; `do`: what was needed, what there is instead, what to do.

    `what` is a thing ("a list of names", "finite x"), not a clause ("x is finite").
    """
    return f"expected {what}, got {got};\n  {do}"


def check_type(name: str, value: object, kinds: type | tuple[type, ...], do: str) -> None:
    """Raise BadConfig unless the argument `name` is of one of `kinds`; a bool is no number."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return
    wanted = " or ".join(kind.__name__ for kind in kinds)
    raise BadConfig(need(f"{name} of type {wanted}", f"{value!r:.80}", do))


@contextmanager
def needs_package(module: str, what: str, do: str) -> Iterator[None]:
    """MissingExtra, "expected PACKAGE for `what`", where the body fails for want of `module`.

    It does where `module` is not installed, or is too old: then whatever it lacks.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise MissingExtra(need(f"{module} for {what}", "none installed", do)) from error
        check_age(module, what, do)
        raise


def release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version: (2, 13) of "2.13.0+cpu"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def too_old(module: str) -> bool:
    """True if `module` is imported already and older than OLDEST says."""
    found = getattr(sys.modules.get(module), "__version__", None)
    return found is not None and release(str(found)) < release(OLDEST.get(module, "0"))


def check_age(module: str, what: str, do: str) -> None:
    """MissingExtra, "expected PACKAGE 2.10 or newer for `what`", where `module` is older."""
    if too_old(module):
        wanted = f"{module} {OLDEST[module]} or newer for {what}"
        raise MissingExtra(need(wanted, f"{module} {sys.modules[module].__version__}", do))


def first_line(error: Exception) -> str:
    """The first line of an error's message, without what to do."""
    return str(error).partition("\n")[0].removesuffix(";")
