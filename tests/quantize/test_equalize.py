# SPDX-License-Identifier: Apache-2.0
"""equalize_: the same function, whose channels suit 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.nn.utils.prune import l1_unstructured

import ternary_ops as tops
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel
from ternary_ops.quantize import equalize_


class Mixed(nn.Module):
    """Everything that passes factors on, and what stops them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.act = nn.PReLU(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.narrow = nn.Conv2d(8, 4, 1)
        self.gate = nn.Conv2d(8, 12, 1)
        self.after = nn.Conv2d(12, 6, 3, stride=2)
        self.six = nn.Conv2d(6, 6, 1)
        self.linear = nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.head(x)))
        h = h + self.act(self.a(h))
        h = self.depthwise(h) - h
        n = F.leaky_relu(self.narrow(h), 0.1)
        both = torch.cat([h, n], 1)
        y = both * torch.sigmoid(self.gate(h)) * 0.5
        size = y.shape[2] - 1, y.size(3) - 1
        y = F.interpolate(y, size, mode="bilinear", align_corners=False)
        y = F.max_pool2d(F.relu(self.after(y)), 2)
        y = F.gelu(self.six(y)) + torch.tanh(y)
        out: Tensor = self.linear(torch.flatten(y, 1))
        return out


def mixed() -> Mixed:
    torch.manual_seed(3)
    net = Mixed().eval()
    net.norm.running_mean = torch.randn(8)
    net.norm.running_var = torch.rand(8) + 0.5
    return net


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(count)]


def error(net: nn.Module, x: list[Tensor]) -> float:
    """Mean squared error of the output that 8 bits cause."""
    quantized = copy.deepcopy(net)
    tops.quantize_(quantized, tops.plan(quantized, tops.TernaryConfig("int8")))
    tops.calibrate(quantized, x, "minmax")
    with torch.no_grad():
        return float(torch.stack([(quantized(b) - net(b)).square().mean() for b in x]).mean())


def test_the_function_stays() -> None:
    net = mixed()
    x = torch.cat(batches())
    before = net(x)
    found = equalize_(net, batches())
    assert found.after < found.before
    assert found.channels == 8 + 4  # what norm and narrow make; gelu, tanh, sigmoid stop the rest
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)


class Pair(nn.Module):
    """Two layers around a ReLU, whose inner channels can be made uneven."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(F.relu(self.first(x)))
        return y

    @torch.no_grad()
    def skew_(self) -> Pair:
        factors = 2.0 ** torch.linspace(-5, 5, 16)
        assert self.first.bias is not None
        self.first.weight.mul_(factors[:, None, None, None])
        self.first.bias.mul_(factors)
        self.second.weight.div_(factors[:, None, None])
        return self


def pair() -> Pair:
    torch.manual_seed(7)
    return Pair().eval()


def test_uneven_channels_cost_no_more_than_even_ones() -> None:
    x = batches()
    even, uneven = pair(), pair().skew_()
    worst = error(uneven, x)
    assert worst > 20 * error(even, x)
    equalize_(uneven, x)
    assert error(uneven, x) < 1.3 * error(even, x)


@pytest.mark.parametrize("make", [pair, mixed])
def test_what_is_expected_is_what_happens(make: Callable[[], nn.Module]) -> None:
    net = make()
    x = batches()
    for _ in range(2):
        measured = error(net, x)
        found = equalize_(net, x)
        # Few weights, the largest of them exact: rounding costs less than in larger layers.
        assert 0.8 * measured < found.before < 4 * measured
    assert found.after > 0.97 * found.before  # nothing is left to gain


def test_the_result_is_the_same_each_time() -> None:
    first, second = mixed(), mixed()
    assert equalize_(first, batches()) == equalize_(second, batches())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_shared_and_strange_layers_are_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.twice = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
            self.tied = nn.Conv2d(6, 6, 1)
            self.own = nn.Parameter(torch.randn(6, 6, 1, 1))
            self.tied.weight = self.twice.weight

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.twice(F.relu(self.twice(F.relu(self.head(x))))))
            return F.conv2d(F.relu(self.tied(y)), self.own)

    torch.manual_seed(0)
    net = Shared().eval()
    kept = copy.deepcopy(net.state_dict())
    assert equalize_(net, batches()).channels == 0
    for name, value in net.state_dict().items():
        assert torch.equal(value, kept[name])


def test_tokens_are_no_channels() -> None:
    net = nn.Sequential(nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, 4)).eval()
    x = torch.randn(5, 7, 7)
    before = net(x)
    assert equalize_(net, [x]).channels == 0
    assert torch.equal(net(x), before)


def test_rows_are() -> None:
    net = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4)).train()
    x = torch.randn(64, 7)
    before = net(x)
    found = equalize_(net, [x])
    assert found.channels == 9
    assert net.training
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-6)


def test_bad_input_is_named() -> None:
    net = mixed()
    tops.quantize_(net, tops.plan(net, tops.TernaryConfig("int8")))
    with pytest.raises(BadConfig, match="before quantize_"):
        equalize_(net, batches())
    with pytest.raises(UnsupportedModel, match="sample"):
        equalize_(mixed(), [])
    broken = mixed()
    with torch.no_grad():
        broken.a.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadWeights, match="finite"):
        equalize_(broken, batches())

    class Two(Pair):
        def forward(self, x: Tensor) -> Tensor:
            return self.first(x), x  # type: ignore[return-value]

    with pytest.raises(UnsupportedModel, match="one tensor|a tensor"):
        equalize_(Two(), batches())


# What a reason names: how a layer comes to it.
OBSTACLES: dict[str, Callable[[nn.Module], object]] = {
    "computed by a hook (pruned)": lambda m: l1_unstructured(m, "weight", 0.5),
    "computed by a hook (weight_norm)": weight_norm,
    "hooks": lambda m: m.register_forward_hook(lambda *given: None),
    "forward": lambda m: setattr(m, "forward", torch.relu),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_must_not_be_written_into_is_refused_by_name(name: str) -> None:
    net = pair()
    OBSTACLES[name](net.second)
    kept = copy.deepcopy(net.state_dict())
    with pytest.raises(UnsupportedModel, match=rf"equalized, got second: .*{name.split()[0]}"):
        equalize_(net, batches())
    assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())


def test_hooks_on_what_is_fixed_do_not_matter() -> None:
    net = mixed()
    net.linear.register_forward_hook(lambda *given: None)
    assert equalize_(net, batches()).channels == 12


def test_a_hook_that_would_see_scaled_values_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    net[1].register_forward_hook(lambda *given: None)
    with pytest.raises(UnsupportedModel, match="got 1: hooks"):
        equalize_(net, batches())
