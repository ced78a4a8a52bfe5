# SPDX-License-Identifier: Apache-2.0
"""Forward hooks, replaced forwards and subclasses: what a program cannot have is refused by name,
and a BatchNorm that they touch is not folded.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folded import close, net, settled, state, unchanged
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel
from ternary_ops.quantize import calibrate, fold_batchnorm_


def double(module: nn.Module, given: Any, y: Tensor) -> Tensor:
    return 2 * y


def double_in_place(module: nn.Module, given: Any, y: Tensor) -> None:
    y.mul_(2)


def halve_input(module: nn.Module, given: Any) -> Any:
    return (given[0] / 2,)


HOOKS: dict[str, Callable[[Any], Any]] = {
    "output": lambda m: m.register_forward_hook(double),
    "in place": lambda m: m.register_forward_hook(double_in_place),
    "input": lambda m: m.register_forward_pre_hook(halve_input),
    "with keywords": lambda m: m.register_forward_hook(
        lambda module, given, more, y: y + 1, with_kwargs=True
    ),
    "forward": lambda m: setattr(
        m, "forward", types.MethodType(lambda self, x: 2 * type(m).forward(self, x), m)
    ),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_hooks_that_change_values_are_refused_or_kept(hook: str, place: int) -> None:
    model = settled(net())
    x = torch.randn(2, 3, 9, 9)
    HOOKS[hook](model[place])
    wanted, before = model(x), state(model)
    with pytest.raises(UnsupportedModel, match=rf"(?s)(on|got) {place}\b.*\n  \S"):
        tops.compile(model, x)
    assert unchanged(model, before)
    fold_batchnorm_(model)
    close(model(x).detach(), wanted)


def void(value: object) -> None:
    """A hook returns None."""


def test_a_hook_that_writes_the_weight() -> None:
    """Not of torch.nn.utils: what it writes at every call would undo a fold."""
    model = settled(net())
    start = torch.randn_like(model[0].weight)
    model[0].register_forward_pre_hook(lambda m, given: void(m.weight.data.copy_(2 * start)))
    x = torch.randn(2, 3, 9, 9)
    wanted = model(x)
    model[0].weight.data.normal_()
    close(tops.compile(model, x)(x.numpy()), wanted)
    assert fold_batchnorm_(model) == ["4"]
    close(model(x).detach(), wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_hooks_that_look_on_do_not_disturb(mode: Any) -> None:
    model = settled(net())
    x, seen = torch.randn(2, 3, 9, 9), []
    for module in model.modules():
        module.register_forward_hook(lambda m, given, y: seen.append(y.mean().item()))
    wanted = model(x)
    with mode():
        program = tops.compile(model, x)
    close(program(x.numpy()), wanted)
    count = len(seen)
    close(model(x).detach(), wanted)
    assert len(seen) > count  # the model still has them


def test_a_hook_of_a_block_is_part_of_its_trace() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x))

    model = nn.Sequential(Block(), nn.Conv2d(4, 2, 1)).eval()
    model[0].register_forward_hook(double)
    x = torch.randn(2, 3, 9, 9)
    close(tops.compile(model, x)(x.numpy()), model(x))


def test_a_subclass_with_another_forward_stays() -> None:
    class Scaled(tops.nn.TernaryConv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), Norm(4), nn.Conv2d(4, 2, 1)))
    x = torch.randn(2, 3, 9, 9)
    wanted = model(x)
    assert fold_batchnorm_(model) == []
    close(model(x).detach(), wanted)
    own = nn.Sequential(Scaled(3, 4, 3), tops.nn.TernaryConv2d(4, 2, 1)).eval()
    calibrate(own, [x])
    with pytest.raises(UnsupportedModel, match="got 0: a subclass of TernaryConv2d"):
        tops.pack_(own)
