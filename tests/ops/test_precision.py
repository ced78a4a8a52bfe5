# SPDX-License-Identifier: Apache-2.0
"""The operators of the precision filter against the float64 reference; PyTorch's own checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import precision_filter, precision_update
from precision_checks import filter_against_reference, update_against_reference

from ternary_ops import monitor, ops
from ternary_ops.errors import BadConfig, UnsupportedShape
from ternary_ops.ops._precision import _cpu_filter, _cpu_update

Update, Filter = precision_update.UpdateShape, precision_filter.FilterShape


@pytest.mark.parametrize("shape", precision_update.CASE.shapes, ids=str)
def test_update(shape: Update) -> None:
    update_against_reference(shape, ops.precision_update)


@pytest.mark.parametrize("shape", precision_filter.CASE.shapes, ids=str)
def test_filter(shape: Filter) -> None:
    filter_against_reference(shape, ops.precision_filter)


def test_opcheck() -> None:
    update = [torch.from_numpy(v) for v in Update(3, 20).operands()]
    op = torch.ops.ternary_ops.precision_update.default
    update[0] = torch.nan_to_num(update[0])
    torch.library.opcheck(op, (*update, 10.0, 1.7))
    shape = Filter(2, 3, 4, 20)
    given = [torch.nan_to_num(torch.from_numpy(v)) for v in shape.operands()]
    op = torch.ops.ternary_ops.precision_filter.default
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    for drive in (given[1], None):
        arguments = (given[0], drive, given[2:6], given[6:], 5.0)
        torch.library.opcheck(op, arguments, test_utils=quick)


def test_an_empty_batch_makes_empty_outputs() -> None:
    given = [torch.from_numpy(v) for v in Filter(2, 3, 4, 20).operands()]
    none = [v[..., :0] if v.shape[-1] == 20 else v for v in given]
    made = ops.precision_filter(none[0], none[1], none[2:6], none[6:], 5.0)
    assert [list(v.shape) for v in made] == [[2, 0], [3, 0], [3, 0], [4, 2, 0], [4, 3, 0]]


def test_the_operator_is_the_filter_of_rollouts() -> None:
    shape = Filter(2, 3, 30, 21)
    y, drive, a, q, c, r0, _, covariance, beta = (torch.from_numpy(v) for v in shape.operands())
    alpha = shape.rule.alpha
    made = ops.precision_filter(
        y, drive, [a, q, c, r0], [torch.zeros(2, 21), covariance, beta], alpha, rho=0.9
    )
    one = monitor.RolloutFilter(a, q, c, r0, 21, covariance=np.eye(2), rule=shape.rule)
    means, residuals = one.run(y, drive)
    np.testing.assert_array_equal(means, made[3].numpy())
    np.testing.assert_array_equal(residuals, made[4].numpy())


def test_bad_arguments_get_named_errors() -> None:
    update = [torch.from_numpy(v) for v in Update(3, 20).operands()]
    given: list[Any] = [torch.from_numpy(v) for v in Filter(2, 3, 4, 20).operands()]
    y, drive, model, belief = given[0], given[1], given[2:6], given[6:]
    wide = [torch.eye(9), *model[1:]]
    short = [*belief[:2], belief[2][:, :3]]
    calls: list[Any] = [
        (ops.precision_update, [update[0].double(), *update[1:], 5.0, 1.7]),
        (ops.precision_update, [update[0][0], *update[1:], 5.0, 1.7]),
        (ops.precision_update, [*update[:4], update[4][:2], 5.0, 1.7]),
        (ops.precision_update, [*update, 0.0, 1.7]),
        (ops.precision_filter, [y[0], drive, model, belief, 5.0]),
        (ops.precision_filter, [y, drive, wide, belief, 5.0]),
        (ops.precision_filter, [y, drive, model[:3], belief, 5.0]),
        (ops.precision_filter, [y, drive, model, short, 5.0]),
        (ops.precision_filter, [y, drive[:2], model, belief, 5.0]),
        (ops.precision_filter, [y, drive, model, belief, -1.0]),
    ]
    for call, arguments in calls:
        with pytest.raises(UnsupportedShape, match="ternary_ops.precision_"):
            call(*arguments)
    with pytest.raises(BadConfig, match="rho"):
        _cpu_update(*update, 5.0, 1.7, rho=0.0)
    with pytest.raises(BadConfig, match="sweeps"):
        _cpu_filter(y, drive, model, belief, 5.0, sweeps=0)
