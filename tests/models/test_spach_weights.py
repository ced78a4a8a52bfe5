# SPDX-License-Identifier: Apache-2.0
"""SPACH from files: the authors' names and ours, what is told of it, and what is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_spach import images, randomized, small
from torch import Tensor

from ternary_ops.errors import BadConfig, FormatError
from ternary_ops.models import Spach, SpachConfig, load_spach

SINGLE = SpachConfig(32, ((("attention", 3),),), 8, ratio=3, num_classes=7, image_size=32)


def of_the_authors(network: Spach) -> dict[str, Tensor]:
    """The state dict as their code names it."""
    several = len(network.config.stages) > 1
    found = {}
    for name, value in network.state_dict().items():
        parts = name.split(".")
        if name.startswith("stem_norm."):
            name = name.replace("stem_norm", "norm1")
        elif name.startswith("norm."):
            name = name.replace("norm", "norm2")
        elif ".downsample." in name:
            place = {"conv": "0", "norm": "1"}[parts[3]]
            name = f"layer{int(parts[1]) + 1}.0.net.1.{place}.{parts[4]}"
        elif name.startswith("stages."):
            stage, block, rest = int(parts[1]), int(parts[3]), ".".join(parts[4:])
            for ours, theirs in (
                ("spatial.", "spatial_func."),
                ("channel.", "channel_func."),
                ("bypass.", "cpe_net.net.1."),
                ("layer_scale", "gamma_1"),
            ):
                rest = rest.replace(ours, theirs)
            first = f"layer{stage + 1}.{block + (stage > 0)}" if several else f"blocks.{block}"
            name = f"{first}.{rest}"
        found[name] = value.view(1, 1, -1) if name.endswith("gamma_1") else value
    return found


NETWORKS: dict[str, Callable[[], Spach]] = {
    "hybrid": lambda: small("attention", heads=1),
    "mlp": lambda: small("mlp", token_ratio=0.25, bypass=False),
    "conv": lambda: small("conv", stages=((("conv", 1),), (("conv", 2),)), deep_stem=True),
    "single": lambda: Spach(SINGLE),
    "shared": lambda: small("mlp", stages=((("conv", 1),), (("mlp", 3),)), shared=True),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("authors", [False, True])
def test_a_file_makes_the_network_that_it_is_of(name: str, authors: bool, tmp_path: Path) -> None:
    network = randomized(NETWORKS[name]())
    state = of_the_authors(network) if authors else network.state_dict()
    file = tmp_path / "weights.pth"
    # As training scripts write it: options and other states beside the network's.
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, file)
    made, report = load_spach(file)
    x = images(2, 3, 32, 32)
    assert torch.equal(made(x), network(x)) and made(x).std() > 0
    wanted, found = vars(network.config), vars(made.config)
    size = {"image_size"} if not network.config.fixed_size else set()
    free = size | {"heads" if network.config.fixed_size or name == "conv" else "", "token_ratio"}
    assert name not in ("mlp", "shared") or made.config.token_ratio == network.config.token_ratio
    assert {k: v for k, v in found.items() if k not in free} == {
        k: v for k, v in wanted.items() if k not in free
    }
    assert report.loaded == len(state)
    assert bool(report.renamed) == authors and not report.shared
    assert ("heads 1" in report.assumed) == (name in ("hybrid", "single"))


def test_safetensors_hold_what_is_shared_once(tmp_path: Path) -> None:
    network = randomized(NETWORKS["shared"]())
    state = of_the_authors(network)
    once = {k: v for k, v in state.items() if not (".spatial_func." in k and "layer2.1." not in k)}
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in once.items()}, file)
    made, report = load_spach(file)
    x = images(2, 3, 32, 32)
    assert torch.equal(made(x), network(x))
    assert len(report.shared) == 8 and made.config.shared
    assert f"{len(once)} tensors" in str(report) and "8 shared" in str(report)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("layer2.1.norm2.bias"), "no stages.1.blocks.0.norm2.bias"),
        (lambda s: s.pop("stem.proj.weight"), "stem.proj.weight"),
        (lambda s: s.pop("head.weight"), "head.weight"),
        (lambda s: s.update(more=torch.ones(3)), "more left over"),
        (lambda s: s.update({"head.bias": torch.ones(3)}), r"head.bias \[3\] for \[5\]"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer1.0.")], "one by one"),
        (lambda s: s.clear(), "stem.proj.weight"),
    ],
)
def test_what_is_missing_or_left_over_is_named(change: Change, named: str, tmp_path: Path) -> None:
    state = of_the_authors(randomized(small("attention", heads=1)))
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(FormatError, match=named):
        load_spach(tmp_path / "weights.pth")


def test_heads_and_damaged_files(tmp_path: Path) -> None:
    network = randomized(small("attention"))
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    made, report = load_spach(file, heads=2)
    x = images(2, 3, 32, 32)
    assert torch.equal(made(x), network(x)) and report.assumed == ("image size 224",)
    with pytest.raises(BadConfig, match="5 heads"):
        load_spach(file, heads=5)
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(FormatError, match="state dict"):
        load_spach(file)
    with pytest.raises(FileNotFoundError):
        load_spach(tmp_path / "none.pth")
