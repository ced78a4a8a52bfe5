# SPDX-License-Identifier: Apache-2.0
"""One signature builds ten methods of the literature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning import float_net, quantized_net, train
from torch import nn

from ternary_ops.prune import Pruner, iht, iterative

STEPS, ZEROS = 20, 0.75
_RANDOM = torch.Generator().manual_seed(1)
BATCHES = [(torch.randn(8, 1, 4, 4, generator=_RANDOM), torch.arange(8) % 5) for _ in range(2)]
METHODS: dict[str, dict[str, Any]] = {
    "one-shot": {"schedule": "one_shot"},
    "iterative magnitude pruning with rewinding": {"schedule": iterative(3), "rewind": 2},
    "gradual (AGP)": {"schedule": "agp"},
    "iterative hard thresholding": {"schedule": iht(sparse=4, dense=2, steps=16)},
    "dense-sparse-dense": {"schedule": "dsd", "nested": False},
    "SET": {"growth": "set", "every": 4},
    "RigL": {"growth": "rigl", "every": 4},
    "SNIP": {"criterion": "snip", "schedule": "constant", "batches": BATCHES},
    "one-cycle": {"schedule": "one_cycle"},
    "GraSP": {"criterion": "grasp", "schedule": "constant", "batches": BATCHES},
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("pattern", ["element", "1x4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_pruner_and_ends_at_its_count(
    method: str, pattern: str, quantized: bool
) -> None:
    torch.manual_seed(0)
    model: nn.Module = quantized_net() if quantized else float_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    options = dict(METHODS[method])
    if "batches" in options:
        options["loss"] = F.cross_entropy
    pruner = Pruner(
        model, total_steps=STEPS, zeros=ZEROS, pattern=pattern, optimizer=optimizer, **options
    )
    groups = pruner._groups  # one for each pattern: grouped convolutions are pruned by element
    units = sum(group.total for group in groups)
    most = 0.0
    for step in range(STEPS):
        train(model, optimizer, pruner, range(step, step + 1))
        most = max(most, sum(group.count for group in groups) / units)
    dense_again = method == "dense-sparse-dense"
    for group in groups:
        assert group.count == (0 if dense_again else round(ZEROS * group.total))
        assert sum(target.empty_units() for target in group.targets) >= group.count
    assert most == pytest.approx(ZEROS, abs=0.02) and pruner.phase == "frozen"
