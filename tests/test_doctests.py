# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings give what stands there: `model` is a small float network, `x` images."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import ternary_ops as tops
from ternary_ops.models import digits_resnet

# Modules with examples of the main public functions.
MODULES = {
    "quantize": "plan calibrate",
    "quantize.convert": "quantize_ pack_",
    "quantize.weights_file": "save load",
    "compiler": "compile",
    "program.program": "Program load",
    "prune": "Pruner",
    "reporting.network_report": "report",
    "monitor.filter": "FaultTolerantFilter",
    "monitor.threshold": "residual_threshold",
    "io.storage_formats": "storage_bits cheapest",
    "nn.activation_sparsity": "KWinners",
    "sr.inference.upscaling": "upscale",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"ternary_ops.{name}")
    parts = doctest.DocTestFinder(exclude_empty=True).find(module)
    shown = ""
    for part in (part for part in parts if part.examples):
        given = {"model": digits_resnet(width=8).eval(), "x": torch.rand(2, 1, 8, 8)}
        part.globs |= {"np": np, "torch": torch, "tops": tops, "digits_resnet": digits_resnet}
        part.globs |= given
        said: list[str] = []
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(part, out=said.append)
        assert not result.failed, "".join(said)
        shown += part.docstring
    assert all(function in shown for function in MODULES[name].split())
