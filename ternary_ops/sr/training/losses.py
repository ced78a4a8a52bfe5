# SPDX-License-Identifier: Apache-2.0
"""Losses that look at edges: variance of gradients, patch by patch.

The edge-enhanced gradient loss of EFDN (Wang, arXiv 2204.08759) extends the gradient variance loss
of Abrahamyan et al. (ICASSP 2022) by a Laplacian. Its weights, patch size and distance are not
known from the paper: what stands here as default is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedShape, need

# Of red, green and blue, as the published gradient variance loss has them.
_GRAY = (0.2989, 0.5870, 0.1140)
_FILTERS = (
    ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1)),
    ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
)
_DISTANCES = ("mse", "norm")
_PADDINGS = {"edge": "replicate", "zeros": "constant"}


class EdgeLoss(nn.Module):
    """weights . (Lx, Ly, Ll): distance between the variances of two images' gradients.

    Gray images are filtered by Sobel x, Sobel y and a Laplacian; each map is cut into patches that
    do not overlap (what is left over is dropped); a term compares the unbiased variances of all
    patches. Where there are not three channels, each is filtered by itself. Images are in 0..1,
    float [N, C, H, W], H and W at least `patch`.

    distance: "mse", the mean of squared differences, or "norm", the Euclidean norm for each image,
    averaged. padding: "edge" repeats the border, so that brightness does not matter; "zeros" is
    what the published code does.
    """

    filters: Tensor
    gray: Tensor

    def __init__(
        self,
        weights: Sequence[float] = (0.2, 0.2, 0.1),
        patch: int = 8,
        distance: str = "mse",
        padding: str = "edge",
    ) -> None:
        """Raises BadConfig on arguments that mean nothing."""
        super().__init__()
        if len(weights) != 3 or min(weights) < 0 or patch < 2:
            got = f"{list(weights)} and {patch}"
            raise BadConfig(need("three weights >= 0 and a patch >= 2", got, "Correct them."))
        if distance not in _DISTANCES or padding not in _PADDINGS:
            what = f"distance in {_DISTANCES} and padding in {tuple(_PADDINGS)}"
            raise BadConfig(need(what, f"{distance!r}, {padding!r}", "Correct it."))
        self.weights, self.patch = tuple(weights), patch
        self.distance, self.padding = distance, padding
        self.register_buffer("filters", torch.tensor(_FILTERS).float()[:, None], persistent=False)
        self.register_buffer("gray", torch.tensor(_GRAY)[:, None, None], persistent=False)

    def forward(self, made: Tensor, truth: Tensor) -> Tensor:
        """A scalar."""
        total = made.new_zeros(())
        for weight, term in zip(self.weights, self.terms(made, truth), strict=True):
            total = total + weight * term
        return total

    def terms(self, made: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lx, Ly and Ll. Raises UnsupportedShape for images that do not fit."""
        fits = made.shape == truth.shape and made.ndim == 4
        if not fits or min(made.shape[2:]) < self.patch:
            got = f"{list(made.shape)} and {list(truth.shape)}"
            what = f"two images [N, C, H, W] of one size, at least {self.patch}"
            raise UnsupportedShape(need(what, got, "Crop them alike."))
        off = self._variances(made) - self._variances(truth)  # [images, 3, patches]
        if self.distance == "mse":
            x, y, lap = off.square().mean((0, 2))
        else:
            x, y, lap = off.square().sum(2).clamp_min(1e-24).sqrt().mean(0)
        return x, y, lap

    def _variances(self, images: Tensor) -> Tensor:
        if images.shape[1] == 3:
            gray = (images * self.gray).sum(1, keepdim=True)
        else:
            gray = images.flatten(0, 1)[:, None]
        padded = F.pad(gray, (1, 1, 1, 1), mode=_PADDINGS[self.padding])
        maps = F.conv2d(padded, self.filters)
        n, p = len(maps), self.patch
        patches = F.unfold(maps.flatten(0, 1)[:, None], p, stride=p)  # [3 N, p * p, patches]
        return patches.var(1).view(n, 3, -1)
