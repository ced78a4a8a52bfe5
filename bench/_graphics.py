# SPDX-License-Identifier: Apache-2.0
"""Text and line art to judge networks by, always the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from _sr import Image

from ternary_ops.sr.training.patches import reduced

_SIDE, _COUNT = 256, 8
Random = np.random.Generator


def drawings(scale: int) -> dict[str, list[tuple[Image, Image]]]:
    """Small and large images of each kind, uint8 RGB."""
    made = {}
    for kind, draw in (("text", _text), ("lines", _lines)):
        large = [draw(np.random.default_rng((1, i))) for i in range(_COUNT)]
        made[kind] = [(reduced(image, scale), image) for image in large]
    return made


def _color(rng: Random) -> tuple[int, int, int]:
    """Every second one has channels of 0 and 255 alone."""
    if rng.integers(2):
        r, g, b = (255 * rng.integers(2, size=3)).tolist()
    else:
        r, g, b = rng.integers(256, size=3).tolist()
    return r, g, b


def _canvas(rng: Random) -> tuple[Any, Any]:
    from PIL import Image as pillow
    from PIL import ImageDraw

    image = pillow.new("RGB", (2 * _SIDE, 2 * _SIDE), _color(rng))
    return image, ImageDraw.Draw(image)


def _smooth(image: Any) -> Image:
    """Half as large, so that edges are smooth."""
    from PIL import Image as pillow

    return np.array(image.resize((_SIDE, _SIDE), pillow.Resampling.BOX))


def _text(rng: Random) -> Image:
    """Lines of letters of any size."""
    from PIL import ImageFont

    image, draw = _canvas(rng)
    top = 0
    while top < 2 * _SIDE:
        size = int(rng.integers(16, 80))
        letters = "".join(map(chr, rng.integers(33, 127, 40)))
        draw.text((0, top), letters, _color(rng), ImageFont.load_default(size))
        top += int(1.2 * size)
    return _smooth(image)


def _lines(rng: Random) -> Image:
    """Lines, circles and polygons."""
    image, draw = _canvas(rng)
    for _ in range(20):
        points = [tuple(p) for p in rng.integers(0, 2 * _SIDE, (3, 2)).tolist()]
        kind = rng.integers(3)
        if kind == 0:
            draw.line(points, _color(rng), int(rng.integers(2, 12)))
        elif kind == 1:
            x, y = points[0]
            radius = int(rng.integers(8, 120))
            box = [x - radius, y - radius, x + radius, y + radius]
            draw.ellipse(box, _color(rng), _color(rng), int(rng.integers(0, 8)))
        else:
            draw.polygon(points, _color(rng))
    return _smooth(image)
