# SPDX-License-Identifier: Apache-2.0
"""Sample batches in every accepted form: tensors, tuples that start with the input, dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ternary_ops.errors import UnsupportedModel, check_type, need
from ternary_ops.graph.signature import LABELS, signature_of


def samples(model: nn.Module, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Inputs, on the model's device, and whatever is second in each batch (None without one).

    Raises UnsupportedModel for a batch that holds no tensor, and at the end if there was no sample.
    """
    check_type("batches", batches, Iterable, "Pass a list of batches, or a DataLoader.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0
    for batch in batches:
        x, label = _parts(model, batch)
        if not isinstance(x, Tensor):
            raise UnsupportedModel(
                need(
                    "as batch a tensor, a tuple that starts with one, or a dict that has one "
                    "under the name of the model's input",
                    type(x).__name__,
                    "Convert it first.",
                )
            )
        seen += len(x)
        yield x.to(device), label
    if seen == 0:
        do = "Pass a few dozen samples."
        raise UnsupportedModel(need("at least one sample", "none", do))


def _parts(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Input and label of a batch."""
    if isinstance(batch, Mapping):
        name = signature_of(model).input
        label = next((batch[key] for key in LABELS if key in batch), None)
        other = [str(key) for key in batch if key not in (name, *LABELS)]
        if name not in batch or any(isinstance(batch[key], Tensor) for key in other):
            got = ", ".join(map(str, batch))
            do = "Rename it, and leave out what the model does not need."
            raise UnsupportedModel(need(f"a batch of one input, {name!r}, and labels", got, do))
        return batch[name], label
    if isinstance(batch, (tuple, list)) and len(batch) > 0:
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def batch_of(x: Tensor, count: int) -> Tensor:
    """The first samples of x, again from its start where it has fewer."""
    return x[torch.arange(count) % len(x)]
