# SPDX-License-Identifier: Apache-2.0
"""Networks from checkpoint files."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch

from ternary_ops.errors import FormatError, need
from ternary_ops.models.weights import load_weights
from ternary_ops.sr.models.base import SRNetwork
from ternary_ops.sr.models.fmen import HFAB
from ternary_ops.sr.models.fold import fold
from ternary_ops.sr.models.registry import build
from ternary_ops.sr.models.reparam import Reparametrized

# Of what a folded network may differ from its training form in float64, relative to the largest
# output.
_MOST = 1e-8


def load(path: str | os.PathLike[str], train: bool = False) -> SRNetwork:
    """The network of a checkpoint (.pth, .pt, .npz, .safetensors), in eval mode.

    Architecture, sizes, scale and input range come from the tensors' names and shapes: EFDN, FMEN,
    RFDN, RLFN, IMDN. Training branches are folded, and one random image checks that; train=True
    keeps them. Raises FormatError for a file that is damaged or of another network, with the names
    that differ, FileNotFoundError where there is none.
    """
    network = build(load_weights(Path(path)), str(path))
    if train:
        return network
    if any(isinstance(m, Reparametrized | HFAB) for m in network.modules()):
        _check_fold(network, path)
    return fold(network)


@torch.no_grad()
def _check_fold(network: SRNetwork, path: str | os.PathLike[str]) -> None:
    exact = copy.deepcopy(network).double()
    size = network.smallest + 2
    x = torch.rand(
        1, network.image_channels, size, size, generator=torch.Generator().manual_seed(0)
    ).double()
    wanted, found = (n(x * network.input_range) for n in (exact, fold(exact)))
    off = float((found - wanted).abs().max() / wanted.abs().max())
    if not off <= _MOST:
        do = "The file may be damaged: load it with train=True and look at its weights."
        raise FormatError(need(f"{path} to compute the same when folded", f"off by {off:.1e}", do))
