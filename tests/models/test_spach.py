# SPDX-License-Identifier: Apache-2.0
"""SPACH: sizes and costs of the paper, what is true before training, and bad input."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, layer_norm

from ternary_ops.errors import BadConfig, UnsupportedShape
from ternary_ops.models import (
    Spach,
    SpachConfig,
    costs_by_part,
    hybrid_ms,
    spach,
    spach_ms,
)
from ternary_ops.models.spach_layers import Attention, MixingBlock, TokenMLP

# Parameters in millions and multiply-adds in billions at 224 px with 1,000 classes.
COSTS = {
    "spach conv XXS": (7.83, 1.45), "spach conv XS": (14.98, 2.85), "spach conv S": (38.85, 7.50),
    "spach attention XXS": (3.93, 0.90), "spach attention XS": (14.94, 3.19),
    "spach attention S": (32.51, 6.73), "spach mlp XXS": (8.31, 1.63),
    "spach mlp XS": (15.93, 3.20), "spach mlp S": (39.82, 7.97),
    "spach mlp S shared": (38.93, 7.97),
    "spach_ms conv XXS": (5.09, 0.71), "spach_ms conv XS": (17.30, 2.75),
    "spach_ms conv S": (43.58, 7.14), "spach_ms attention XXS": (2.37, 0.53),
    "spach_ms attention XS": (14.48, 3.08), "spach_ms attention S": (39.54, 7.53),
    "spach_ms mlp XXS": (6.56, 0.93), "spach_ms mlp XS": (20.26, 3.41),
    "spach_ms mlp S": (46.54, 8.01), "spach_ms mlp S shared": (44.26, 8.01),
    "hybrid_ms XXS": (7.19, 1.05), "hybrid_ms XS": (27.96, 4.44), "hybrid_ms S": (63.03, 11.05),
    "hybrid_ms S deep_stem": (63.14, 12.18),
}  # fmt: skip
# Percent of parameters and of multiply-adds: spatial functions with their products, bypass,
# channel MLPs.
PARTS = {
    "spach_ms conv S": ((0, 0), (0.24, 0.42), (91.0, 95.0)),
    "spach_ms attention S": ((37.4, 46.5), (0.20, 0.30), (56.4, 50.7)),
    "spach_ms mlp S": ((6.3, 10.9), (0.23, 0.38), (85.2, 84.6)),
    "hybrid_ms S": ((30.8, 35.4), (0.17, 0.27), (62.9, 61.4)),
}
# Networks whose multiply-adds are counted: one of each kind of part.
_COUNTED = {
    *PARTS, "spach conv XXS", "spach attention XXS", "spach mlp S shared", "spach_ms mlp XXS",
    "hybrid_ms XXS", "hybrid_ms S deep_stem",
}  # fmt: skip
_BUILD = {"spach": spach, "spach_ms": spach_ms, "hybrid_ms": hybrid_ms}
# Two stages of each kind, 12 channels and two heads, 16-pixel images with four tokens a side.
KINDS = ("conv", "attention", "mlp")


def named(name: str) -> Spach:
    build, *words = name.split()
    flags = {word: True for word in words if word in ("shared", "deep_stem")}
    with torch.device("meta"):
        return _BUILD[build](*(word for word in words if word not in flags), **flags)


def small(kind: str, **changes: Any) -> Spach:
    stages = ((("conv", 1), (kind, 1)), ((kind, 2),))
    config = SpachConfig(12, stages, 4, heads=2, num_classes=5, image_size=32)
    return Spach(replace(config, **changes))


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """No weight as it begins: every part counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    return network.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_those_of_the_paper(name: str) -> None:
    network = named(name)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == COSTS[name][0]
    if name not in _COUNTED:
        return
    found = costs_by_part(network)
    parameters, macs = (sum(cost[i] for cost in found.values()) for i in (0, 1))
    assert round(parameters / 1e6, 2) == COSTS[name][0]
    assert abs(macs / 1e9 / COSTS[name][1] - 1) < 0.005
    if name in PARTS:
        pairs = [found["spatial"], found["bypass"], found["channel MLP"]]
        for i, total in enumerate((parameters, macs)):
            shares = [100 * pair[i] / total for pair in pairs]
            shares[0] += 100 * found["attention products"][i] / total
            for share, wanted in zip(shares, PARTS[name], strict=True):
                assert abs(share - wanted[i]) <= (0.005 if wanted[i] < 1 else 0.05) + 1e-9
        assert found["attention products"].parameters == 0
    if name == "hybrid_ms S":
        assert (found["stem"].macs, found["head"].macs) == (56 * 56 * 128 * 48, 1_024_000)
        assert found["attention products"].macs == 1_032_622_080


