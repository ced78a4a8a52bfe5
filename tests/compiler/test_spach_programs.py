# SPDX-License-Identifier: Apache-2.0
"""SPACH networks as programs: no islands, float and integer, saved, at other image sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from graph_checks import check_nodes

import ternary_ops as tops
from ternary_ops import runtime
from ternary_ops.errors import UnsupportedShape
from ternary_ops.models import Spach, SpachConfig
from ternary_ops.runtime import Program

HYBRID = ((("conv", 1),), (("conv", 1), ("attention", 1)), (("attention", 1),))
KINDS = {
    "hybrid": SpachConfig(12, HYBRID, 4, heads=2, num_classes=6, image_size=32, deep_stem=True),
    "attention": SpachConfig(12, ((("attention", 2),),), 8, heads=3, num_classes=6, image_size=32),
    "mlp": SpachConfig(12, ((("conv", 1),), (("mlp", 2),)), 4, num_classes=6, image_size=32),
    "shared": SpachConfig(12, ((("mlp", 2),),), 8, num_classes=6, image_size=32, shared=True),
    "no bypass": SpachConfig(
        12, ((("attention", 2),),), 8, heads=2, num_classes=6, image_size=32, bypass=False
    ),
}


def network(name: str) -> Spach:
    """Trained, as far as its numbers go: every part counts."""
    torch.manual_seed(0)
    made = Spach(KINDS[name])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for _ in range(2):
            made(images(8))
    return made.eval()


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def saved(program: Program, folder: Path) -> Program:
    program.save(folder / "program.safetensors")
    return runtime.load(folder / "program.safetensors")


@pytest.mark.parametrize("name", KINDS)
def test_floats_equal_pytorch(name: str, tmp_path: Path) -> None:
    model, x = network(name), images(3, 1)
    program = saved(tops.compile(model, x[:1]), tmp_path)
    with torch.no_grad():
        want = model(x).numpy()
    assert np.abs(program(x.numpy()) - want).max() < 1e-4 * np.abs(want).max()
    made = [node.op for node in program.graph.nodes]
    spatial = sum(block.spatial is not None for block in model.blocks())
    if KINDS[name].fixed_size:
        with pytest.raises(UnsupportedShape):
            program(np.zeros((1, 3, 48, 48), np.float32))
    else:
        assert made.count("attention") == spatial
        assert not {"matmul", "softmax", "mul"} & set(made)


@pytest.mark.parametrize("name", ["hybrid", "mlp"])
@pytest.mark.parametrize("zeros", [0.0, 0.75])
def test_integers_equal_their_references(name: str, zeros: float, tmp_path: Path) -> None:
    model, x = network(name), images(2, 2)
    tops.quantize_(model, tops.plan(model, tops.TernaryConfig("int8", zeros=zeros)))
    if zeros:
        tops.prune.Pruner(model, schedule="one_cycle", total_steps=1).step()
    tops.calibrate(model, [images(16)])
    program = saved(tops.compile(model, x[:1]), tmp_path)
    layers = [n for n in program.graph.nodes if n.operator.is_layer]
    assert all(program.graph.values[n.inputs[0]].y is not None for n in layers)
    found = program(x.numpy())
    with torch.no_grad():
        want = model(x).numpy()
    # The residual stream is 8 bits in programs, and floats where layers train.
    assert np.linalg.norm(found - want) < 0.1 * np.linalg.norm(want)
    for isa in {"scalar", runtime.available_isas()[-1]}:
        with runtime.force_isa(isa):
            values = program.trace(x.numpy())
            check_nodes(program.graph, values)
            for threads in (1, 3):
                with runtime.num_threads(threads):
                    np.testing.assert_array_equal(program(x.numpy()), values[-1])
                    np.testing.assert_array_equal(program(x[1:].numpy()), values[-1][1:])
