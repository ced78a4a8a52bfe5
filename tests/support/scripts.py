# SPDX-License-Identifier: Apache-2.0
"""Scripts of bench/ for tests."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
from checkout import BENCH


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of bench/ as the module `bench_<name>`, which finds its neighbours."""
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there
    spec.loader.exec_module(module)
    return module
