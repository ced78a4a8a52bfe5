# SPDX-License-Identifier: Apache-2.0
"""The package's upscaling models keep flat colors, borders and ramps, whatever lies around them."""

from __future__ import annotations

import numpy as np
import pytest

from ternary_ops import runtime, sr
from ternary_ops.errors import BadConfig, UnsupportedModel
from ternary_ops.sr.inference import colors
from ternary_ops.sr.inference.fidelity import Fidelity, check_colors

MODELS = sorted(sr.MODELS.items())


def model(scale: int) -> runtime.Program:
    found = sr.open_model(scale)
    assert isinstance(found, runtime.Program)
    return found


@pytest.fixture(scope="module", params=MODELS, ids=lambda m: m[1])
def found(request: pytest.FixtureRequest) -> Fidelity:
    scale = request.param[0]
    return check_colors(model(scale), scale, side=17, others=7)


def test_every_flat_color_comes_out_as_it_went_in(found: Fidelity) -> None:
    assert found.flats.count == 17**3
    assert (found.flats.off, found.near.off) == (0, 0)
    assert max(found.flats.worst, found.near.worst) <= 2


def test_noise_borders_and_ramps(found: Fidelity) -> None:
    assert found.noisy.worst <= 3  # of which the noise is 1
    assert found.white <= 3 and found.borders <= 4
    assert found.ramp <= 3 and found.fine_ramp <= 3


@pytest.mark.parametrize(("scale", "name"), MODELS)
def test_bands_of_rows_change_no_bit(scale: int, name: str) -> None:
    x = np.random.default_rng(0).random((1, 3, 300, 290)).astype(np.float32)
    program = model(scale)
    np.testing.assert_array_equal(program(x), program.trace(x)[-1])


def test_the_image_is_continued_and_its_chroma_bounded() -> None:
    """The nodes before the network, against NumPy."""
    program = model(2)
    x = np.random.default_rng(1).random((1, 3, 31, 26)).astype(np.float32)
    x[:, 0] *= 0.2  # much chroma
    values = program.trace(x)
    nodes = program.graph.nodes
    quantized = next(i for i, n in enumerate(nodes) if n.op == "quantize")
    continued = nodes[quantized].inputs[0]
    safe = next(i for i, n in enumerate(nodes) if n.op == "add")
    inner = values[safe]
    np.testing.assert_allclose(values[continued][..., 1:-1, 1:-1], inner, atol=1e-6)
    row = np.pad(inner[..., 0, :], ((0, 0), (0, 0), (1, 1)), "edge")
    wanted = (row[..., :-2] + 2 * row[..., 1:-1] + row[..., 2:]) / 4
    np.testing.assert_allclose(values[continued][..., 0, 1:-1], wanted, atol=1e-6)
    color = np.array([0.1, 0.9, 0.3], np.float32)
    flat = np.broadcast_to(color[:, None, None], (1, 3, 20, 20))
    seen = program.trace(np.ascontiguousarray(flat))[safe][0, :, 10, 10]
    luma = float(np.dot([0.299, 0.587, 0.114], color))
    np.testing.assert_allclose(seen, luma + np.clip(color - luma, -0.05, 0.05), atol=1e-6)
    pale = np.full((1, 3, 20, 20), 0.4, np.float32) + 0.02 * (x[..., :20, :20] - 0.5)
    np.testing.assert_allclose(program.trace(pale)[safe], pale, atol=1e-6)  # as photos: untouched


def test_what_cannot_keep_colors_is_refused() -> None:
    program = model(2)
    with pytest.raises(UnsupportedModel, match="quantizes the image first"):
        colors.keep_colors(program, 0.1, 0.2)  # it does already
    with pytest.raises(BadConfig, match=r"0\.\.1"):
        colors.keep_colors(program, 1.5, 0.2)
