# SPDX-License-Identifier: Apache-2.0
"""A tiny semi-supervised task: fields of waves, their small forms hidden behind a tilted mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ternary_ops import sr
from ternary_ops.sr import hosts

SCALE, PATCH = 2, 8


def scene(seed: int, channels: int = 1) -> np.ndarray:  # type: ignore[type-arg]
    """float32 [24, 24, C]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:24, 0:24] / 24
    waves = [
        np.sin(rng.uniform(2, 14) * rows + rng.uniform(2, 14) * columns + rng.uniform(0, 6))
        for _ in range(channels)
    ]
    return (0.5 + 0.3 * np.stack(waves, 2)).astype(np.float32)


def hidden(large: Tensor) -> Tensor:
    """What no method is told: unequal weights, darker."""
    kernel = torch.tensor([[0.4, 0.1], [0.3, 0.1]])
    weight = kernel[None, None].expand(large.shape[1], 1, 2, 2)
    return F.conv2d(large, weight.contiguous(), stride=2, groups=large.shape[1]) + 0.03


def small_of(image: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    made = hidden(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    return made.permute(1, 2, 0).contiguous().numpy()


def streams(pairs: int = 6, channels: int = 1, **changes: Any) -> sr.Streams:
    """Scenes 0.. in pairs, 100.. small alone, 200.. large alone, 300.. held out."""
    numbers = [range(pairs), range(100, 108), range(200, 208)]
    images = [[scene(n, channels) for n in group] for group in numbers]
    given: dict[str, Any] = {
        "pairs": sr.PairedPatches(
            [(small_of(x), x) for x in images[0]], SCALE, PATCH, ids=numbers[0]
        ),
        "low": sr.UnpairedPatches([small_of(x) for x in images[1]], PATCH, ids=numbers[1]),
        "high": sr.UnpairedPatches(images[2], SCALE * PATCH, ids=numbers[2]),
        "held_out": range(300, 304),
        "batch": 2,
    }
    return sr.Streams(**(given | changes))


def host(
    kind: type[hosts.Host] = hosts.SRGAN, channels: int = 1, seed: int = 0, **changes: Any
) -> hosts.Host:
    """A generator of two blocks against a PatchGAN of one level."""
    torch.manual_seed(seed)
    generator = sr.MSRResNet(SCALE, 8, 1, channels)
    return kind(generator, hosts.PatchGAN(channels, 8, 1), **changes)


def degrader(channels: int = 1, seed: int = 1) -> sr.Degrader:
    torch.manual_seed(seed)
    return sr.Degrader(SCALE, channels, width=8, blocks=1)


def config(steps: int = 6, **changes: Any) -> hosts.GANTrainConfig:
    given: dict[str, Any] = {"rate": 2e-3, "batch": 2, "pixel_only": 0.3, "average": 0.9}
    return hosts.GANTrainConfig(steps, **(given | changes))


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
