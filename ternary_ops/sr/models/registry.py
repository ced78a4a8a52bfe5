# SPDX-License-Identifier: Apache-2.0
"""Architecture of a state dict, and its sizes, found from names and shapes alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ternary_ops.errors import FormatError, need
from ternary_ops.graph.state import load_state
from ternary_ops.sr.models.base import SRNetwork
from ternary_ops.sr.models.efdn import EFDN
from ternary_ops.sr.models.fmen import FMEN
from ternary_ops.sr.models.imdn import IMDN
from ternary_ops.sr.models.rfdn import RFDN, RLFN

_log = logging.getLogger(__name__)
State = Mapping[str, Tensor]
_SHOWN = 3


@dataclass(frozen=True)
class Family:
    """One way that checkpoints name the tensors of an architecture.

    needs: names that must all be there. renames: pairs of a pattern and what it becomes, tried in
    order on each name; a `block` in a pattern counts from 1. build: the network for renamed
    tensors. complete: what files of others leave out or hold in vain.
    """

    needs: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    build: Callable[[State], SRNetwork]
    complete: Callable[[State], State] = lambda state: state

    def matches(self, state: State) -> bool:
        """Are all decisive names there?"""
        return all(name in state for name in self.needs)

    def renamed(self, state: State) -> dict[str, Tensor]:
        """The tensors under the names of our network."""
        return dict(self.complete({self._rename(name): v for name, v in state.items()}))

    def _rename(self, name: str) -> str:
        for pattern, to in self.renames:
            found = re.match(pattern, name)
            if found:
                number = found.groupdict().get("block")
                first = to if number is None else to.format(int(number) - 1)
                return first + name[found.end() :]
        return name


def _efdn(state: State) -> EFDN:
    block = "cells.0.conv2."
    network = EFDN(
        _scale(state, "tail.0.weight", "head.weight"),
        len(state["head.weight"]),
        len(state["cells.0.att.conv1.weight"]),
        train=f"{block}conv1x1_sbx.k0" in state,
        expand=f"{block}conv1x1_3x3.k0" in state,
        identity=bool(state.get(f"{block}with_identity", False)),
        image_channels=state["head.weight"].shape[1],
    )
    if f"{block}conv1x1_sbx.k0" in state and f"{block}conv1x1.weight" not in state:
        network.to_gradient_stage_()
    return network


def _official_efdn(state: State) -> State:
    """The published training code allocates the 1x1-3x3 branch, used or not, and its files do not
    say which switches were on: they are read with its defaults, no such branch and no identity.
    """
    if "cells.0.conv2.with_identity" in state:
        return state
    _log.warning("EFDN with training branches: read as without 1x1-3x3 branch and identity")
    kept = {name: value for name, value in state.items() if ".conv1x1_3x3." not in name}
    blocks = (f"cells.{i}.conv{j}.with_identity" for i in range(4) for j in (2, 3))
    return kept | dict.fromkeys(blocks, torch.tensor(False))


def _fmen(state: State) -> FMEN:
    pairs = _count(state, "ERBs.")
    blocks = ["warmup.1.", *(f"HFABs.{i}." for i in range(pairs))]
    return FMEN(
        _scale(state, "tail.0.weight", "head.weight"),
        len(state["head.weight"]),
        len(state["HFABs.0.squeeze.weight"]),
        len(state["warmup.1.squeeze.weight"]),
        pairs,
        [_count(state, f"{block}convs.") for block in blocks],
        train="ERBs.0.conv1.expand_conv.weight" in state,
        image_channels=state["head.weight"].shape[1],
    )


def _rfdn(state: State) -> RFDN:
    return RFDN(
        _scale(state, "upsampler.0.weight", "fea_conv.weight"),
        len(state["fea_conv.weight"]),
        _count(state, "B."),
        len(state["B.0.esa.conv1.weight"]),
        image_channels=state["fea_conv.weight"].shape[1],
    )


def _rlfn(state: State) -> RLFN:
    return RLFN(
        _scale(state, "upsampler.0.weight", "conv_1.weight"),
        len(state["conv_1.weight"]),
        len(state["block.0.c1_r.weight"]),
        _count(state, "block."),
        len(state["block.0.esa.conv1.weight"]),
        image_channels=state["conv_1.weight"].shape[1],
    )


def _imdn(state: State) -> IMDN:
    return IMDN(
        _scale(state, "tail.weight", "head.weight"),
        len(state["head.weight"]),
        _count(state, "blocks."),
        state["head.weight"].shape[1],
    )


_BLOCK = r"(?P<block>\d+)\."
FAMILIES = (
    Family(
        ("cells.0.conv2.rep_conv.weight", "cells.0.conv2.conv1x1_sbx.k0"),
        (),
        _efdn,
        _official_efdn,
    ),
    Family(("cells.0.conv2.rep_conv.weight", "local_fuse.0.weight"), (), _efdn),
    Family(("warmup.1.squeeze.weight", "ERBs.0.conv1.rep_conv.weight"), (), _fmen),
    Family(("warmup.1.squeeze.weight", "ERBs.0.conv1.expand_conv.weight"), (), _fmen),
    Family(
        ("warmup.1.squeeze.weight", "basic_blocks.0.conv1.rep_conv.weight"),
        (("basic_blocks", "ERBs"), ("hfabs", "HFABs")),
        _fmen,
    ),
    Family(("B1.c1_d.weight", "B1.esa.conv_max.weight"), (("B" + _BLOCK, "B.{}."),), _rfdn),
    Family(
        ("conv_1.weight", "block_1.c1_r.weight", "block_1.esa.conv3.weight"),
        (("block_" + _BLOCK, "block.{}."),),
        _rlfn,
    ),
    Family(
        ("fea_conv.weight", "B1.c1_r.weight", "B1.esa.conv3.weight"),
        (("B" + _BLOCK, "block.{}."), ("fea_conv", "conv_1"), ("LR_conv", "conv_2")),
        _rlfn,
    ),
    Family(
        ("model.0.weight", "model.1.sub.0.conv1.0.weight", "model.1.sub.0.conv1x1.weight"),
        (
            (r"model\.0\.", "head."),
            (r"model\.1\.sub\.\d+\.(?=weight|bias)", "body."),
            (r"model\.1\.sub\.", "blocks."),
            (r"model\.2\.", "tail."),
        ),
        _imdn,
    ),
)


def build(state: State, source: str) -> SRNetwork:
    """The network of a state dict, its weights loaded.

    Raises FormatError where no family fits, or where names or shapes differ from the family's.
    """
    family = next((f for f in FAMILIES if f.matches(state)), None)
    if family is None:
        names = ", ".join(sorted({f.build.__annotations__["return"] for f in FAMILIES}))
        got = ", ".join([*list(state)[:_SHOWN], "..."][: len(state)]) or "no tensors"
        do = f"Known families: {names}."
        raise FormatError(need(f"a known super-resolution network in {source}", got, do))
    state = family.renamed(state)
    try:
        network = family.build(state)
    except (KeyError, TypeError, IndexError) as error:
        do = "Pass the file as its authors published it."
        raise FormatError(need(f"a whole network in {source}", f"no {error}", do)) from error
    own = network.state_dict()
    wrong = [
        *(f"no {name}" for name in own if name not in state),
        *(f"unknown {name}" for name in state if name not in own),
        *(
            f"{name} {list(state[name].shape)} in place of {list(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ),
    ]
    if wrong:
        got = "; ".join(wrong[:_SHOWN]) + (f"; {len(wrong)} in all" if len(wrong) > _SHOWN else "")
        what = f"every tensor of {network.family}, and no other, in {source}"
        raise FormatError(need(what, got, "Pass the file as its authors published it."))
    load_state(network, state)
    return network.eval()


def _scale(state: State, name: str, first: str) -> int:
    """Scale of a network that gives as many channels as its first convolution takes."""
    outputs, channels = len(state[name]) if name in state else 0, state[first].shape[1]
    scale = next((s for s in range(1, 9) if channels * s * s == outputs), None)
    if scale is None:
        got = f"{outputs} output channels" if outputs else "no such tensor"
        do = "Networks that make images of 1 to 8 times the size are known."
        raise FormatError(need(f"{channels} * scale**2 channels out of {name}", got, do))
    return scale


def _count(state: State, prefix: str) -> int:
    numbers = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
    return len(numbers)
