# SPDX-License-Identifier: Apache-2.0
"""Deterministic augmentation of images, and a teacher's cached logits for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ternary_ops import _moved
from ternary_ops._atomic import replace_file
from ternary_ops.data.image_folder import Source
from ternary_ops.errors import FormatError, need

_BATCH = 250


@dataclass(frozen=True)
class Augmentation:
    """Training images, each moved by up to `reach` pixels and, if `flip`, mirrored by chance.

    View number v is one such choice for every image, from a generator seeded with v alone: the
    same on every run, in any order of the images. Rows [N, F] stay as they are.
    `count`: views repeat after so many epochs (0: never), so that a teacher's logits can be kept.
    """

    x: Source
    reach: int = 1
    flip: bool = False
    count: int = 0

    def number(self, epoch: int) -> int:
        """Number of the view that an epoch, from 0, shows."""
        return epoch % self.count if self.count else epoch

    def take(self, view: int, chosen: Tensor) -> Tensor:
        """The chosen images [n, C, H, W] of a view, contiguous float32."""
        if self.x.ndim != 4:
            return self.x[chosen]
        generator = torch.Generator().manual_seed(view)
        n, _, height, width = self.x.shape
        steps = torch.randint(0, 2 * self.reach + 1, (2, n), generator=generator)[:, chosen, None]
        mirrored = torch.rand(n, generator=generator)[chosen, None] < (0.5 if self.flip else 0.0)
        rows = steps[0] + torch.arange(height)
        cols = steps[1] + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
        padded = torch.nn.functional.pad(self.x[chosen], (self.reach,) * 4)
        # Advanced indices around a slice put the channel axis last.
        moved = padded[torch.arange(len(chosen))[:, None, None], :, rows[:, :, None], cols[:, None]]
        return moved.permute(0, 3, 1, 2)


class Teacher(Protocol):
    """Gives a teacher's logits."""

    def __call__(self, view: int, chosen: Tensor) -> Tensor:
        """Logits [n, classes] for the chosen images of a view."""


class CachedLogits:
    """Logits of a teacher for whole views, computed when first asked for and cached in a folder.

    One file a view, float16 [N, classes]; the teacher, in eval mode, is all that they depend on.
    Raises FormatError for a file of another shape.
    """

    def __init__(self, teacher: nn.Module, images: Augmentation, folder: Path) -> None:
        self.teacher, self.images, self.folder = teacher, images, folder
        self._view, self._logits = -1, torch.empty(0)

    def __call__(self, view: int, chosen: Tensor) -> Tensor:
        """Logits float32 [n, classes]."""
        if view != self._view:
            self._view, self._logits = view, self._load(view)
        return self._logits[chosen]

    def _load(self, view: int) -> Tensor:
        file = self.folder / f"view{view}.npy"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            logits = self._compute(view).numpy().astype(np.float16)
            replace_file(file, lambda target: np.save(target, logits))
        kept = np.load(file)
        if kept.ndim != 2 or len(kept) != len(self.images.x):
            what = f"logits [{len(self.images.x)}, classes] in {file}"
            raise FormatError(need(what, kept.shape, "Delete the folder: it is of other data."))
        return torch.from_numpy(kept.astype(np.float32))

    @torch.no_grad()
    def _compute(self, view: int) -> Tensor:
        self.teacher.eval()
        numbers = torch.arange(len(self.images.x))
        parts = [
            self.teacher(self.images.take(view, part)) for part in torch.split(numbers, _BATCH)
        ]
        return torch.cat(parts)


def __getattr__(name: str) -> Any:
    return _moved.attribute(__name__, name)
