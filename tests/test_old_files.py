# SPDX-License-Identifier: Apache-2.0
"""Files that commit cf631c5 wrote load and give the bits that they gave then: programs, weights,
Pruner states, checkpoints.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import old_files as old
import pytest
import torch

import ternary_ops as tops
from ternary_ops import runtime

FILES = Path(__file__).parent / "data" / "files_v0.zip"
with zipfile.ZipFile(
    FILES
) as _archive:  # programs of today that cf631c5 did not have are not in it
    PROGRAMS = sorted(Path(n).stem for n in _archive.namelist() if n.startswith("programs/"))
# Their floats go through functions of the C library, whose last bit another machine may turn.
ROUNDED = {"wide": 1e-5}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files_v0")
    with zipfile.ZipFile(FILES) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def expected(files: Path) -> dict[str, Any]:
    with np.load(files / "expected.npz") as arrays:
        return dict(arrays)


def compare(name: str, found: Any, wanted: Any) -> None:
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    if name in ROUNDED:
        np.testing.assert_allclose(found, wanted, rtol=ROUNDED[name], atol=1e-7)
    else:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(files: Path, expected: dict[str, Any], name: str) -> None:
    program = runtime.load(files / f"programs/{name}.safetensors")
    x, y = expected[f"x/{name}"], expected[f"y/{name}"]
    assert np.unique(y).size > 3  # a constant would prove little
    compare(name, old.run(program, x, name), y)


def test_programs_have_every_operator_of_then(files: Path) -> None:
    found, kinds, forms = set(), set(), set()
    for file in (files / "programs").iterdir():
        graph = runtime.load(file).graph
        found |= {node.op for node in graph.nodes}
        kinds |= {weight.kind for weight in graph.weights}
        forms |= {(n.op, k) for n in graph.nodes for k in ("fine", "gate") if n.attrs.get(k)}
    assert kinds == {"ternary", "int8", "float"}
    assert forms == {("quantize", "fine"), ("conv2d", "gate")}
    assert found == set(
        "input quantize dequantize conv2d linear max_pool2d avg_pool2d adaptive_avg_pool2d add "
        "clamp flatten activation mul concat slice pixel_shuffle pixel_unshuffle channel_shuffle "
        "resize unflatten softmax layer_norm".split()
    )


@pytest.mark.parametrize("name", old.WEIGHTS_FILES)
def test_weights_files(files: Path, expected: dict[str, Any], name: str) -> None:
    model = tops.load(files / f"weights/{name}.safetensors", old.network(seed=1))
    x = old.images(2)
    y = old.answer(model, x, name)
    if name in ("float", "blocks"):  # sums of PyTorch's own convolutions
        np.testing.assert_allclose(y, expected[f"weights/{name}"], rtol=1e-4, atol=1e-4)
    else:
        compare(name, y, expected[f"weights/{name}"])
    made = old.run(tops.compile(model, x), x.numpy(), name)
    np.testing.assert_allclose(made, expected[f"y/{name}"], rtol=1e-4, atol=1e-4)


def test_a_pruner_that_keeps_scores_goes_on(files: Path, expected: dict[str, Any]) -> None:
    states = torch.load(files / "pruner.pt", weights_only=True)
    model, optimizer, pruner = old.pruning(seed=1)
    for name, part in {"model": model, "optimizer": optimizer, "pruner": pruner}.items():
        part.load_state_dict(states[name])
    old.prune(model, optimizer, pruner, range(old.PRUNED_STOP, old.PRUNED_STEPS))
    assert pruner.phase == "frozen"
    y = old.answer(model, old.images(2), "pruner")
    np.testing.assert_allclose(y, expected["pruner"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", old.RUNS)
def test_runs_that_were_cut_off_go_on(files: Path, expected: dict[str, Any], name: str) -> None:
    train, x = old.RUNS[name]
    steps: list[None] = []
    # Weights of another seed: only the file leads to the same network.
    model = train(files / f"{name}.pt", lambda: steps.append(None), seed=5)
    assert len(steps) > old.CUT_OFF  # with those that the file says were done
    np.testing.assert_allclose(old.answer(model, x, name), expected[name], rtol=1e-3, atol=1e-3)
