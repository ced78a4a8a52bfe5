# SPDX-License-Identifier: Apache-2.0
"""Public names are what they should be, whatever was imported before; old ones forward."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import ternary_ops as tops
from ternary_ops import _moved

SCRIPT = """
import importlib, pathlib, pkgutil, sys, types
import ternary_ops as tops
names_first = sys.argv[1] == "names"
if names_first:
    before = {name: getattr(tops, name) for name in tops.__all__}
for info in pkgutil.walk_packages(tops.__path__, "ternary_ops."):
    if not info.name.startswith(("ternary_ops.kernels.", "ternary_ops.__main__")):
        importlib.import_module(info.name)
wrong = []
packages = [tops, *(m for n, m in list(sys.modules.items()) if n.startswith("ternary_ops."))]
for package in packages:
    for name in getattr(package, "__all__", ()):
        value = getattr(package, name)
        is_module = isinstance(value, types.ModuleType)
        # A module may be public; a function or class must not be hidden by a module of its name.
        if is_module and name not in MODULES.get(package.__name__, ()):
            wrong.append(f"{package.__name__}.{name}")
        if names_first and package is tops and value is not before[name]:
            wrong.append(f"{name} changed")
sys.exit("; ".join(wrong) or 0)
"""

MODULES = {
    "ternary_ops": sorted(tops._MODULES),
    "ternary_ops.climate": ["baselines"],
    "ternary_ops.monitor": ["faults", "methods", "plants"],
    "ternary_ops.ops": ["blocks"],
    "ternary_ops.sr": ["hosts"],
    "ternary_ops.sr.semi": ["hosts"],
}


@pytest.mark.parametrize("order", ["names", "modules"])
def test_names_do_not_depend_on_what_was_imported(order: str) -> None:
    script = f"MODULES = {MODULES!r}\n{SCRIPT}"
    done = subprocess.run(
        [sys.executable, "-c", script, order], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", tops.__all__)
def test_public_names_are_there(name: str) -> None:
    value = getattr(tops, name)
    if name == "__version__":
        assert isinstance(value, str)
    elif name in tops._MODULES:
        assert isinstance(value, ModuleType) and value.__doc__
    else:
        assert callable(value) and value.__doc__


def test_old_modules_forward_with_a_warning() -> None:
    script = """
import importlib, sys, warnings
from ternary_ops import _moved
for old, new in _moved.MODULES.items():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        module = importlib.import_module(f"ternary_ops.{old}")
    assert module.__name__ == f"ternary_ops.{new}", (old, module)
    assert any(w.category is DeprecationWarning and new in str(w.message) for w in seen), old
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("package", "name", "home"),
    [(p, n, home) for p, names in _moved.NAMES.items() for n, home in names.items()],
)
def test_old_names_forward_with_a_warning(package: str, name: str, home: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{name} is now in"):
        value = getattr(importlib.import_module(f"ternary_ops.{package}"), name)
    path, _, new = home.partition(":")
    assert value is getattr(importlib.import_module(f"ternary_ops.{path}"), new or name)


def test_what_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="ternary_ops.quantize"):
        _ = tops.quantize.nothing  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'ternary_ops'"):
        _ = tops.nothing
