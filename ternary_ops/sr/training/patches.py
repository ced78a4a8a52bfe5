# SPDX-License-Identifier: Apache-2.0
"""Random patches of images or fields, paired and unpaired; a batch depends on the step alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ternary_ops.errors import BadConfig, MissingExtra, UnsupportedShape, need

Image = NDArray[Any]
Images = Sequence[Image]
Ids = Sequence[Hashable] | NDArray[Any]


class _Patches:
    """Patches of tuples of images that show one scene, of which each is `factors` times the first.

    Patches of a tuple are cut at one place and turned alike.
    """

    def __init__(
        self,
        scenes: Sequence[tuple[Image, ...]],
        factors: tuple[int, ...],
        patch: int | None,
        turned: bool,
        ids: Ids | None,
    ) -> None:
        if not len(scenes):
            raise BadConfig(need("images to train on", "none", "Pass a list of arrays."))
        if ids is not None and len(ids) != len(scenes):
            do = "Pass one for each image."
            raise BadConfig(need(f"{len(scenes)} ids", len(ids), do))
        self.factors, self.patch, self.turned = factors, patch, turned
        self.ids = None if ids is None else np.asarray(ids)
        self._scenes = [self._checked(scene) for scene in scenes]
        shapes = {tuple(image.shape for image in scene) for scene in self._scenes}
        if len({shape[0][0] for shape in shapes}) > 1:
            do = "Leave the others out."
            raise UnsupportedShape(need("images of one number of channels", sorted(shapes), do))
        square = all(scene[0].shape[1] == scene[0].shape[2] for scene in self._scenes)
        if patch is None and (len(shapes) > 1 or (turned and not square)):
            got = f"{[list(s[0]) for s in sorted(shapes)[:3]]}, turned={turned}"
            do = "Pass patch=, or turned=False where sizes are equal."
            raise UnsupportedShape(need("images of one size, square to be turned", got, do))

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self._scenes[0][0].shape[0])

    @property
    def patch_shapes(self) -> list[tuple[int, ...]]:
        """[C, H, W] of a patch of each image of a scene."""
        p = self.patch
        return [
            tuple(image.shape) if p is None else (self.channels, f * p, f * p)
            for image, f in zip(self._scenes[0], self.factors, strict=True)
        ]

    def _checked(self, scene: tuple[Image, ...]) -> tuple[Tensor, ...]:
        least = 1 if self.patch is None else self.patch
        first = scene[0]
        for image, factor in zip(scene, self.factors, strict=True):
            fits = isinstance(image, np.ndarray) and image.ndim == 3
            fits = fits and (image.dtype == np.uint8 or image.dtype.kind == "f")
            if not fits or min(image.shape[:2]) < least * factor:
                got = f"{getattr(image, 'dtype', '')} {getattr(image, 'shape', type(image))}"
                what = f"images [H, W, C], uint8 or float, of at least {least * factor} pixels"
                raise UnsupportedShape(need(what, got, "Leave it out, or take smaller patches."))
            wanted = (factor * first.shape[0], factor * first.shape[1], first.shape[2])
            if image.shape != wanted:
                do = "Cut or reduce it."
                raise UnsupportedShape(need(f"a large image {wanted}", image.shape, do))
        return tuple(_planes(image) for image in scene)

    def _batch(self, key: tuple[int, ...], count: int) -> list[Tensor]:
        rng = np.random.default_rng(key)
        scenes = [self._cut(rng) for _ in range(count)]
        return [torch.stack(part) for part in zip(*scenes, strict=True)]

    def _cut(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        scene = self._scenes[rng.integers(len(self._scenes))]
        p = self.patch
        if p is not None:
            top, left = (int(rng.integers(side - p + 1)) for side in scene[0].shape[1:])
            scene = tuple(
                image[:, f * top : f * (top + p), f * left : f * (left + p)]
                for image, f in zip(scene, self.factors, strict=True)
            )
        if self.turned:
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            scene = tuple(
                torch.rot90(image.flip(2) if mirrored else image, turns, (1, 2)) for image in scene
            )
        return tuple(image / 255 if image.dtype == torch.uint8 else image for image in scene)


class PairedPatches(_Patches):
    """Patches of pairs of a small and a large image, turned and mirrored.

    pairs: small [h, w, C] and large [scale*h, scale*w, C], uint8, or float whose white is 1. patch:
    side of the small patch in pixels; None: whole images, all of one size. turned: False for fields
    that a turn or a mirror would make impossible, such as those with a north. ids: a name or a date
    for each pair, which `Streams` compares with those of other images.

    Raises UnsupportedShape for an image that does not fit, BadConfig for none.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Image, Image]],
        scale: int,
        patch: int | None = None,
        turned: bool = True,
        ids: Ids | None = None,
    ) -> None:
        self.scale = scale
        super().__init__(pairs, (1, scale), patch, turned, ids)

    def batch(self, step: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Small [N, C, p, p] and large [N, C, scale*p, scale*p], float32."""
        small, large = self._batch((seed, step), count)
        return small, large


class UnpairedPatches(_Patches):
    """Patches of images that have no partner; arguments as in `PairedPatches`."""

    def __init__(
        self,
        images: Images,
        patch: int | None = None,
        turned: bool = True,
        ids: Ids | None = None,
    ) -> None:
        super().__init__([(image,) for image in images], (1,), patch, turned, ids)

    def batch(self, step: int, count: int, seed: int, stream: int) -> Tensor:
        """float32 [N, C, p, p]; stream: a number above 0 for each stream of a training."""
        return self._batch((seed, step, stream), count)[0]


class Patches(PairedPatches):
    """Random patches of images, small and large, turned and mirrored; a step's are always the same.

    images: [H, W, C], uint8, or float whose white is 1. Each is reduced once, as a whole, by
    Pillow's bicubic filter, which comes within 0.01 dB of MATLAB's on Set5.
    """

    def __init__(self, images: Images, scale: int, patch: int) -> None:
        """Raises UnsupportedShape for an image too small, MissingExtra without Pillow."""
        UnpairedPatches(images, patch * scale)  # refuses images before they are reduced
        super().__init__([_pair(image, scale) for image in images], scale, patch)


def _pair(image: Image, scale: int) -> tuple[Image, Image]:
    height, width = (side // scale * scale for side in image.shape[:2])
    large = np.ascontiguousarray(image[:height, :width])
    return reduced(large, scale), large


def reduced(image: Image, scale: int) -> Image:
    """The image `scale` times smaller, bicubic, [H, W, C] with sides that are multiples of it."""
    try:
        from PIL import Image as pillow
    except ImportError as error:
        do = "pip install 'ternary-ops[sr]'"
        raise MissingExtra(need("Pillow to reduce images", "none installed", do)) from error
    size = image.shape[1] // scale, image.shape[0] // scale
    planes = image if image.dtype == np.uint8 else image.astype(np.float32)
    made = [
        np.asarray(pillow.fromarray(plane).resize(size, pillow.Resampling.BICUBIC))
        for plane in np.ascontiguousarray(np.moveaxis(planes, 2, 0))
    ]
    return np.stack(made, 2)


def _planes(image: Image) -> Tensor:
    kept = image if image.dtype == np.uint8 else image.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(kept, 2, 0)))
