# SPDX-License-Identifier: Apache-2.0
"""Constant channels go into biases, equal ones into each other, and remove_ takes them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.prune import filter_score, fold_constants_, groups, merge_similar_, remove_


class Block(nn.Module):
    """A stem, a residual stream, grouped and depthwise filters, a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up = nn.Conv2d(8, 12, 1, bias=False)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 10, 1, groups=2)
        self.down = nn.Conv2d(10, 8, 3, padding=1)
        self.hidden, self.head = nn.Linear(8 * 16, 9), nn.Linear(9, 4)
        for buffer in (self.norm.running_mean, self.norm.running_var):
            assert buffer is not None
            buffer.uniform_(0.5, 1.5)
        for layer in (self.up, self.depthwise, self.grouped, self.hidden):
            for parameter in layer.parameters():  # of inputs >= 0: none is at zero by chance
                parameter.data.abs_()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.depthwise(F.relu(self.up(x))))
        x = F.relu(x + self.down(F.relu(self.grouped(y))))
        return self.head(F.relu(self.hidden(x.flatten(1))))


X = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
BATCHES = [X, torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(1))]


def net() -> Block:
    return Block().eval()


def constant(model: Block) -> None:
    """Channels that say the same for every image: zeros, and other numbers."""
    with torch.no_grad():
        model.depthwise.weight[[2, 7, 8]] = 0
        model.depthwise.bias[[2, 7]] = torch.tensor([1.5, 0.25])  # type: ignore[index]
        model.depthwise.bias[8] = -1  # type: ignore[index]
        model.hidden.weight[[1, 5]] = 0
        model.hidden.bias[[1, 5]] = torch.tensor([0.7, -0.7])
        # Read by a convolution that pads: of these only the channel of zeros can go.
        model.grouped.weight[[0, 6]] = 0
        model.grouped.bias[[0, 6]] = torch.tensor([-1.0, 2.0])  # type: ignore[index]


def test_constant_channels_go_into_biases_exactly() -> None:
    model = net()
    constant(model)
    with torch.no_grad():
        wanted = model(X)
        kept = fold_constants_(model, X, BATCHES)
        torch.testing.assert_close(model(X), wanted, rtol=1e-5, atol=1e-5)
    gone = {name: set(range(n)) - set(kept[name].tolist()) for name, n in widths(model, kept)}
    assert gone == {"up": {2, 7, 8}, "hidden": {1, 5}, "grouped": {0}}
    assert not bool(model.head.weight[:, [1, 5]].any()) and not bool(model.down.weight[:, 0].any())
    remove_(model, X, kept, round_to=1)
    # As many of each part of a grouped convolution: one of its second part stays, without readers.
    assert (model.hidden.out_features, model.up.out_channels) == (7, 10)
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, rtol=1e-5, atol=1e-5)


def widths(model: nn.Module, kept: dict[str, Tensor]) -> list[tuple[str, int]]:
    return [(g.name, g.width) for g in groups(model, X) if g.name in kept]


def test_a_layer_without_a_bias_gets_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).eval()
    x = torch.randn(40, 5)
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 0.5
        wanted = model(x)
        kept = fold_constants_(model, x, [x])
        assert kept["0"].tolist() == [0, 1, 3, 4, 5] and model[2].bias is not None
        torch.testing.assert_close(model(x), wanted)


def test_nearly_constant_channels_go_within_the_tolerance() -> None:
    model = net()
    with torch.no_grad():
        model.hidden.weight[3] *= 1e-4
        model.hidden.bias[3] = 1.0
        wanted = model(X)
        assert fold_constants_(model, X, BATCHES) == {}
        assert list(fold_constants_(model, X, BATCHES, tolerance=1e-2)) == ["hidden"]
        error = (model(X) - wanted).abs().max()
        assert 0 < float(error) < 1e-2


class OwnPadding(nn.Conv2d):
    """Pads in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Standardized(nn.Conv2d):
    """Computes its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


READERS: dict[str, Callable[[], nn.Conv2d]] = {
    "padded": lambda: nn.Conv2d(8, 5, 3, padding=1),
    "same": lambda: nn.Conv2d(8, 5, (3, 2), padding="same"),
    "own": lambda: OwnPadding(8, 5, 3),
    "dilated": lambda: nn.Conv2d(8, 5, 3, padding=1, dilation=2),
    "computed": lambda: Standardized(8, 5, 3),
}


