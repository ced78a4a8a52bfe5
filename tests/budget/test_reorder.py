# SPDX-License-Identifier: Apache-2.0
"""reorder_channels_: the same function, with large weights gathered in quads."""

from __future__ import annotations

import copy
from itertools import permutations

import numpy as np
import pytest
import torch
from small_networks import TorchvisionNet
from torch import Tensor, nn
from torch.nn.utils.prune import l1_unstructured

import ternary_ops as tops
from ternary_ops import models
from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.program import column_grouping
from ternary_ops.quantize import reorder_channels_


class PreActivation(nn.Module):
    """A BatchNorm of a sum, a PReLU with a slope a channel, a concatenation, a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm, self.slopes = nn.BatchNorm2d(16), nn.PReLU(16)
        self.conv1, self.conv2 = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.joined, self.fc = nn.Conv2d(32, 8, 1), nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.conv2(torch.relu(self.conv1(self.slopes(self.norm(x)))))
        y = torch.relu(self.joined(torch.cat([x, y], 1)))
        return self.fc(torch.flatten(y, 1))


NETWORKS = {
    "resnet": lambda: models.cifar_resnet(20),
    "torchvision": TorchvisionNet,
    "depthwise": lambda: models.mobilenet_v2(num_classes=10),
    "groups": lambda: models.regnet_x_400mf(num_classes=10),
    "preactivation": PreActivation,
}
SIZES = {"resnet": 16, "preactivation": 3, "torchvision": 24}


def uneven(model: nn.Module) -> nn.Module:
    """Every tensor different in every channel, so that a wrong order shows."""
    torch.manual_seed(1)
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and tensor.ndim == 1 and tensor.is_floating_point():
                tensor.data.copy_(0.5 + torch.rand_like(tensor))
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay_and_quads_get_heavier(name: str) -> None:
    torch.manual_seed(0)
    model = uneven(NETWORKS[name]())
    size = SIZES.get(name, 32)
    x = torch.randn(2, 3, size, size)
    before = copy.deepcopy(model)
    model.train()
    rows = reorder_channels_(model, x)
    assert model.training
    assert len(rows) >= 1
    assert sum(row.after for row in rows) > 1.01 * sum(row.before for row in rows)
    model.eval()
    with torch.no_grad():
        expected, found = before.double()(x.double()), copy.deepcopy(model).double()(x.double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    old, new = before.state_dict(), model.state_dict()
    assert list(old) == list(new)
    moved = [key for key in old if not torch.equal(old[key].float(), new[key].float())]
    for key in moved:  # nothing but an order changed
        assert torch.equal(old[key].float().flatten().sort()[0], new[key].flatten().sort()[0]), key
    assert len(moved) >= len(rows)


def test_the_order_is_the_same_every_time() -> None:
    torch.manual_seed(0)
    first = models.cifar_resnet(20)
    second, x = copy.deepcopy(first), torch.randn(1, 3, 16, 16)
    assert reorder_channels_(first, x) == reorder_channels_(second, 7 * x)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_quads_that_were_shuffled_are_found_again() -> None:
    """Rows in which whole fours of channels are large: their channels come together."""
    torch.manual_seed(3)
    first, second = nn.Conv2d(4, 32, 1), nn.Conv2d(32, 64, 1)
    shuffle = torch.randperm(32)
    with torch.no_grad():
        large = torch.rand(64, 8).lt(0.25).repeat_interleave(4, 1)
        second.weight.copy_((large * (1 + torch.rand(64, 32)) + 0.01)[:, shuffle, None, None])
    model = nn.Sequential(first, nn.ReLU(), second)
    (row,) = reorder_channels_(model, torch.randn(1, 4, 5, 5))
    assert row.name == "2" and row.before < 0.7 and row.after > 0.95


def test_pruned_quads_keep_more_after_it() -> None:
    torch.manual_seed(0)
    model, x = models.digits_resnet(16), torch.randn(1, 1, 8, 8)
    kept = []
    for reorder in (False, True):
        net = copy.deepcopy(model)
        if reorder:
            reorder_channels_(net, x)
        tops.quantize_(net, tops.plan(net, tops.TernaryConfig(zeros=0.75)))
        tops.prune.Pruner(net, "one_shot", 1).step()
        layers = [m for m in net.modules() if hasattr(m, "phase_code")]
        kept.append(sum(float((m.weight * m.mask).detach().abs().sum()) for m in layers))
    assert kept[1] > 1.01 * kept[0]


def test_shared_weights_and_strange_layers_stay_in_place() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(8, 8, 3, padding=1)
    twin = nn.Conv2d(8, 8, 3, padding=1)
    twin.weight = body.weight
    model = nn.Sequential(nn.Conv2d(3, 8, 1), body, nn.ReLU(), twin, nn.ReLU(), body)
    before = copy.deepcopy(model.state_dict())
    assert reorder_channels_(model, torch.randn(1, 3, 6, 6)) == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_refusals_leave_the_model_alone() -> None:
    model = models.digits_resnet(8)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig()))
    with pytest.raises(BadConfig, match="before quantize_"):
        reorder_channels_(model, torch.randn(1, 1, 8, 8))
    strange = nn.Sequential(nn.Conv2d(1, 8, 3), nn.LocalResponseNorm(3))
    before = copy.deepcopy(strange.state_dict())
    with pytest.raises(UnsupportedModel):
        reorder_channels_(strange, torch.randn(1, 1, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in strange.state_dict().items())


@pytest.mark.parametrize("what", ["pruned", "hooked", "norm"])
def test_what_must_not_be_written_into_is_refused_by_name(what: str) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU()
    model = nn.Sequential(*first, nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).train()
    if what == "pruned":
        l1_unstructured(model[3], "weight", 0.5)
    else:
        model[3 if what == "hooked" else 1].register_forward_pre_hook(lambda *given: None)
    before = copy.deepcopy(model.state_dict())
    name = {"pruned": "3: weight computed", "hooked": "3: hooks", "norm": "1: hooks"}[what]
    with pytest.raises(UnsupportedModel, match=f"reordered, got {name}"):
        reorder_channels_(model, torch.randn(2, 3, 6, 6))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("seed", range(8))
def test_fours_are_near_the_best_there_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.random((30, 8)) ** 3
    likeness = a.T @ a
    orders = [p for p in permutations(range(8)) if p[0] == 0 and list(p[:4]) == sorted(p[:4])]
    best = max(
        column_grouping._within_fours(likeness - np.diag(likeness.diagonal()), np.array(p))
        for p in orders
    )
    order = column_grouping.strongest_fours(likeness, [0] * 8)
    found = column_grouping._within_fours(likeness - np.diag(likeness.diagonal()), order)
    start = column_grouping._within_fours(likeness - np.diag(likeness.diagonal()), np.arange(8))
    assert sorted(order) == list(range(8))
    assert start <= found <= best * (1 + 1e-9) and found > 0.99 * best


def test_labels_bind_columns_to_their_places() -> None:
    rng = np.random.default_rng(0)
    a, labels = rng.random((40, 16)), np.array([0] * 5 + [1] * 6 + [2] * 5)
    order = column_grouping.strongest_fours(a.T @ a, list(labels))
    assert np.array_equal(labels[order], labels) and sorted(order) == list(range(16))
