# SPDX-License-Identifier: Apache-2.0
"""Labelled images for `ternary-ops compress`: scikit-learn's digits, or arrays of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ternary_ops.data.image_folder import Images, Source, read_folder
from ternary_ops.errors import BadConfig, FormatError, MissingExtra, UnsupportedShape, need

DIGITS_TEST = 500


@dataclass(frozen=True)
class Split:
    """Images float32 [N, C, H, W] or rows float32 [N, F]; labels int64 [N], apart for the test.

    notes: what a user should know of how they were read.
    """

    x_train: Source
    y_train: Tensor
    x_test: Source
    y_test: Tensor
    notes: tuple[str, ...] = ()

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
                "scikit-learn, which brings the digits",
                "none installed",
                "pip install 'ternary-ops[train]'",
            )
        ) from error
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return _split(images, torch.tensor(y, dtype=torch.int64), DIGITS_TEST)


@dataclass(frozen=True)
class Reading:
    """Normalization of images: (value - mean) / std by channel, after bytes are divided by 255.

    size: (H, W) and gray are for image folders.
    """

    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    size: tuple[int, int] | None = None
    gray: bool = False

    def vectors(self, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and std float32 [C]; BadConfig where they are of other channels or std is 0."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                do = "Give one number, or one for each channel."
                raise BadConfig(need(f"--{name} of one number or {channels}", len(values), do))
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (self.mean, self.std))
        if not bool((std > 0).all()):
            raise BadConfig(need("--std larger than 0", list(self.std), "Leave it out for 1."))
        return mean.expand(channels).clone(), std.expand(channels).clone()


_PLAIN = Reading()
# Names of unreadable files that are shown.
_LISTED = 10


def load_npz(path: str | Path, reading: Reading = _PLAIN) -> Split:
    """The arrays of an .npz, as `from_arrays` takes them.

    Raises FormatError for a file that is not such an archive, else as `from_arrays`.
    """
    do = "Save it with numpy.savez(path, x=images, y=labels)."
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, AttributeError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise FormatError(need(f"an .npz archive in {path}", str(error), do)) from error
    if missing := {"x", "y"} - set(arrays):
        raise FormatError(need(f"x and y in {path}", f"no {min(missing)}", do))
    return from_arrays(arrays, reading)


def from_arrays(arrays: Mapping[str, NDArray[np.generic]], reading: Reading = _PLAIN) -> Split:
    """x [N, C, H, W] or [N, F] and y [N], with x_test and y_test if they are there.

    Without them a fifth is set apart by a fixed shuffle. uint8 images become float32 in 0..1, then
    are normalized as `reading` says. Raises UnsupportedShape for arrays that are not such.
    """
    x, y = _images("x", arrays["x"], reading), _labels("y", arrays["y"], len(arrays["x"]))
    if "x_test" not in arrays or "y_test" not in arrays:
        return _split(x, y, max(1, len(x) // 5))
    x_test = _images("x_test", arrays["x_test"], reading)
    y_test = _labels("y_test", arrays["y_test"], len(x_test))
    if x_test.shape[1:] != x.shape[1:]:
        do = "Store both alike."
        raise UnsupportedShape(
            need(
                f"x_test of shape [N, {', '.join(map(str, x.shape[1:]))}], as x",
                tuple(x_test.shape),
                do,
            )
        )
    return Split(x, y, x_test, y_test)


def load_folder(
    path: Path, reading: Reading = _PLAIN, advance: Callable[[], None] = lambda: None
) -> Split:
    """Images by class, as `images.read_folder` finds them; a fifth is set apart if no part is.

    Raises what it raises.
    """
    folder = read_folder(path, reading.size, reading.gray, advance)
    mean, std = reading.vectors(folder.train[0].shape[1])
    notes = [f"{len(folder.classes)} classes: {', '.join(folder.classes[:5])}, ..."]
    if folder.skipped:
        notes.append(f"{len(folder.skipped)} images could not be read and were left out")
        notes += folder.skipped[:_LISTED]
    x, y = Images(folder.train[0], mean, std), folder.train[1]
    if folder.test is None:
        return _split(x, y, max(1, len(x) // 5), tuple(notes))
    return Split(x, y, Images(folder.test[0], mean, std), folder.test[1], tuple(notes))


def _split(x: Source, y: Tensor, test: int, notes: tuple[str, ...] = ()) -> Split:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    chosen, rest = order[:test], order[test:]
    x_train, x_test = (
        Images(x.pixels[part], x.mean, x.std) if isinstance(x, Images) else x[part]
        for part in (rest, chosen)
    )
    return Split(x_train, y[rest], x_test, y[chosen], notes)


def _images(name: str, array: NDArray[np.generic], reading: Reading) -> Source:
    do = "Store float32 or uint8 images [N, C, H, W], or rows [N, F]."
    if array.ndim not in (2, 4) or array.dtype.kind not in "fu" or len(array) < 2:
        got = f"{array.dtype} {list(array.shape)}"
        raise UnsupportedShape(need(f"at least two images or rows in {name}", got, do))
    mean, std = reading.vectors(array.shape[1])
    if array.dtype == np.uint8 and array.ndim == 4:
        return Images(torch.from_numpy(np.ascontiguousarray(array)), mean, std)
    x = torch.from_numpy(array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1))
    if not bool(x.isfinite().all()):
        raise UnsupportedShape(need(f"finite numbers in {name}", "NaN or infinity", do))
    shape = (-1, *[1] * (array.ndim - 2))
    return (x - mean.view(shape)) / std.view(shape)


def _labels(name: str, array: NDArray[np.generic], count: int) -> Tensor:
    if array.shape != (count,) or array.dtype.kind not in "iu" or int(array.min()) < 0:
        got = f"{array.dtype} {list(array.shape)}"
        do = "Store one integer from 0 up for each image."
        raise UnsupportedShape(need(f"{count} class numbers in {name}", got, do))
    return torch.from_numpy(array.astype(np.int64))
