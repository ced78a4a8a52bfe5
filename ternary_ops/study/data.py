# SPDX-License-Identifier: Apache-2.0
"""Labelled images for `ternary-ops compress`: scikit-learn's digits, or arrays of your own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ternary_ops.errors import FormatError, MissingExtra, UnsupportedShape, need

DIGITS_TEST = 500


@dataclass(frozen=True)
class Split:
    """Images float32 [N, C, H, W] or rows float32 [N, F]; labels int64 [N], apart for the test."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def classes(self) -> int:
        """Largest label plus one."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def digits() -> Split:
    """The 1,797 real handwritten digits of scikit-learn, 8x8, in 0..1: 1,297 to train, 500 to test.

    The split is one fixed shuffle. Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra(
            need(
                "the digits come with scikit-learn",
                "none installed",
                "pip install 'ternary-ops[train]'",
            )
        ) from error
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return _split(images, torch.tensor(y, dtype=torch.int64), DIGITS_TEST)


def load_npz(path: str | Path) -> Split:
    """Arrays x [N, C, H, W] or [N, F] and y [N] of an .npz, with x_test and y_test if it has them.

    Without them a fifth is set apart by a fixed shuffle. uint8 images become float32 in 0..1.
    Raises FormatError for a file that is not such an archive, UnsupportedShape for its arrays.
    """
    do = "Save it with numpy.savez(path, x=images, y=labels)."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, AttributeError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise FormatError(need(f"{path} must be an .npz archive", str(error), do)) from error
    if missing := {"x", "y"} - set(arrays):
        raise FormatError(need(f"{path} must hold x and y", f"no {min(missing)}", do))
    x, y = _images("x", arrays["x"]), _labels("y", arrays["y"], len(arrays["x"]))
    if "x_test" not in arrays or "y_test" not in arrays:
        return _split(x, y, max(1, len(x) // 5))
    x_test = _images("x_test", arrays["x_test"])
    y_test = _labels("y_test", arrays["y_test"], len(x_test))
    if x_test.shape[1:] != x.shape[1:]:
        raise UnsupportedShape(need("x_test is shaped like x", tuple(x_test.shape), do))
    return Split(x, y, x_test, y_test)


def _split(x: Tensor, y: Tensor, test: int) -> Split:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    chosen, rest = order[:test], order[test:]
    return Split(x[rest], y[rest], x[chosen], y[chosen])


def _images(name: str, array: NDArray[np.generic]) -> Tensor:
    do = "Store float32 or uint8 images [N, C, H, W], or rows [N, F]."
    if array.ndim not in (2, 4) or array.dtype.kind not in "fu" or len(array) < 2:
        got = f"{array.dtype} {list(array.shape)}"
        raise UnsupportedShape(need(f"{name} holds at least two images or rows", got, do))
    x = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    if not np.isfinite(x).all():
        raise UnsupportedShape(need(f"{name} is finite", "NaN or infinity", do))
    return torch.from_numpy(np.ascontiguousarray(x))


def _labels(name: str, array: NDArray[np.generic], count: int) -> Tensor:
    if array.shape != (count,) or array.dtype.kind not in "iu" or int(array.min()) < 0:
        got = f"{array.dtype} {list(array.shape)}"
        do = "Store one integer from 0 up for each image."
        raise UnsupportedShape(need(f"{name} holds {count} class numbers", got, do))
    return torch.from_numpy(array.astype(np.int64))
