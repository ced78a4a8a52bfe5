# SPDX-License-Identifier: Apache-2.0
"""A network loses the channels it misses least, wherever layers share them."""

from __future__ import annotations

import pytest
import torch
from scripts import script

from ternary_ops import sr


def network() -> sr.FMEN:
    torch.manual_seed(0)
    return sr.FMEN(2, 7, branch=3, warmup=2, pairs=2, up=(2, 1, 1)).eval()


def test_channels_that_nothing_reads_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = script("_trunk", monkeypatch)
    net, x = network(), torch.rand(2, 3, 9, 8)
    for number, group in enumerate(narrow.trunk(net, x)):
        for name in group.consumers:
            net.get_submodule(name).weight.data[:, [number, 6]] = 0
    before = {name: value.clone() for name, value in net.state_dict().items()}
    five, four = (narrow.narrowed(net, channels, x) for channels in (5, 4))
    assert five.lr_conv.weight.shape == (5, 5, 3, 3)
    assert five.radius == net.radius
    with torch.no_grad():
        torch.testing.assert_close(five(x), net(x))
        assert (four(x) - net(x)).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_every_layer_of_the_trunk_belongs_to_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = script("_trunk", monkeypatch).trunk(network(), torch.rand(1, 3, 9, 8))
    wide = {name for name, m in network().named_modules() if getattr(m, "out_channels", 0) == 7}
    assert {name for group in groups for name in group.producers} == wide


def test_other_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="FMEN"):
        script("_trunk", monkeypatch).narrowed(sr.EFDN(2), 40, torch.rand(1, 3, 8, 8))
