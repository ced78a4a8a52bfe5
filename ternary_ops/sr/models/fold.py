# SPDX-License-Identifier: Apache-2.0
"""Fold a network's training branches into the convolutions of the deployed one."""

from __future__ import annotations

import copy

from ternary_ops.sr.models.base import SRNetwork
from ternary_ops.sr.models.fmen import HFAB
from ternary_ops.sr.models.reparam import Reparametrized


def fold(network: SRNetwork) -> SRNetwork:
    """A copy in eval mode that computes the same with one convolution for each block.

    Borders included, up to the rounding of the weights. A folded network comes back as a copy.
    """
    made = copy.deepcopy(network).eval()
    for module in list(made.modules()):
        if isinstance(module, HFAB):
            module.fold_()
        for name, child in list(module.named_children()):
            if isinstance(child, Reparametrized):
                setattr(module, name, child.to_conv())
    return made
