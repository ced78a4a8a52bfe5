# SPDX-License-Identifier: Apache-2.0
"""Labelled images from a folder, kept as bytes and normalized as they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ternary_ops.errors import BadConfig, FormatError, MissingExtra, need
from ternary_ops.memory import free_memory

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
)
_TRAIN, _TEST = ("train", "training"), ("test", "val", "valid", "validation")
_DO = "Make FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png."
# Of the memory that is free, what images may take: training needs the rest.
_SHARE = 0.5


class Source(Protocol):
    """Source of training samples: a tensor [N, ...], or Images."""

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W] or [N, F]."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, chosen: Any, /) -> Tensor:
        """float32, for a slice or a tensor of numbers."""


@dataclass(frozen=True)
class Images:
    """uint8 pixels [N, C, H, W] that come out as float32 (pixel / 255 - mean) / std.

    mean, std: float32 [C].
    """

    pixels: Tensor
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""
        return self.pixels.shape

    @property
    def ndim(self) -> int:
        """4."""
        return self.pixels.ndim

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, chosen: Any, /) -> Tensor:
        scaled = self.pixels[chosen].float() / 255
        return (scaled - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


@dataclass(frozen=True)
class Folder:
    """Contents of an image folder: uint8 pixels [N, C, H, W] and int64 labels [N] of both parts.

    test: None where the folder has no such part. classes: their names in the order of the labels.
    skipped: "file: why", for images that could not be read.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


def read_folder(
    path: Path,
    size: tuple[int, int] | None,
    gray: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Folder:
    """Read CLASS/images below `path`, or below its parts train and test (or val).

    size: (H, W), to which the middle of an image is scaled; None takes the size of the first image,
    and others are scaled to it. Images that cannot be read are left out and listed.

    Raises BadConfig for a folder without two classes, classes that only the test part has, or more
    pixels than fit the memory; FormatError where a class has no readable image; MissingExtra
    without Pillow.
    """
    parts = _part(path, _TRAIN), _part(path, _TEST)
    train = parts[0] or path
    classes = _classes(train, but=() if parts[0] else (*_TRAIN, *_TEST))
    test = parts[1] if parts[0] else None
    if test is not None and (strange := set(_classes(test)) - set(classes)):
        do = "Give both parts the same classes."
        raise BadConfig(need(f"classes of {test} that {train} has too", min(strange), do))
    files = [_files(part, classes) if part is not None else [] for part in (train, test)]
    reader = _Reader(size, gray, advance)
    reader.reserve(sum(map(len, files)), files[0][0][0])
    arrays = [reader.read(part) for part in files]
    found = set(arrays[0][1].tolist())
    if lost := [name for label, name in enumerate(classes) if label not in found]:
        why = reader.skipped[0] if reader.skipped else "no images"
        raise FormatError(need(f"a readable image to train on in class {lost[0]}", why, _DO))
    kept = arrays[1] if len(arrays[1][1]) else None
    return Folder(arrays[0], kept, classes, tuple(reader.skipped))


def count_images(path: Path) -> int:
    """Number of files that `read_folder` will try, for a progress bar."""
    return sum(p.suffix.lower() in SUFFIXES for p in path.rglob("*"))


class _Reader:
    """Decodes, crops and scales; remembers what could not be read."""

    def __init__(
        self, size: tuple[int, int] | None, gray: bool, advance: Callable[[], None]
    ) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            do = "pip install 'ternary-ops[image]'"
            raise MissingExtra(need("Pillow for image folders", "none installed", do)) from error
        self.pillow: Any = Image
        self.size, self.mode, self.advance = size, "L" if gray else "RGB", advance
        self.skipped: list[str] = []

    def reserve(self, count: int, example: Path) -> None:
        """Settle the size, and refuse what the memory cannot hold."""
        if self.size is None:
            try:
                with self.pillow.open(example) as image:
                    self.size = image.height, image.width
            except Exception as error:  # Pillow's plug-ins raise whatever they meet
                do = "Remove it, or pass the size of the images."
                raise FormatError(need(f"an image in {example}", _reason(error), do)) from error
        wanted = count * self.size[0] * self.size[1] * len(self.mode)
        free = free_memory()
        if wanted > _SHARE * free:
            got = f"{wanted / 1e9:.1f} GB of pixels and {free / 1e9:.1f} GB free"
            raise BadConfig(need("images that fit half the memory", got, "Pass a smaller --size."))

    def read(self, files: list[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [N, C, H, W] and labels int64 [N] of what could be read."""
        height, width = self.size or (0, 0)
        pixels = np.empty((len(files), len(self.mode), height, width), np.uint8)
        labels: list[int] = []
        for path, label in files:
            try:
                pixels[len(labels)] = self._one(path)
                labels.append(label)
            except Exception as error:  # Pillow's plug-ins raise whatever they meet
                self.skipped.append(f"{path}: {_reason(error)}")
            self.advance()
        made = torch.from_numpy(pixels[: len(labels)])
        return made, torch.tensor(labels, dtype=torch.int64)

    def _one(self, path: Path) -> NDArray[np.uint8]:
        height, width = self.size or (0, 0)
        with self.pillow.open(path) as image:
            image = image.convert(self.mode)
            if image.size != (width, height):
                # The largest part in the middle that has the shape asked for.
                scale = min(image.width / width, image.height / height)
                w, h = width * scale, height * scale
                left, top = (image.width - w) / 2, (image.height - h) / 2
                box = (left, top, left + w, top + h)
                image = image.resize((width, height), self.pillow.Resampling.BICUBIC, box)
            array = np.asarray(image, np.uint8).reshape(height, width, -1)
        return np.ascontiguousarray(array.transpose(2, 0, 1))


def _part(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _classes(path: Path, but: tuple[str, ...] = ()) -> tuple[str, ...]:
    if not path.is_dir():
        raise BadConfig(need("a folder of images", f"{path}, which is none", _DO))
    names = [p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    classes = tuple(sorted(name for name in names if name not in but))
    if len(classes) < 2:
        raise BadConfig(need(f"a folder for each class in {path}", f"{len(classes)}", _DO))
    return classes


def _files(path: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(classes):
        folder = path / name
        if folder.is_dir():
            files = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found += [(file, label) for file in sorted(files)]
    if not found:
        raise BadConfig(need(f"images in {path}", "none", _DO))
    return found


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
