# SPDX-License-Identifier: Apache-2.0
"""The precision filter's GPU kernels under the interpreter, held to the float64 reference."""

from __future__ import annotations

import pytest
from cases.precision_filter import FilterShape as Filter
from cases.precision_update import UpdateShape as Update
from precision_checks import filter_against_reference, update_against_reference

from ternary_ops.ops._precision import _gpu_filter, _gpu_update
from ternary_ops.reference.precision import PrecisionRule

# The interpreter takes milliseconds for each operation of a block: few steps.
UPDATES = (Update(2, 37, 0.5), Update(33, 129))
FILTERS = (Filter(1, 2, 3, 130), Filter(2, 2, 2, 9, PrecisionRule(sweeps=1)), Filter(3, 1, 2, 5))


@pytest.mark.parametrize("shape", UPDATES, ids=str)
def test_update(shape: Update) -> None:
    update_against_reference(shape, _gpu_update)


@pytest.mark.parametrize("shape", FILTERS, ids=str)
def test_filter(shape: Filter) -> None:
    filter_against_reference(shape, _gpu_filter)