def test_stages_of_the_hybrids_and_widths_of_heads() -> None:
    kinds = {
        "XS": [["conv 3"], ["conv 4"], ["conv 2", "attention 10"], ["conv 1", "attention 2"]],
        "S": [["conv 3"], ["conv 2", "attention 2"], ["conv 2", "attention 10"],
              ["conv 1", "attention 2"]],
    }  # fmt: skip
    for size, wanted in kinds.items():
        network = named(f"hybrid_ms {size}")
        stages = [[f"{kind} {n}" for kind, n in stage] for stage in network.config.stages]
        assert stages == wanted
        made = [isinstance(block.spatial, Attention) for block in network.blocks()]
        assert made == [
            word.startswith("attention")
            for stage in wanted
            for run in stage
            for word in [run] * int(run.split()[1])
        ]
    for name, first in (("hybrid_ms S", 64), ("spach_ms attention S", 64)):
        widths = {
            m.qkv.in_features // m.heads for m in named(name).modules() if type(m) is Attention
        }
        assert sorted(widths) == [first, 2 * first, 4 * first]  # 32 in the first stage


@pytest.mark.parametrize("kind", KINDS)
def test_before_training(kind: str) -> None:
    """The head is 0, and a spatial function counts by its layer scale of 1e-4 alone."""
    network, x = small(kind).eval(), images(3, 3, 32, 32)
    assert torch.equal(network(x), torch.zeros(3, 5))
    loss = cross_entropy(network(x), torch.tensor([0, 1, 4]))
    torch.testing.assert_close(loss, torch.tensor(5.0).log())
    features = network.features(x)
    without = copy.deepcopy(network)
    for block in without.blocks():
        block.remove_spatial_()
    change = (features - without.features(x)).norm() / features.norm()
    assert (change == 0) if kind == "conv" else (1e-7 < change < 1e-3)
    assert without.config == network.config and not any(b.spatial for b in without.blocks())


def test_what_mixes_tokens_and_how() -> None:
    """Attention without its bypass takes tokens in any order, the bypass does not."""
    order, x = torch.randperm(16, generator=torch.Generator().manual_seed(0)), images(2, 4, 4, 12)

    def permuted(y: Tensor) -> Tensor:
        return y.flatten(1, 2)[:, order].reshape(y.shape)

    for bypass in (False, True):
        block = randomized(MixingBlock(12, 24, Attention(12, 2), bypass, 0.0))
        off = float((block(permuted(x)) - permuted(block(x))).detach().abs().max())
        assert off > 0.1 if bypass else off < 1e-5
    for spatial, moves in ((None, True), (TokenMLP(36, 18), False)):
        block, x = randomized(MixingBlock(12, 24, spatial, True, 0.0)), images(1, 6, 6, 12)
        moved = block(x.roll(1, 2))[:, :, 2:5]
        off = float((moved - block(x)[:, :, 1:4]).detach().abs().max())
        assert off < 1e-5 if moves else off > 0.1


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_shared_functions(kind: str) -> None:
    """One of a stage, whose gradient is the sum over its blocks."""
    whole = named(f"spach {kind} XXS shared"), named(f"spach_ms {kind} XXS shared")
    owned = [{id(b.spatial) for b in n.blocks() if b.spatial is not None} for n in whole]
    assert [len(found) for found in owned] == [1, 3]
    stages = ((("conv", 1),), ((kind, 3),))
    shared = small(kind, stages=stages, shared=True)
    randomized(shared)
    apart = Spach(replace(shared.config, shared=False)).eval()
    apart.load_state_dict(shared.state_dict())
    for network in (shared, apart):
        network(images(2, 3, 32, 32)).square().sum().backward()
    theirs = [list(block.spatial.parameters()) for block in apart.stages[1].blocks]
    for i, parameter in enumerate(shared.stages[1].blocks[0].spatial.parameters()):
        total = sum(found[i].grad for found in theirs)
        torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-6)
        assert float(parameter.grad.abs().max()) > 0


