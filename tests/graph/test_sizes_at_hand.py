# SPDX-License-Identifier: Apache-2.0
"""Networks whose Python code decides on sizes: traced with an example, for all sizes or for one;
what decides on values is refused by module and line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ternary_ops as tops
from ternary_ops.errors import UnsupportedModel, UnsupportedShape
from ternary_ops.graph.trace import TraceFailed, trace

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """A convolution, then what a test says."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.own = nn.Conv2d(3, 6, 3, padding=1), forward
        self.scale, self.cache = nn.Parameter(torch.tensor(0.5)), dict[str, Any]()

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, self.conv(x))


def odd_sizes(net: Any, x: Tensor) -> Tensor:
    """Control flow on sizes, which every size takes alike in the end."""
    batch, channels, height, width = x.shape
    if height * width > 4 and x.is_floating_point() and x.dtype == torch.float32:
        x = F.relu(x)
    parts = [part for part in x.split(channels // 2, 1)]
    assert len(x) == batch and max(height, 2) > 1
    return torch.cat(parts[::-1], 1) * float(net.scale)


def halves(net: Any, x: Tensor) -> Tensor:
    """A window of half the image: another program at every size."""
    size = [max(1, s // 2) for s in x.shape[2:]]
    return F.avg_pool2d(x, size) if min(size) else x


def close(program: Any, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        np.testing.assert_allclose(program(x.numpy()), model(x), atol=1e-5)


def test_sizes_stay_free_where_they_change_nothing() -> None:
    model = Net(odd_sizes).eval()
    program = tops.compile(model, torch.randn(1, 3, 8, 9))
    assert program.graph.nodes[0].attrs["size"] is None
    for shape in ((1, 3, 8, 9), (3, 3, 11, 6)):
        close(program, model, torch.randn(shape))


def test_a_program_of_one_size_says_so(tmp_path: Path) -> None:
    model = Net(halves).eval()
    made = tops.compile(model, torch.randn(1, 3, 8, 12))
    made.save(tmp_path / "net.safetensors")
    for program in (made, tops.runtime.load(tmp_path / "net.safetensors")):
        assert program.graph.nodes[0].attrs["size"] == (8, 12)
        close(program, model, torch.randn(3, 3, 8, 12))  # of any number of images
        with pytest.raises(UnsupportedShape, match=r"(?s)8 x 12.*got 8 x 13;\n  Resize"):
            program(np.zeros((1, 3, 8, 13), np.float32))


def test_a_batch_size_in_the_code_is_refused() -> None:
    model = Net(lambda net, x: F.avg_pool2d(x, len(x)) if len(x) else x).eval()
    with pytest.raises(UnsupportedModel, match="(?s)every sample of a batch alike.*batch size"):
        tops.compile(model, torch.randn(1, 3, 8, 12))


def cached(net: Any, x: Tensor) -> Tensor:
    if "scale" not in net.cache:
        net.cache["scale"] = net.scale * 2
        net.doubled = [net.scale * 3]
    return x * net.cache["scale"] if x.shape[2] else x * net.doubled[0]


@pytest.mark.parametrize("example", [None, torch.ones(2, 3, 4, 4)])
def test_a_trace_leaves_no_caches(example: Tensor | None) -> None:
    model = Net(lambda net, x: cached(net, x)).train()
    kept = dict(vars(model))
    for _ in range(2):
        if example is None:
            with pytest.raises(TraceFailed, match=r"test_sizes_at_hand.py:\d+ \(return x \* net"):
                trace(model)
        else:
            trace(model, example=example)
    assert vars(model) == kept and model.cache == {} and model.training


def test_a_network_that_caches_compiles_twice() -> None:
    model, x = Net(cached).eval(), torch.randn(2, 3, 6, 6)
    for _ in range(2):
        close(tops.compile(model, x), model, x)


def own_constant(net: Any, x: Tensor) -> Tensor:
    """Writes into constants of its own: the middle third of a bias is zero (Swin v2)."""
    assert x.shape[2] > 1
    bias, mask = net.conv.bias.clone(), x.new_zeros(x.shape[2])
    bias[2:4].zero_()
    bias[4] = 3.0
    bias[:1] += 1
    mask[1:] = torch.arange(1, len(mask))
    return x * bias.view(-1, 1, 1) + mask.clone().fill_(2.0)


def read_between(net: Any, x: Tensor) -> Tensor:
    bias = net.conv.bias.clone()
    before = x + bias.view(-1, 1, 1)
    bias[2:4].zero_()
    return before * bias.view(-1, 1, 1)


def own_parameter(net: Any, x: Tensor) -> Tensor:
    net.conv.bias.detach()[2:4].zero_()
    return x


def test_writes_into_own_constants_are_done_while_compiling() -> None:
    model, x = Net(own_constant).eval(), torch.randn(2, 3, 5, 5)
    before = model.conv.bias.clone()
    close(tops.compile(model, x), model, x)
    assert torch.equal(before, model.conv.bias)


@pytest.mark.parametrize(
    "forward",
    [read_between, own_parameter],
)
def test_writes_into_what_others_read_are_named(forward: Forward) -> None:
    with pytest.raises(UnsupportedModel, match=r"zero_\(\) in forward \(test_sizes_at_hand.py:\d+"):
        tops.compile(Net(forward).eval(), torch.randn(2, 3, 5, 5))


@torch.fx.wrap
def reversed_parts(x: Tensor, parts: int) -> Tensor:
    """Decides on sizes, and calls one of PyTorch's functions last."""
    return torch.cat(x.chunk(parts, 1)[::-1], 1) if x.shape[1] > parts else x


def test_a_wrapped_function_that_is_looked_into_wraps_no_other() -> None:
    model, x = Net(lambda net, x: reversed_parts(x, 2)).eval(), torch.randn(2, 3, 5, 5)
    for _ in range(2):  # torch.fx keeps what it wraps, for the whole process
        close(tops.compile(model, x), model, x)
    torch.fx.symbolic_trace(nn.ReLU())


def written(net: Any, x: Tensor) -> Tensor:
    x[:, 0] = 0.0
    return x


REFUSED: dict[str, tuple[Forward, str]] = {
    "a branch": (lambda net, x: x if x.sum() > 0 else -x, r"if, while or bool\(\) asks"),
    "a number": (lambda net, x: x * float(x.mean()), r"float\(\) asks"),
    "an item": (lambda net, x: x * x.max().item(), r"item\(\) asks"),
    "a list": (lambda net, x: x * len(x.flatten().tolist()), r"tolist\(\) asks"),
    "a mask": (lambda net, x: x.mean() * len(x[x > 0]), "a mask as index makes a shape"),
    "a count": (lambda net, x: x * len(x.nonzero()), r"nonzero\(\) makes a shape"),
    "a write": (written, "writes into a part"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_asks_for_values_is_refused_with_its_line(what: str) -> None:
    forward, reason = REFUSED[what]
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Net(forward)).eval()
    where = r"got DependsOnValues from 1 of Sequential, test_sizes_at_hand.py:\d+ \(.*\)"
    with pytest.raises(UnsupportedModel, match=rf"(?s){where}.*: .*{reason}"):
        trace(model, example=torch.randn(2, 3, 5, 5))
    with pytest.raises(UnsupportedModel, match=r"test_sizes_at_hand.py:\d+"):
        tops.compile(model, torch.randn(2, 3, 5, 5))


def scale_part(net: Any, x: Tensor) -> Tensor:
    first, _ = x.chunk(2, 1)
    first.mul_(2)
    return x


def add_to_view(net: Any, x: Tensor) -> Tensor:
    flat = x.view(len(x), -1)
    flat += 1
    return x


@pytest.mark.parametrize(("forward", "name"), [(scale_part, "mul_"), (add_to_view, "add_")])
def test_a_write_into_a_part_is_named_with_module_and_line(forward: Forward, name: str) -> None:
    place = r"1 \(test_sizes_at_hand.py:\d+\);\n"
    with pytest.raises(UnsupportedModel, match=rf"parts of tensors: {name}\(\) in {place}"):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), Net(forward)).eval()
        tops.compile(model, torch.randn(2, 3, 5, 5))