@pytest.mark.parametrize("name", READERS)
def test_constants_before_a_border_of_zeros_go_where_no_weight_meets_it(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    reader = READERS[name]()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), reader, nn.Conv2d(5, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[[1, 4, 6]] = 0
        model[0].bias[[1, 4, 6]] = torch.tensor([1.5, 2.0, -1.0])  # type: ignore[index]
        middle = torch.zeros(reader.kernel_size)
        middle[1, 0 if name == "same" else 1] = 1
        reader.weight[:, 4] *= middle
        x = torch.randn(5, 3, 9, 8)
        wanted = model(x)
        with caplog.at_level(logging.WARNING):
            kept = fold_constants_(model, x, [x])
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
    gone = set(range(8)) - set(kept["0"].tolist() if "0" in kept else range(8))
    assert gone == (set() if name == "computed" else {4, 6})
    messages = [record.getMessage() for record in caplog.records]
    wanted_messages = ["constant channels [1] of 0 stay: 2 pads with zeros"]
    assert messages == ([] if name == "computed" else wanted_messages)  # no channel of it may go


def twins(model: Block) -> None:
    """Pairs of equal channels, in a residual stream, behind norms and in depthwise filters."""
    with torch.no_grad():
        for a, b in ((1, 4), (1, 6)):
            for tensor in (model.stem.weight, model.stem.bias, model.down.weight, model.down.bias):
                tensor[b] = tensor[a]  # type: ignore[index]
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(model.norm, name)[b] = getattr(model.norm, name)[a]
        for tensor in (model.up.weight, model.depthwise.weight, model.depthwise.bias):
            tensor[3] = tensor[0]  # type: ignore[index]
            tensor[9] = tensor[0]  # type: ignore[index]  # of the other part: cannot be merged
        model.hidden.weight[7], model.hidden.bias[7] = model.hidden.weight[2], model.hidden.bias[2]


def test_equal_channels_merge_exactly() -> None:
    model = net()
    twins(model)
    with torch.no_grad():
        wanted = model(X)
        kept = merge_similar_(model, X)
        torch.testing.assert_close(model(X), wanted, rtol=1e-5, atol=1e-5)
    gone = {name: set(range(n)) - set(kept[name].tolist()) for name, n in widths(model, kept)}
    assert gone == {"stem": {4, 6}, "up": {3}, "hidden": {7}}
    remove_(model, X, kept, round_to=1)
    assert (model.stem.out_channels, model.hidden.out_features) == (6, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, rtol=1e-5, atol=1e-5)


def test_near_channels_merge_within_the_tolerance_and_others_do_not() -> None:
    model = net()
    assert merge_similar_(model, X, tolerance=0.01) == {}
    twins(model)
    with torch.no_grad():
        model.hidden.weight[7] *= 1.001
        model.stem.weight[4] *= -1
        wanted = model(X)
        kept = merge_similar_(model, X, tolerance=0.01)
        assert 0 < float((model(X) - wanted).abs().max()) < 0.01
    assert 7 not in kept["hidden"].tolist() and 4 in kept["stem"].tolist()


def test_one_channel_of_a_group_stays() -> None:
    model = net()
    with torch.no_grad():
        model.hidden.weight.zero_()
        wanted = model(X)
    kept = fold_constants_(model, X, BATCHES)
    assert kept["hidden"].tolist() == [0]
    remove_(model, X, kept, round_to=1)
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, rtol=1e-5, atol=1e-5)


def test_scores_of_activity_are_their_formulas() -> None:
    model = net()
    constant(model)
    found = groups(model, X)
    with torch.no_grad():
        seen = []
        for x in BATCHES:
            y = F.relu(model.norm(model.stem(x)))
            seen.append(F.relu(model.depthwise(F.relu(model.up(y)))))
    zeros = filter_score("apoz")(found, model, BATCHES)["up"]
    wanted = torch.stack([(y > 0).float().mean((0, 2, 3)) for y in seen]).mean(0)
    torch.testing.assert_close(zeros, wanted)
    spread = filter_score("variance")(found, model, BATCHES)["up"]
    wanted = torch.stack([y.var((0, 2, 3), correction=0) for y in seen]).mean(0)
    torch.testing.assert_close(spread, wanted, rtol=1e-4, atol=1e-7)
    assert set(spread.argsort()[:3].tolist()) == {2, 7, 8}
    with pytest.raises(BadConfig, match="batches for 'apoz'"):
        filter_score("apoz")(found, model)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), "0"])
def test_other_tolerances_are_refused(tolerance: Any) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    for call in (
        lambda: merge_similar_(model, X, tolerance),
        lambda: fold_constants_(model, X, BATCHES, tolerance),
    ):
        with pytest.raises(BadConfig, match="tolerance"):
            call()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    tops.quantize_(model, tops.TernaryConfig())
    with pytest.raises(UnsupportedModel, match="a float network"):
        merge_similar_(model, X)
