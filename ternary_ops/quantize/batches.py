# SPDX-License-Identifier: Apache-2.0
"""Sample batches as people pass them: tensors, or tuples whose first element is the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ternary_ops.errors import UnsupportedModel, need


def samples(model: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Inputs, on the model's device, and whatever is second in each batch (None without one).

    Raises UnsupportedModel for a batch that holds no tensor, and at the end if there was no sample.
    """
    device = next(model.parameters()).device
    seen = 0
    for batch in batches:
        several = isinstance(batch, (tuple, list)) and len(batch) > 0
        x = batch[0] if several else batch
        if not isinstance(x, Tensor):
            raise UnsupportedModel(
                need(
                    "a batch is a tensor, or a tuple that starts with one",
                    type(x).__name__,
                    "Convert it first.",
                )
            )
        seen += len(x)
        yield x.to(device), batch[1] if several and len(batch) > 1 else None
    if seen == 0:
        do = "Pass a few dozen samples."
        raise UnsupportedModel(need("this needs at least one sample", "none", do))
