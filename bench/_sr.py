# SPDX-License-Identifier: Apache-2.0
"""Images of the super-resolution data pack, and networks that take them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from _cifar import folder
from _measure import RESULTS
from numpy.typing import NDArray

FILES = RESULTS / "sr"  # program files that bench/sr_train.py trained
SETS = ("Set5", "Set14", "BSD100")
Image = NDArray[np.uint8]
Array = NDArray[np.float32]


def training_images() -> list[Image]:
    """The 200 photos."""
    from PIL import Image as pillow

    with zipfile.ZipFile(folder() / "sr_images" / "BSDS500_train.zip") as pack:
        names = sorted(name for name in pack.namelist() if name.endswith(".jpg"))
        opened = (pillow.open(io.BytesIO(pack.read(name))) for name in names)
        return [np.array(image.convert("RGB")) for image in opened]


def pairs(name: str, scale: int) -> Iterator[tuple[Image, Image]]:
    """Small and large images of a test set, uint8 RGB."""
    from PIL import Image as pillow

    with zipfile.ZipFile(folder() / "sr_images" / f"{name}.zip") as pack:

        def read(entry: str) -> Image:
            return np.array(pillow.open(io.BytesIO(pack.read(entry))).convert("RGB"))

        for entry in sorted(n for n in pack.namelist() if n.startswith("HR/") and n[3:]):
            small = read(entry.replace("HR/", f"LRx{scale}/"))
            height, width = (scale * side for side in small.shape[:2])
            yield small, read(entry)[:height, :width]


def by_arrays(network: Callable[[Array], Array], white: float) -> Callable[[Image], Image]:
    """What maps float32 [1, 3, H, W] of 0 to `white`, from image to image."""

    def run(image: Image) -> Image:
        x = np.moveaxis(image, 2, 0)[None].astype(np.float32) * np.float32(white / 255)
        y = network(x)[0] * np.float32(255 / white)
        return np.moveaxis(np.clip(np.rint(y), 0, 255), 0, 2).astype(np.uint8)

    return run
