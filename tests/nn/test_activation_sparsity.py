# SPDX-License-Identifier: Apache-2.0
"""k-winners-take-all, and the zeros that layers read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ternary_ops as tops
from ternary_ops.errors import BadConfig, UnsupportedModel, UnsupportedShape
from ternary_ops.nn.activation_sparsity import KWinners, input_zeros


@pytest.mark.parametrize("zeros", [0.0, 0.33, 0.9, 0.99])
@pytest.mark.parametrize("shape", [(3, 40), (2, 5, 7, 3), (2, 6, 9)])
def test_the_largest_stay_exactly_as_many_in_each_sample(
    zeros: float, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    y = KWinners(zeros=zeros)(x).flatten(1)
    n = y.shape[1]
    for row, made in zip(x.flatten(1).numpy(), y.numpy(), strict=True):
        best = np.argsort(-row)[: n - round(zeros * n)]
        wanted = np.zeros_like(row)
        wanted[best] = row[best]
        np.testing.assert_array_equal(made, wanted)


def test_gradients_go_to_winners_alone() -> None:
    x = torch.randn(4, 10, requires_grad=True)
    KWinners(zeros=0.7)(x).square().sum().backward()
    assert x.grad is not None and int((x.grad != 0).sum()) == 4 * 3
    assert torch.equal(x.grad != 0, KWinners(zeros=0.7)(x) != 0)


def test_boosting_brings_channels_in_that_never_won() -> None:
    x = torch.rand(64, 8, 4, 4) + 0.5
    x[:, 5:] *= 0.6  # three weak channels

    def winners(boost: float) -> torch.Tensor:
        layer = KWinners(8, zeros=0.75, boost=boost).train()
        for _ in range(200):
            made = layer(x)
        assert (made != 0).flatten(1).sum(1).tolist() == [32] * 64
        if boost:
            share = (made != 0).float().mean((0, 2, 3))
            torch.testing.assert_close(layer.duty, share, atol=0.1, rtol=0)
            before = layer.duty.clone()
            layer.eval()(x)
            assert torch.equal(layer.duty, before)
        return (made != 0).float().mean((0, 2, 3))

    plain, boosted = winners(0.0), winners(5.0)
    assert plain[5:].max() < 0.05
    assert boosted[5:].min() > 0.1


def test_zeros_of_inputs_are_those_counted_by_loops() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
            self.act, self.fc = KWinners(zeros=0.9), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.act(self.a(x))
            return self.fc(torch.relu(self.b(self.seen)).mean((2, 3)))

    net, batches = Net().train(), [torch.randn(2, 3, 5, 11), torch.randn(1, 3, 5, 11)]
    found = {row.name: row for row in input_zeros(net, batches)}
    assert net.training and list(found) == ["a", "b", "fc"] and found["a"].zeros == 0
    net.eval()
    counts = np.zeros((3, 2))
    for batch in batches:
        net(batch)
        zero = (net.seen == 0).numpy()
        for image in zero:
            counts[0] += image.sum(), image.size
            for rows in (image[:4], image[4:]):  # six channels: a packet and a half
                packet = rows.all(0)
                counts[1] += packet.sum(), packet.size
                for start in (0, 8):
                    counts[2] += packet[:, start : start + 8].all(1).sum(), len(packet)
    np.testing.assert_allclose(found["b"][1:], counts[:, 0] / counts[:, 1])
    assert 0 < found["b"].vectors < found["b"].packets < found["b"].zeros


def test_bad_input_and_compile_say_so() -> None:
    for bad in ({"zeros": 1.0}, {"zeros": -0.1}, {"zeros": 0.5, "boost": 1.0}):
        with pytest.raises(BadConfig, match="0 <= zeros < 1"):
            KWinners(**bad)
    with pytest.raises(UnsupportedShape, match=r"\[N, 8, ...\].*\[2, 6\]"):
        KWinners(8, zeros=0.5, boost=1.0)(torch.randn(2, 6))
    with pytest.raises(UnsupportedShape, match="KWinners"):
        KWinners(zeros=0.5)(torch.randn(6))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), KWinners(zeros=0.9), nn.Conv2d(8, 8, 3))
    with pytest.raises(UnsupportedModel, match="1 without:.*KWinners|KWinners: there is no"):
        tops.compile(net, torch.randn(1, 3, 8, 8))
