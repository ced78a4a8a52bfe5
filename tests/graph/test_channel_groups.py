# SPDX-License-Identifier: Apache-2.0
"""Channel groups: what they call free leaves a network's output, what they tie must stay tied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import topologies
import torch
import torch.nn.functional as F
from channel_networks import apply_order_, conv, image, network, random_order
from programs import example
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedShape
from ternary_ops.graph.channel_ops import scales
from ternary_ops.graph.channels import channel_groups
from ternary_ops.graph.trace import trace
from ternary_ops.layout.channel_groups import ChannelGroup, ChannelGroups
from ternary_ops.program import channels as program_channels
from ternary_ops.program.interpret import simulate
from ternary_ops.program.permute import apply_order
from ternary_ops.quantize.equalize import apply_factors

SEEDS = range(12)


def read(model: nn.Module, x: Tensor) -> list[ChannelGroup]:
    return channel_groups(trace(model), x).groups()


def by_owner(groups: list[ChannelGroup], owner: str, role: str = "producer") -> ChannelGroup:
    """The one group of channels that a layer makes or reads."""
    (found,) = (g for g in groups if any((u.owner, u.role) == (owner, role) for u in g.uses))
    return found


def permute_(model: nn.Module, groups: list[ChannelGroup]) -> int:
    free = [g for g in groups if "order" not in g.fixed and len(g) > 1]
    for seed, group in enumerate(free):
        apply_order_(model, group, random_order(group, seed), group.uses)
    return len(free)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_of_a_free_group_keeps_the_output(seed: int) -> None:
    model, x = network(seed), image()
    before = model(x)
    weights = [p.clone() for p in model.parameters()]
    assert permute_(model, read(model, x)) >= 3
    moved = sum(not torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert moved > 6
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_free_factors_keep_the_output(seed: int) -> None:
    model, x = network(seed), image()
    before, traced = model(x), trace(model)
    groups = channel_groups(traced, x)
    free = torch.from_numpy(groups.free_factors())
    factors = torch.where(free, torch.rand(len(free)).double() + 0.5, 1.0)
    with torch.no_grad():
        for node in traced.graph.nodes:
            if scales(node):
                apply_factors(node, groups, factors)
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["pointwise", "move", "matmul"])
def test_without_one_kind_of_tie_the_output_changes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the property above would say of a graph that forgot a tie."""
    from ternary_ops.graph import channel_ops

    tie = ChannelGroups.tie

    def forgetful(self: ChannelGroups, value: Any, other: Any, *rest: Any, **named: Any) -> None:
        if channel_ops.kind_of(value) != kind and channel_ops.kind_of(other) != kind:
            tie(self, value, other, *rest, **named)

    monkeypatch.setattr(ChannelGroups, "tie", forgetful)
    model, x = network(0, "residual", "matmul"), image()
    before = model(x)
    permute_(model, read(model, x))
    assert (model(x) - before).abs().max() > 1e-3


@pytest.mark.parametrize("role", ["producer", "consumer", "vector"])
def test_every_use_of_a_group_counts(role: str) -> None:
    """Left out, any of them changes the output."""
    model, x = network(1, "residual", "depthwise", "gated"), image()
    before = model(x)
    for group in read(model, x):
        uses = tuple(use for use in group.uses if use.role != role)
        if "order" not in group.fixed and len(uses) < len(group.uses) and len(group) > 1:
            apply_order_(model, group, random_order(group, 0), uses)
            break
    assert (model(x) - before).abs().max() > 1e-4


def test_random_programs_keep_their_bits_in_any_free_order() -> None:
    parts = 0
    for seed in range(40):
        graph = topologies.network(seed)
        x = example(graph, 1, 23, 26)
        try:
            want = simulate(graph, x)[-1]
        except UnsupportedShape:
            continue  # this program takes larger images
        weights = list(graph.weights)
        for group in program_channels.channel_groups(graph).groups():
            if "order" not in group.fixed and len(group) > 1:
                apply_order(group, random_order(group, seed), weights)
                parts += not group.whole
        made = type(graph)(graph.nodes, tuple(weights))
        np.testing.assert_array_equal(simulate(made, x)[-1], want)
    assert parts >= 5  # of concatenations, slices and shuffles


def test_depthwise_and_grouped_layers() -> None:
    groups = read(network(0, "depthwise", "grouped"), image())
    wide = by_owner(groups, "blocks.0.wide")
    assert [u.owner for u in wide.vectors] == ["blocks.0.depthwise"]
    assert [u.owner for u in wide.consumers] == ["blocks.0.narrow"] and len(wide) == 12
    first, grouped = (by_owner(groups, f"blocks.1.{n}") for n in ("first", "grouped"))
    assert first.labels.tolist() == [0] * 6 + [1] * 6
    assert grouped.labels.tolist() == [0] * 4 + [1] * 4
    assert set(first.splits.values()) == set(grouped.splits.values()) == {(2,)}
    assert first.consumers[0].groups == 2 and not first.fixed


