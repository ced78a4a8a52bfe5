# SPDX-License-Identifier: Apache-2.0
"""Upscaling of images of any kind: 8 and 16 bits, gray, transparent, any size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ternary_ops.errors import BadConfig, MissingExtra, UnsupportedShape, need
from ternary_ops.runtime import Program
from ternary_ops.sr.inference.pretrained import open_model
from ternary_ops.sr.inference.tiling import Pixels, Upscaler

if TYPE_CHECKING:
    from ternary_ops.sr.models.base import SRNetwork

Image = NDArray[Any]
OnProgress = Callable[[float], None]
ALPHA = ("model", "bicubic", "drop")
_ROWS = 16


def upscale(
    image: Image,
    model: Upscaler | SRNetwork | Program | str | os.PathLike[str] | int = 4,
    tile: int | None = None,
    alpha: str = "model",
    on_progress: OnProgress = lambda done: None,
) -> Image:
    """An image `scale` times as high and wide, of the same kind.

    image: uint8, uint16 or float (white is 1) [H, W] or [H, W, C]: gray, gray and alpha, RGB, RGB
    and alpha for a model of three channels; for another one, as many channels as it has, all of
    which go through it, and none of which is alpha. Integers are rounded, floats are not clipped.
    The result does not depend on the tile, up to single steps of integers where a value lies
    between two.

    model: a scale or name of the package's own models, a file (`open_model`), or what that gives;
    for many images, an `Upscaler` of it, which compiles a network once. tile and
    on_progress: see `Upscaler`.

    alpha: "model": it goes through the network as a gray image; "bicubic": it is interpolated;
    "drop": it is left out. One value everywhere stays. Colors of pixels that cannot be seen are
    replaced by those of the nearest that can, so that none of them bleeds into an edge.

    Raises UnsupportedShape for another kind of array, BadConfig for an unknown `alpha`,
    MissingExtra where a library lacks, and what `open_model` raises.

    >>> image = np.full((20, 30, 3), 128, np.uint8)
    >>> large = tops.sr.upscale(image, 2)
    >>> large.shape, large.dtype
    ((40, 60, 3), dtype('uint8'))
    """
    check_options(tile, alpha)
    planes = _planes(image)
    if not isinstance(model, Upscaler):
        if isinstance(model, str | int | os.PathLike):
            model = open_model(model)
        model = Upscaler(model)
    _check_channels(planes, image, model.channels)
    if model.channels != 3:
        return _as_given(list(model(planes, tile, on_progress)), image)
    count = 1 if len(planes) < 3 else 3
    colors, mask = planes[:count], planes[count:]
    if alpha == "drop":
        mask = mask[:0]
    if len(mask):
        colors = _uncovered(colors, mask[0])
    passes = 2 if alpha == "model" and len(mask) and np.ptp(mask) else 1
    made = [_through(model, colors, tile, lambda done: on_progress(done / passes))]
    if passes == 2:
        made.append(_through(model, mask, tile, lambda done: on_progress((1 + done) / 2)))
    elif len(mask):
        made.append(_interpolated(mask, model.scale))
    return _as_given([plane for planes in made for plane in planes], image)


def check_options(tile: int | None, alpha: str) -> None:
    """Raise BadConfig unless `upscale` takes them."""
    if alpha not in ALPHA:
        raise BadConfig(need(f"alpha as one of {', '.join(ALPHA)}", repr(alpha), "Pick one."))
    if tile is not None and tile < 1:
        raise BadConfig(need("tile as a number of pixels, at least 1", tile, "Leave it out."))


def _planes(image: Image) -> Pixels:
    """float32 [C, H, W], white is 1."""
    fits = isinstance(image, np.ndarray) and image.ndim in (2, 3) and image.size > 0
    if not fits or not (image.dtype in (np.uint8, np.uint16) or image.dtype.kind == "f"):
        got = (
            f"{image.dtype} {list(image.shape)}"
            if isinstance(image, np.ndarray)
            else type(image).__name__
        )
        what = "an image of uint8, uint16 or float, [H, W] or [H, W, C]"
        raise UnsupportedShape(need(what, got, "Pass numpy.asarray(image)."))
    stacked = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
    planes: Pixels = stacked.astype(np.float32)
    return planes / np.float32(white_of(image.dtype))


def _check_channels(planes: Pixels, image: Image, channels: int) -> None:
    fits = len(planes) == channels or (channels == 3 and len(planes) <= 4)
    if not fits:
        count = "1 to 4" if channels == 3 else channels
        do = "Take other channels, or a model of as many."
        what = f"an image of uint8, uint16 or float, {count} channels"
        raise UnsupportedShape(need(what, list(image.shape), do))


def white_of(dtype: np.dtype[Any]) -> int:
    """The value of white."""
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 1


def _as_given(planes: Sequence[NDArray[np.float32]], image: Image) -> Image:
    """Planes [H, W] in the layout and type of the image, a few rows at a time: passes over all of a
    large one would take longer than the network's own reading and writing.
    """
    height, width = planes[0].shape
    made = np.empty((height, width, len(planes)), image.dtype)
    white = np.float32(white_of(image.dtype))
    part = np.empty((_ROWS, width), np.float32)
    for top in range(0, height, _ROWS):
        for c, plane in enumerate(planes):
            rows = plane[top : top + _ROWS]
            if image.dtype.kind == "u":
                rows = np.multiply(rows, white, out=part[: len(rows)])
                np.clip(np.rint(rows, out=rows), 0, white, out=rows)
            made[top : top + _ROWS, :, c] = rows
    return made[..., 0] if image.ndim == 2 else made


def _through(model: Upscaler, planes: Pixels, tile: int | None, on_progress: OnProgress) -> Pixels:
    """Run colors through the network; one plane as a gray image, by the mean of the output."""
    made = model(np.broadcast_to(planes, (3, *planes.shape[1:])), tile, on_progress)
    return made if len(planes) == 3 else made.mean(0, keepdims=True)


def bicubic(image: Image, scale: int) -> Image:
    """Bicubic interpolation to `scale` times height and width: the baseline of a network."""
    planes = _planes(image)
    return _as_given([_interpolated(p[None], scale)[0] for p in planes], image)


def _interpolated(mask: Pixels, scale: int) -> Pixels:
    """Bicubic, within the range of the plane: one value everywhere stays that value."""
    try:
        from PIL import Image as pillow
    except ImportError as error:
        do = "pip install 'ternary-ops[upscale]'"
        raise MissingExtra(need("Pillow for interpolation", "none installed", do)) from error
    height, width = mask.shape[1:]
    size, kernel = (width * scale, height * scale), pillow.Resampling.BICUBIC
    large: Pixels = np.asarray(pillow.fromarray(mask[0]).resize(size, kernel))
    return np.clip(large[None], mask.min(), mask.max())


def _uncovered(colors: Pixels, mask: Pixels) -> Pixels:
    """Colors where the mask is 0 taken from the nearest pixel where it is not."""
    hidden = mask == 0
    if not hidden.any() or hidden.all():
        return colors
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        do = "pip install 'ternary-ops[upscale]'"
        raise MissingExtra(need("SciPy for alpha", "none installed", do)) from error
    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    near: Pixels = colors[:, rows, columns]
    return near
