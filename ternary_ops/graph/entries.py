# SPDX-License-Identifier: Apache-2.0
"""Tensors of PyTorch as entries of a file, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ternary_ops.errors import FormatError, UnsupportedModel, need
from ternary_ops.io import container
from ternary_ops.io.container import WeightEntry
from ternary_ops.io.safetensors import DAMAGED


def entry_of(name: str, tensor: Tensor) -> WeightEntry:
    """A tensor as an entry; bfloat16, which NumPy does not know, as int16: the index of a file
    names such tensors. Raises UnsupportedModel for what files do not hold.
    """
    stored = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    try:
        array = stored.detach().cpu().contiguous().numpy()
    except (TypeError, RuntimeError) as error:
        do = "Convert or remove it."
        raise UnsupportedModel(need(f"{name!r} as a plain tensor", error, do)) from None
    kind = "float32" if array.dtype == np.float32 else "raw"
    if kind == "raw" and array.dtype.name not in container.RAW:
        do = f"Convert it to float32 or one of {', '.join(container.RAW)}."
        raise UnsupportedModel(need(f"a dtype that files hold for {name!r}", array.dtype, do))
    return WeightEntry(name, kind, array)


def tensor_of_entry(entry: WeightEntry, bfloat16: bool) -> Tensor:
    """The inverse; bfloat16: whether the index names it so. Raises FormatError."""
    tensor = torch.from_numpy(entry.array)
    if not bfloat16:
        return tensor
    if tensor.dtype != torch.int16:
        raise FormatError(need(f"bfloat16 in {entry.name!r}", entry.array.dtype, DAMAGED))
    return tensor.view(torch.bfloat16)