def test_concatenations_and_slices() -> None:
    groups = read(network(0, "dense"), image())
    stem, y = by_owner(groups, "stem"), by_owner(groups, "blocks.0.second")
    cut = [g for g in groups if any(u.owner == "blocks.0.first" for u in g.producers)]
    assert sorted(map(len, cut)) == [1, 4]  # the channel that the slice leaves out is another's
    for group, places in ((stem, [range(8)]), (y, [range(12, 18), range(18, 24)])):
        (last,) = (u for u in group.consumers if u.owner == "blocks.0.last")
        assert group.positions[last.value].T.tolist() == [list(p) for p in places]


def test_flattened_images_and_pixel_shuffles() -> None:
    groups = read(network(4, "pixels"), image())
    last, body = by_owner(groups, "blocks.0.last"), by_owner(groups, "blocks.0.body")
    (hidden,) = last.consumers
    copies = last.positions[hidden.value].shape[1]
    assert hidden.owner == "hidden" and copies in (1, 16)
    (made,) = body.producers
    assert body.positions[made.value].tolist() == np.arange(12).reshape(3, 4).tolist()
    stem = by_owner(groups, "stem")
    (reader,) = stem.consumers
    assert stem.positions[reader.value].tolist() == np.arange(32).reshape(8, 4).tolist()


def test_flatten_ties_every_pixel() -> None:
    model = nn.Sequential(conv(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 2)).double()
    group = by_owner(read(model, image()), "0")
    (reader,) = group.consumers
    assert group.positions[reader.value].tolist() == np.arange(320).reshape(5, 64).tolist()


def test_norms_and_parameters() -> None:
    groups = read(network(0, "norms", "residual"), image())
    a = by_owner(groups, "blocks.0.a")
    names = ["group", "instance", "layer"]
    assert [u.owner for u in a.vectors] == [f"blocks.0.{name}" for name in names]
    assert "GroupNorm" in a.fixed["removal"] and "order" not in a.fixed
    assert not by_owner(groups, "blocks.0.hidden").fixed
    stream = by_owner(groups, "stem")
    assert "blocks.0.gamma" in [u.owner for u in stream.vectors] and not stream.fixed
    inner = by_owner(groups, "blocks.1.first")
    assert [u.owner for u in inner.vectors] == ["blocks.1.norm"]


def test_gates() -> None:
    groups = read(network(0, "gated"), image())
    body = by_owner(groups, "blocks.0.body")
    assert {u.owner for u in body.producers} == {"stem", "blocks.0.body", "blocks.0.excite"}
    assert not by_owner(groups, "blocks.0.squeeze").fixed
    assert "meets every channel" in by_owner(groups, "blocks.0.pixel").fixed["removal"]


@pytest.mark.parametrize("block", ["matmul", "attention"])
def test_heads_move_as_blocks(block: str) -> None:
    groups = read(network(0, block), image())
    heads = by_owner(groups, "blocks.0.qkv")
    (reader,) = heads.consumers
    assert reader.owner == "blocks.0.proj" and len(heads) == 3 and not heads.fixed
    (made,) = heads.producers
    rows = np.arange(36).reshape(3, 3, 4).swapaxes(0, 1).reshape(3, 12)  # of q, k and v
    assert heads.positions[made.value].tolist() == rows.tolist()
    assert "LayerNorm" in by_owner(groups, "stem").fixed["removal"]


def test_ends_and_what_is_not_known_are_fixed() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.twice, self.b, self.out = conv(3, 6), conv(6, 6), conv(6, 6), conv(6, 6)
            self.heads, self.rows = nn.MultiheadAttention(6, 2, batch_first=True), conv(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = F.local_response_norm(self.a(x), 2)
            y = self.twice(F.relu(self.twice(y)))
            z = self.b(y)
            tokens = self.rows(x).flatten(2).transpose(1, 2)
            more = self.heads(tokens, tokens, tokens)[0].transpose(1, 2).reshape(z.shape)
            return self.out(z.softmax(1) + z.cumsum(1) + more)

    groups = read(Strange().double(), image())
    for owner, role, why in (
        ("a", "consumer", "input"), ("a", "producer", "local_response_norm"),
        ("rows", "producer", "heads (MultiheadAttention)"),
        ("b", "consumer", "twice"), ("b", "producer", "cumsum"), ("out", "producer", "output"),
    ):  # fmt: skip
        assert why in by_owner(groups, owner, role).fixed["order"]


class Cycles(nn.Module):
    """A value and its own shuffle: channels of one cycle of the shuffle belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shuffle = conv(3, 8), conv(8, 2), nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y * self.shuffle(y))


def test_cycles_that_look_alike_are_told_apart() -> None:
    model, x = Cycles().double(), image()
    groups = [g for g in read(model, x) if any(u.owner == "a" for u in g.producers)]
    (made,) = groups[0].producers
    cycles = [g.positions[made.value].tolist() for g in groups]
    assert cycles == [[[0], [7]], [[1, 2, 4]], [[3, 5, 6]]]
    before = model(x)
    assert permute_(model, groups) == 1
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
