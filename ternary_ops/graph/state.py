# SPDX-License-Identifier: Apache-2.0
"""States of networks that were kept, changed or read from a file: loading them back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_COUNT = "num_batches_tracked"  # states of before PyTorch 0.4.1 have none: BatchNorm's version 1


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], strict: bool = True, assign: bool = False
) -> None:
    """`model.load_state_dict` of a state in any mapping, in the form that the model's has today.

    A module may ask for the version of its state, which torch keeps beside the tensors, and which
    any new dict of them lacks: it is told its own.
    """
    whole: Any = OrderedDict(state)
    found, own = getattr(state, "_metadata", None), model.state_dict()
    if found is None and all(name in state for name in own if name.endswith(_COUNT)):
        found = getattr(own, "_metadata", None)
    if found is not None:
        whole._metadata = found
    model.load_state_dict(whole, strict, assign)
