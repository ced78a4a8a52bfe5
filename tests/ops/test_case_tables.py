# SPDX-License-Identifier: Apache-2.0
"""Every public operator has a case table of its name, with shapes to test and to time."""

from __future__ import annotations

import importlib

import pytest

from ternary_ops import ops

# prepack changes the layout of weights; blocks and register are no operators.
OPERATORS = sorted(set(ops.__all__) - {"blocks", "prepack", "register"})


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_its_table(name: str) -> None:
    case = importlib.import_module(f"cases.{name}").CASE
    assert case.op == name and case.shapes and case.bench
    assert callable(case.reference)
