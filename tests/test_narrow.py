# SPDX-License-Identifier: Apache-2.0
"""A network loses the channels it misses least, wherever layers share them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ternary_ops import sr

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from _narrow import _groups, narrowed


def network() -> sr.FMEN:
    torch.manual_seed(0)
    return sr.FMEN(2, 7, branch=3, warmup=2, pairs=2, up=(2, 1, 1)).eval()


def test_channels_that_nothing_reads_go_first() -> None:
    net, x = network(), torch.rand(2, 3, 9, 8)
    for number, group in enumerate(_groups(2)):
        for name in group.readers:
            net.get_submodule(name).weight.data[:, [number, 6]] = 0
    before = {name: value.clone() for name, value in net.state_dict().items()}
    narrow = narrowed(net, 5, x)
    assert narrow.lr_conv.weight.shape == (5, 5, 3, 3)
    assert narrow.radius == net.radius
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), net(x))
        assert (narrowed(net, 4, x)(x) - net(x)).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_every_layer_of_the_trunk_belongs_to_a_group() -> None:
    wide = {name for name, m in network().named_modules() if getattr(m, "out_channels", 0) == 7}
    assert {name for group in _groups(2) for name in group.makers} == wide


def test_other_networks_are_refused() -> None:
    with pytest.raises(TypeError, match="FMEN"):
        narrowed(sr.EFDN(2), 40, torch.rand(1, 3, 8, 8))
