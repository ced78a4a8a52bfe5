# SPDX-License-Identifier: Apache-2.0
"""BSDS photos of half the size behind a hidden degradation: data, runs and scores."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _semi_runs import Table
from _sr import Image, pairs, training_images
from torch import nn

from ternary_ops import sr
from ternary_ops.sr import hosts
from ternary_ops.sr.training.metrics import quality
from ternary_ops.sr.training.patches import reduced
from ternary_ops.train.checkpoint import Checkpoint

SCALE, PATCH = 2, 32
UNPAIRED = 50  # photos of each kind
METHODS = ("bicubic", "host", "semi", "pseudo", "box")
HOST = hosts.HostWeights(pixel=1.0, perceptual=1.0, adversarial=1e-3)
SEMI = sr.SemiWeights(cycle_low=0.1, levels=255)
_TEST_SEED = 99


def degraded(image: Image, seed: int) -> Image:
    """Half as large, blurred, noisy, a JPEG: how much of each is random."""
    from PIL import Image as pillow
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng((seed, 5))
    blur, noise, jpeg = rng.uniform(0.2, 1.2), rng.uniform(0, 5), int(rng.integers(60, 96))
    small = reduced(image, SCALE).astype(np.float64)
    small = gaussian_filter(small, (blur, blur, 0)) + rng.normal(0, noise, small.shape)
    file = io.BytesIO()
    pillow.fromarray(np.clip(np.rint(small), 0, 255).astype(np.uint8)).save(
        file, "jpeg", quality=jpeg
    )
    return np.array(pillow.open(file))


def _even(image: Image) -> Image:
    height, width = (side // SCALE * SCALE for side in image.shape[:2])
    return image[:height, :width]


def streams(count: int, seed: int) -> sr.Streams:
    """Photos by number; those held out are of another set."""
    photos = [_even(image) for image in training_images()]
    order = np.random.default_rng(seed).permutation(len(photos))
    low, high, known = np.split(order, (UNPAIRED, 2 * UNPAIRED))
    known = known[:count]
    return sr.Streams(
        sr.PairedPatches(
            [(degraded(photos[i], i), photos[i]) for i in known], SCALE, PATCH, ids=_names(known)
        ),
        sr.UnpairedPatches([degraded(photos[i], i) for i in low], PATCH, ids=_names(low)),
        sr.UnpairedPatches([photos[i] for i in high], SCALE * PATCH, ids=_names(high)),
        held_out=[f"BSD100 {i}" for i in range(100)],
        batch=4,
    )


def _names(numbers: Any) -> list[str]:
    return [f"BSDS {i}" for i in numbers]


def tests() -> Iterator[tuple[Image, Image]]:
    """Small and large photos of BSD100."""
    for number, (_, large) in enumerate(pairs("BSD100", SCALE)):
        yield degraded(large, _TEST_SEED + number), large


def scores(run: Any) -> dict[str, float]:
    """PSNR and SSIM of luma; MDSI (0 is best) and HaarPSI (1 is best) of RGB. Needs piq."""
    import piq

    found = []
    for small, large in tests():
        made = run(small)
        both = [
            torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None] / 255
            for x in (made, large)
        ]
        q = quality(made, large, SCALE)
        found.append([q.psnr, q.ssim, float(piq.mdsi(*both)), float(piq.haarpsi(*both))])
    return dict(zip(("psnr", "ssim", "mdsi", "haarpsi"), np.mean(found, 0), strict=True))


def run_one(count: int, seed: int, method: str, folder: Path, steps: int) -> dict[str, Any]:
    """Train one method and score it."""
    if method == "bicubic":
        from ternary_ops.sr.inference.upscaling import bicubic

        return {**scores(lambda image: bicubic(image, SCALE)), "minutes": 0.0}
    torch.manual_seed(seed)
    generator = sr.MSRResNet(SCALE, 32, 4)
    host = hosts.SRGAN(generator, hosts.PatchGAN(3, 32, 3), HOST)
    known = method == "box"
    degrader: nn.Module | None = None if known else sr.Degrader(SCALE, 3, width=32, blocks=2)
    weights = {"host": sr.SemiWeights.off(), "pseudo": sr.SemiWeights.pseudo_pairs()}
    semi = sr.SemiSR(
        host,
        degrader,
        weights.get(method, SEMI),
        streams=streams(count, seed),
        degradation=(lambda large: sr.box_down(large, SCALE)) if known else None,
    )
    start, name = time.perf_counter(), f"images-{count}-{seed}-{method}"
    file = folder / f"{name}.checkpoint"
    config = hosts.GANTrainConfig(steps, 5e-4, 8, seed, average=0.999, bfloat16=True)
    semi.train(config, checkpoint=Checkpoint(file, {"run": name, "steps": steps}, seconds=60))
    file.unlink()
    upscaler = sr.Upscaler(generator)
    found = scores(lambda image: sr.upscale(image, upscaler))
    return {**found, "minutes": (time.perf_counter() - start) / 60}


def sweep(options: argparse.Namespace, table: Table) -> None:
    """Every run that is not in the table."""
    for seed in range(options.seeds):
        for count in options.pairs:
            for method in METHODS:
                if method not in ("bicubic", *options.methods):
                    continue
                if (count, seed, method) not in table.rows:
                    found = run_one(count, seed, method, options.folder, options.steps)
                    table.add((count, seed, method), {**found, "steps": options.steps})
                    print(count, seed, method, table.rows[count, seed, method], flush=True)
