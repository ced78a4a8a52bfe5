# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM as papers on super-resolution report them: luma, borders cut off."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import MissingExtra, UnsupportedShape, need

# MATLAB's rgb2ycbcr, ITU-R BT.601.
_LUMA = np.array([65.481, 128.553, 24.966]) / 255.0
_SMALLEST = 11  # the window of SSIM


class Quality(NamedTuple):
    """psnr in dB, ssim in -1..1."""

    psnr: float
    ssim: float


def luma(image: NDArray[Any]) -> NDArray[np.float64]:
    """Y in 16..235 of RGB uint8 [H, W, 3], not rounded."""
    y: NDArray[np.float64] = 16.0 + image.astype(np.float64) @ _LUMA
    return y


def quality(image: NDArray[np.uint8], truth: NDArray[np.uint8], border: int) -> Quality:
    """PSNR and SSIM of an RGB image [H, W, 3] against its reference, both uint8.

    border: pixels cut off each side, by custom the scale. SSIM has a Gaussian window of 11x11,
    sigma 1.5, K1 = 0.01, K2 = 0.03, and is averaged where the window fits. Raises UnsupportedShape
    where shapes differ or nothing is left, MissingExtra without scikit-image.
    """
    try:
        metrics: Any = importlib.import_module("skimage.metrics")
    except ImportError as error:
        do = "pip install 'ternary-ops[sr]'"
        raise MissingExtra(need("scikit-image for metrics", "none installed", do)) from error
    least = 2 * border + _SMALLEST
    if image.shape != truth.shape or image.ndim != 3 or min(image.shape[:2]) < least:
        got = f"{list(image.shape)} and {list(truth.shape)}"
        what = f"two RGB images of one size, at least {least} pixels to a side"
        raise UnsupportedShape(need(what, got, "Cut the larger one to the smaller one's size."))
    cut = slice(border, -border or None)
    a, b = (luma(part)[cut, cut] for part in (image, truth))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return Quality(
        float(metrics.peak_signal_noise_ratio(b, a, data_range=255.0))
        if (a != b).any()
        else float("inf"),
        float(metrics.structural_similarity(b, a, data_range=255.0, **window)),
    )
