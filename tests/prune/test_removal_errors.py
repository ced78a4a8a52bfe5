# SPDX-License-Identifier: Apache-2.0
"""Refused removals name the cause, and leave network, optimizer and Pruner as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as prune
from channel_networks import image, network
from filter_networks import family
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, TernaryOpsError, UnsupportedModel
from ternary_ops.prune import groups, remove_

X = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def refused(
    model: nn.Module, x: Tensor, kept: Any, error: type[TernaryOpsError], match: str
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    before = {n: (p, p.clone()) for n, p in (*model.named_parameters(), *model.named_buffers())}
    sizes = [repr(m) for m in model.modules()]
    state = {p: dict(s) for p, s in optimizer.state.items()}
    with pytest.raises(error, match=match):
        remove_(model, x, kept, optimizer, round_to=1)
    after = dict((*model.named_parameters(), *model.named_buffers()))
    assert before.keys() == after.keys()
    assert all(after[n] is p and torch.equal(p, values) for n, (p, values) in before.items())
    assert sizes == [repr(m) for m in model.modules()]
    assert state.keys() == optimizer.state.keys()
    assert all(state[p][k] is v for p, s in optimizer.state.items() for k, v in s.items())


@pytest.mark.parametrize(
    ("kept", "match"),
    [
        ({"layer1.0.conv": [0]}, "layer1.0.conv1"),
        ({"layer1.0.conv1": []}, "at least one channel"),
        ({"layer1.0.conv1": [False] * 8}, "at least one channel"),
        ({"layer1.0.conv1": [0, 8]}, r"0\.\.7.*\[8\]"),
        ({"layer1.0.conv1": [0, -1]}, r"\[-1\]"),
        ({"layer1.0.conv1": [0, 3, 3]}, "more than once"),
        ({"layer1.0.conv1": [0.5]}, "float"),
        ({"layer1.0.conv1": torch.ones(9, dtype=torch.bool)}, "mask"),
        ({"layer1.0.conv1": "all"}, "all"),
        ([0, 1], "kept"),
    ],
)
def test_what_is_no_choice_of_channels(kept: Any, match: str) -> None:
    refused(family("resnet"), X, kept, BadConfig, f"(?s){match}")


def test_groups_that_are_fixed_name_the_operator() -> None:
    refused(family("resnet"), X, {"fc": [0]}, UnsupportedModel, "the output of the network")
    refused(network(0, "norms"), image(), {"blocks.0.a": [0, 4]}, UnsupportedModel, "GroupNorm")
    all_of_it = {"fc": range(10)}
    assert remove_(family("resnet"), X, all_of_it).rows == ()


class Net(nn.Module):
    """A layer, something, another layer."""

    def __init__(self, between: Callable[[Tensor], Tensor], into: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(3, 8, 3), nn.Conv2d(into, 4, 1), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize(
    ("between", "into", "match"),
    [
        (lambda x: x[:, :6], 6, "getitem"),
        (lambda x: x.view(-1, 2, 4, 14, 14).flatten(1, 2), 8, "view"),
        (lambda x: F.normalize(x, dim=1), 8, "normalize"),
        (lambda x: x.softmax(1), 8, "softmax is taken over channels"),
        (lambda x: torch.fft.fft(x, dim=1).real, 8, "fft"),
        (lambda x: x.sort(1).values, 8, "sort"),
        (lambda x: x.cumsum(1), 8, "cumsum"),
    ],
    ids=["slice", "view", "normalize", "softmax", "fft", "sort", "cumsum"],
)
def test_operators_that_count_or_mix_channels_are_named(
    between: Callable[[Tensor], Tensor], into: int, match: str
) -> None:
    torch.manual_seed(0)
    refused(Net(between, into).double(), X, {"a": [0, 1, 2]}, UnsupportedModel, match)


def test_unequal_parts_of_what_is_cut_together() -> None:
    """ShuffleNet: halves of a shuffled stream must stay halves."""
    model = network(0, "shuffled")
    fixed = {g.name: g.fixed or "" for g in groups(model, image())}
    assert "view" in fixed["blocks.0.conv"]
    refused(model, image(), {"blocks.0.conv": [0, 1]}, UnsupportedModel, "view")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in "abc")
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(F.relu(self.a(x)))))


def test_shared_and_computed_weights_are_named() -> None:
    x = torch.randn(2, 8, dtype=torch.float64)
    refused(Tied().double(), x, {"a": [0]}, BadConfig, "filter groups")
    assert all(g.fixed for g in groups(Tied().double(), x) if g.name != "c")
    normed = Net(torch.relu).double()
    torch.nn.utils.parametrizations.weight_norm(normed.b)
    refused(normed, X, {"a": [0]}, UnsupportedModel, r"b \(Parametrized")
    pruned = Net(torch.relu).double()
    prune.l1_unstructured(pruned.a, "weight", 0.5)
    refused(pruned, X, {"a": [0]}, UnsupportedModel, "a: weight computed by a hook")
    assert all(g.fixed for g in groups(Twice().double(), x))


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Auxiliary(nn.Module):
    """A head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.training:
            return self.b(y).mean() + self.head(y).mean()
        return self.b(y)


class Numbered(nn.Module):
    """Code of its own that holds a width, where a trace does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.shape[1] != 8:
            raise ValueError("8 channels")
        return self.b(y)


def test_code_that_does_not_follow() -> None:
    refused(nn.Sequential(Net(torch.relu), Decides()).double(), X, {}, UnsupportedModel, "control")
    refused(Numbered().double(), X, {"a": [0]}, UnsupportedModel, "own code follows")
    refused(Auxiliary().double(), X, {"a": [0]}, UnsupportedModel, "head")


def test_hooks_and_wrappers() -> None:
    model = family("resnet")
    handle = model.conv1.weight.register_hook(lambda grad: grad)  # type: ignore[union-attr]
    refused(model, X, {"conv1": [0]}, UnsupportedModel, "conv1.weight")
    handle.remove()
    with pytest.raises(UnsupportedModel, match="holds the network's parameters"):
        remove_(model, X, {"conv1": [0]}, torch.optim.SGD(family("resnet").parameters()))
    with pytest.raises(BadConfig, match="round_to"):
        remove_(model, X, {"conv1": [0]}, round_to=0)
    with pytest.raises(BadConfig, match="example"):
        groups(model, "x")