def by_einsum(block: MixingBlock, x: Tensor) -> Tensor:
    """The block by its definition, in float64; tokens [N, H, W, C]."""
    p = {name: value.double() for name, value in block.named_parameters()}
    n, h, w, c = x.shape
    y, flat = x.clone(), x.flatten(1, 2)
    if block.spatial is not None:
        s = layer_norm(flat, (c,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        if isinstance(block.spatial, Attention):
            weight = p["spatial.qkv.weight"].view(3, block.spatial.heads, -1, c)
            bias = p["spatial.qkv.bias"].view(3, block.spatial.heads, 1, -1)
            q, k, v = torch.einsum("nlc,thdc->tnhld", s, weight) + bias[:, None]
            shares = torch.einsum("nhld,nhmd->nhlm", q * q.shape[-1] ** -0.5, k).softmax(-1)
            s = torch.einsum("nhlm,nhmd->nlhd", shares, v).flatten(2)
            s = s @ p["spatial.proj.weight"].T + p["spatial.proj.bias"]
        else:
            s = torch.einsum("nlc,tl->ntc", s, p["spatial.fc1.weight"])
            s = gelu(s + p["spatial.fc1.bias"][:, None])
            s = torch.einsum("ntc,lt->nlc", s, p["spatial.fc2.weight"])
            s = s + p["spatial.fc2.bias"][:, None]
        y = y + (p["layer_scale"] * s).view(n, h, w, c)
    wide = nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            y = y + wide[:, i : i + h, j : j + w] * p["bypass.weight"][:, 0, i, j]
    y = y + p["bypass.bias"]
    s = layer_norm(y, (c,), p["norm2.weight"], p["norm2.bias"], 1e-6)
    s = gelu(s @ p["channel.fc1.weight"].T + p["channel.fc1.bias"])
    return y + s @ p["channel.fc2.weight"].T + p["channel.fc2.bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_equal_an_independent_reference(kind: str) -> None:
    spatial = {"conv": None, "attention": Attention(12, 3), "mlp": TokenMLP(20, 10)}[kind]
    block, x = randomized(MixingBlock(12, 24, spatial, True, 0.0)), images(3, 4, 5, 12)
    wanted = by_einsum(block, x.double())
    off = (block(x) - wanted).detach().abs().max()
    assert off < 1e-5 * wanted.detach().abs().max()
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]), rtol=1e-5, atol=1e-5)


def test_stochastic_depth() -> None:
    """It rises over the blocks of several stages, is equal in a single one, and keeps the mean."""
    rates = [getattr(b.drop_path, "rate", 0.0) for b in small("conv", drop_path=0.3).blocks()]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    config = SpachConfig(12, ((("attention", 3),),), 4, image_size=32, drop_path=0.25)
    drop = Spach(config).blocks()[0].drop_path
    torch.manual_seed(0)
    made = drop.train()(torch.ones(4000, 2))
    assert torch.equal(made[:, 0], made[:, 1])
    assert made.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs(float(made.mean()) - 1) < 0.05
    assert torch.equal(drop.eval()(made), made)


def test_sizes_of_images() -> None:
    for kind in ("conv", "attention"):
        network = randomized(small(kind))
        assert network(images(1, 3, 48, 16)).shape == (1, 5)
        with pytest.raises(UnsupportedShape, match=r"multiples of 8.*\[1, 3, 44, 44\]"):
            network(images(1, 3, 44, 44))
    for shape in ((1, 3, 48, 48), (1, 3, 32, 40), (1, 1, 32, 32)):
        with pytest.raises(UnsupportedShape, match=r"\[N, 3, 32, 32\]"):
            small("mlp")(images(*shape))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heads": 5}, "12 channels for 5 heads"),
        ({"image_size": 36}, "multiple of 8"),
        ({"stages": ((("pool", 1),),)}, "conv | attention | mlp"),
        ({"stages": ((), (("conv", 1),))}, "number of blocks"),
        ({"stages": ((("conv", 1),),), "bypass": False}, "bypass=True"),
        ({"shared": True}, "stages of one kind"),
        ({"patch": 1, "deep_stem": True}, "even patch"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"width": 0}, "width >= 1"),
    ],
)
def test_what_does_not_fit_together_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadConfig, match=named):
        small("attention", **change)


def test_unknown_names_are_named() -> None:
    for build, word in (
        (lambda: spach("attn", "S"), "attention"),
        (lambda: spach_ms("mlp", "M"), "XXS, XS, S"),
        (lambda: hybrid_ms("M"), "XXS, XS, S"),
    ):
        with pytest.raises(BadConfig, match=word):
            build()
