# SPDX-License-Identifier: Apache-2.0
"""Super-resolution: published efficient networks, loaded from their own checkpoints."""

from ternary_ops.sr.efdn import EFDN
from ternary_ops.sr.files import load
from ternary_ops.sr.fmen import FMEN, FMEN_FULL, balance_, to_unit_range_
from ternary_ops.sr.fold import fold
from ternary_ops.sr.imdn import IMDN
from ternary_ops.sr.losses import EdgeLoss
from ternary_ops.sr.network import SRNetwork
from ternary_ops.sr.rfdn import RFDN, RLFN
from ternary_ops.sr.tiles import Upscaler
from ternary_ops.sr.training import Patches, SRCourse, train
from ternary_ops.sr.upscale import upscale

__all__ = [
    "EFDN",
    "EdgeLoss",
    "FMEN",
    "FMEN_FULL",
    "IMDN",
    "Patches",
    "RFDN",
    "RLFN",
    "SRCourse",
    "SRNetwork",
    "Upscaler",
    "balance_",
    "to_unit_range_",
    "fold",
    "load",
    "train",
    "upscale",
]
