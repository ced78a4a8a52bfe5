# SPDX-License-Identifier: Apache-2.0
"""SPACH networks from files of weights: those that the authors publish, and our own."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ternary_ops.errors import FormatError, need
from ternary_ops.graph.state import load_state
from ternary_ops.models.spach_networks import HEAD_WIDTH, Spach, SpachConfig
from ternary_ops.models.weights import load_weights

State = dict[str, Tensor]
# The authors' names and ours. Their stages are layer1 to layer4, or blocks where there is one; a
# downsampling comes first among the blocks of a stage.
_RENAMES = (
    (r"^norm1\.", "stem_norm."), (r"^norm2\.", "norm."), (r"^blocks\.", "stages.0.blocks."),
    (r"\.spatial_func\.", ".spatial."), (r"\.channel_func\.", ".channel."),
    (r"\.gamma_1$", ".layer_scale"), (r"\.cpe_net\.net\.1\.", ".bypass."),
)  # fmt: skip
_DOWNSAMPLE = (("net.1.0.", "conv."), ("net.1.1.", "norm."))
_SHOWN = 3
_DO = "Pass a state dict of a SPACH network, whole."


@dataclass(frozen=True)
class KeyReport:
    """How the tensors of a file became those of a network.

    renamed: the file's name -> ours, where they differ. shared: our names that took a tensor of
    another block, as their stage has one spatial function. assumed: what no tensor says.
    """

    loaded: int
    renamed: Mapping[str, str]
    shared: tuple[str, ...]
    assumed: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        said = f"{self.loaded} tensors, {len(self.renamed)} renamed, {len(self.shared)} shared"
        return "; ".join([said, *self.assumed])


def load_spach(path: str | os.PathLike[str], heads: int | None = None) -> tuple[Spach, KeyReport]:
    """The network of a file (.safetensors, .npz, or torch.save, read without running code in it).

    Widths, stages, kinds of blocks and the rest of its SpachConfig come from names and shapes.
    heads: of attention, which no tensor tells: by default one for each 32 channels of the first
    stage, as in every network of the paper. The network is in eval mode. Raises FormatError for a
    file that is damaged or of another network, with the names that are missing or left over,
    BadConfig for heads that do not divide the width, FileNotFoundError.
    """
    file = load_weights(Path(path))
    names = {name: _our_name(name) for name in file}
    state = {names[name]: value for name, value in file.items()}
    state = {k: v.flatten() if k.endswith(".layer_scale") else v for k, v in state.items()}
    source = str(path)
    config = _config(state, source, heads)
    network = Spach(config)
    shared = _fill_shared(state, network) if config.shared else []
    _compare(state, network, source)
    load_state(network, state)
    assumed = [f"image size {config.image_size}"] if not config.fixed_size else []
    if any(kind == "attention" for stage in config.stages for kind, _ in stage) and heads is None:
        assumed.append(f"heads {config.heads}")
    renamed = {a: b for a, b in names.items() if a != b}
    return network.eval(), KeyReport(len(file), renamed, tuple(shared), tuple(assumed))


def _our_name(name: str) -> str:
    for pattern, to in _RENAMES:
        name = re.sub(pattern, to, name)
    found = re.match(r"layer(\d+)\.(\d+)\.(.*)", name)
    if found is None:
        return name
    stage, block, rest = int(found[1]) - 1, int(found[2]), found[3]
    for theirs, ours in _DOWNSAMPLE:
        if rest.startswith(theirs):
            return f"stages.{stage}.downsample.{ours}{rest.removeprefix(theirs)}"
    return f"stages.{stage}.blocks.{block - (stage > 0)}.{rest}"


def _config(state: State, source: str, heads: int | None) -> SpachConfig:
    deep = "stem.proj.9.weight" in state
    embedding = _get(state, "stem.proj.9.weight" if deep else "stem.proj.weight", 4, source)
    first = _get(state, "stem.proj.0.weight", 4, source) if deep else embedding
    width, patch = embedding.shape[0], embedding.shape[2] * (2 if deep else 1)
    kinds = _kinds(state, source)
    stages = tuple(
        tuple((kind, len(list(run))) for kind, run in groupby(blocks)) for blocks in kinds
    )
    hidden = _get(state, "stages.0.blocks.0.channel.fc1.weight", 2, source).shape[0]
    size, ratio = _tokens(state, kinds, patch, source)
    return SpachConfig(
        *(width, stages, patch, hidden // width),
        heads=max(1, width // HEAD_WIDTH) if heads is None else heads,
        token_ratio=ratio,
        num_classes=_get(state, "head.weight", 2, source).shape[0],
        image_size=size,
        in_channels=first.shape[1],
        deep_stem=deep,
        shared=_is_shared(state, kinds),
        bypass=any(".bypass." in name for name in state),
    )


def _get(state: State, name: str, dims: int, source: str) -> Tensor:
    found = state.get(name)
    if found is None or found.ndim != dims or 0 in found.shape:
        got = "none" if found is None else f"{name} {list(found.shape)}"
        raise FormatError(need(f"a tensor {name} of {dims} axes in {source}", got, _DO))
    return found


def _kinds(state: State, source: str) -> list[list[str]]:
    """Kind of every block, by stage. A shared function may stand in the first block alone."""
    numbers = {
        (int(m[1]), int(m[2]))
        for m in (re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name) for name in state)
        if m is not None
    }
    count = 1 + max((stage for stage, _ in numbers), default=-1)
    blocks = [sorted(b for s, b in numbers if s == stage) for stage in range(count)]
    if not count or any(b != list(range(len(b))) or not b for b in blocks):
        got = ", ".join(f"{s}.{b}" for s, b in sorted(numbers)) or "none"
        raise FormatError(need(f"blocks numbered one by one in {source}", got, _DO))
    kinds: list[list[str]] = []
    for stage, numbered in enumerate(blocks):
        kinds.append([])
        for block in numbered:
            name = f"stages.{stage}.blocks.{block}."
            mixes = f"{name}layer_scale" in state
            own = _own_kind(state, name)
            kinds[-1].append(own or (kinds[-1][-1] if mixes and block else "conv"))
    return kinds


def _own_kind(state: State, block: str) -> str | None:
    if f"{block}spatial.qkv.weight" in state:
        return "attention"
    return "mlp" if f"{block}spatial.fc1.weight" in state else None


def _tokens(state: State, kinds: list[list[str]], patch: int, source: str) -> tuple[int, float]:
    """Image size and hidden tokens a token, of the first token MLP; else the usual ones."""
    for stage, blocks in enumerate(kinds):
        if "mlp" in blocks:
            name = f"stages.{stage}.blocks.{blocks.index('mlp')}.spatial.fc1.weight"
            hidden, tokens = _get(state, name, 2, source).shape
            side = math.isqrt(tokens)
            if side * side != tokens:
                raise FormatError(need(f"a square number of tokens in {name}", tokens, _DO))
            return side * patch * 2**stage, hidden / tokens
    stride = patch * 2 ** (len(kinds) - 1)
    return -(-224 // stride) * stride, 0.5


def _is_shared(state: State, kinds: list[list[str]]) -> bool:
    """Whether every stage of more than one block has the tensors of its first one, or no others."""
    pairs = [
        (f"stages.{stage}.blocks.0.spatial.", f"stages.{stage}.blocks.{block}.spatial.")
        for stage, blocks in enumerate(kinds)
        for block in range(1, len(blocks))
        if blocks[0] != "conv" and len(set(blocks)) == 1
    ]
    mixed = any(len(set(blocks)) > 1 for blocks in kinds)
    return bool(pairs) and not mixed and all(_same(state, *pair) for pair in pairs)


def _same(state: State, first: str, other: str) -> bool:
    theirs = {n.removeprefix(other): v for n, v in state.items() if n.startswith(other)}
    return all(
        first + name in state and torch.equal(state[first + name], value)
        for name, value in theirs.items()
    )


def _fill_shared(state: State, network: Spach) -> list[str]:
    """Add what a file holds once; returns the names."""
    filled = []
    for name in network.state_dict():
        found = re.match(r"(stages\.\d+\.blocks\.)\d+(\.spatial\..*)", name)
        if name not in state and found is not None and f"{found[1]}0{found[2]}" in state:
            state[name] = state[f"{found[1]}0{found[2]}"]
            filled.append(name)
    return filled


def _compare(state: State, network: Spach, source: str) -> None:
    own = network.state_dict()
    wrong = [f"no {name}" for name in own if name not in state]
    wrong += [f"{name} left over" for name in state if name not in own]
    wrong += [
        f"{name} {list(state[name].shape)} for {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        got = ", ".join(wrong[:_SHOWN]) + more
        raise FormatError(need(f"{source} to hold the tensors of a SPACH network", got, _DO))
