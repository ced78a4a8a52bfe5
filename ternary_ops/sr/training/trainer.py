# SPDX-License-Identifier: Apache-2.0
"""Training of super-resolution networks, float or quantized, on patches of images.

Defaults follow PAN's recipe (Zhao et al. 2020), in whose framework EFDN was trained: patches,
flips and quarter turns, Adam with betas 0.9 and 0.99, L1. EFDN's own schedule is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ternary_ops.errors import BadConfig, BadWeights, MissingExtra, UnsupportedShape, need
from ternary_ops.prune import Pruner
from ternary_ops.quantize import calibrate
from ternary_ops.sr.models.base import SRNetwork
from ternary_ops.sr.training.losses import EdgeLoss
from ternary_ops.train.checkpoint import Checkpoint, Stateful
from ternary_ops.train.rates import one_cycle

Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class SRCourse:
    """How long and how fast to train.

    patch: side in pixels of the small image. edges: weight of `EdgeLoss`, 0 for none. share: of the
    teacher's image in the L1 loss, where there is one. stages: weight of what the outputs of the
    trunk's blocks differ from those of a teacher of the same shape, in squares relative to the
    teacher's. average: decay of the exponential average of
    the weights, which is what training ends with; 0 for none. clip: largest norm of the gradient.
    bfloat16: as in study.fit.Course.
    """

    steps: int
    rate: float = 7e-4
    batch: int = 16
    patch: int = 48
    seed: int = 0
    edges: float = 0.0
    share: float = 0.5
    stages: float = 0.0
    average: float = 0.0
    warmup: float = 0.05
    clip: float = float("inf")
    bfloat16: bool = False


class Patches:
    """Random patches of images, small and large, turned and mirrored; a step's are always the same.

    images: uint8 RGB [H, W, 3]. Each is reduced once, as a whole, by Pillow's bicubic filter, which
    comes within 0.01 dB of MATLAB's on Set5.
    """

    def __init__(self, images: Images, scale: int, patch: int) -> None:
        """Raises UnsupportedShape for an image too small, MissingExtra without Pillow."""
        if not images:
            raise BadConfig(need("training needs images", "none", "Pass a list of arrays."))
        self.scale, self.patch = scale, patch
        self._pairs = [self._pair(image) for image in images]

    def _pair(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        least = self.patch * self.scale
        fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
        if not fits or image.shape[2] != 3 or min(image.shape[:2]) < least:
            got = getattr(image, "shape", type(image).__name__)
            do = "Leave it out, or take smaller patches."
            raise UnsupportedShape(need(f"images are uint8 RGB, at least {least} pixels", got, do))
        height, width = (side // self.scale * self.scale for side in image.shape[:2])
        large = np.ascontiguousarray(image[:height, :width])
        return _planes(reduced(large, self.scale)), _planes(large)

    def batch(self, step: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Small [N, 3, p, p] and large [N, 3, scale*p, scale*p], float32 in 0..1."""
        rng = np.random.default_rng((seed, step))
        pairs = [self._cut(rng) for _ in range(count)]
        small, large = (torch.stack(part).float() / 255 for part in zip(*pairs, strict=True))
        return small, large

    def _cut(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        small, large = self._pairs[rng.integers(len(self._pairs))]
        p, s = self.patch, self.scale
        top, left = (int(rng.integers(side - p + 1)) for side in small.shape[1:])
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        cuts = (
            small[:, top : top + p, left : left + p],
            large[:, s * top : s * (top + p), s * left : s * (left + p)],
        )
        turned = [torch.rot90(c.flip(2) if mirrored else c, turns, (1, 2)) for c in cuts]
        return turned[0], turned[1]


def reduced(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """The image `scale` times smaller, bicubic, [H, W, 3] with sides that are multiples of it."""
    try:
        from PIL import Image
    except ImportError as error:
        do = "pip install 'ternary-ops[sr]'"
        raise MissingExtra(need("reducing images needs Pillow", "none installed", do)) from error
    size = image.shape[1] // scale, image.shape[0] // scale
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _planes(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0)))


def train(
    network: SRNetwork,
    patches: Patches,
    course: SRCourse,
    *,
    teacher: SRNetwork | None = None,
    pruner: Pruner | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    calibration: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Train in place; the network ends in eval mode.

    loss = L1(made, wanted) + edges * EdgeLoss + stages * difference (SRCourse), where L1 weighs the
    teacher's image with `share`. teacher: of the same scale, in eval mode. pruner, with its
    optimizer: for a quantized network; when it freezes the codes, activation ranges are set from
    `calibration` [N, 3, H, W] in 0..1.
    With a checkpoint a run that was cut off goes on with the same bits. Raises BadConfig for a
    teacher of another scale, BadWeights when the loss is not finite.
    """
    _check(network, course, teacher)
    if optimizer is None:
        optimizer = torch.optim.Adam(network.parameters(), course.rate, (0.9, 0.99))
    rate = one_cycle(optimizer, course.rate, course.steps, course.warmup, momentum=False)
    parts: dict[str, Stateful] = {"network": network, "optimizer": optimizer, "rate": rate}
    if pruner is not None:
        parts["pruner"] = pruner
    average = None
    if course.average:
        decayed = get_ema_multi_avg_fn(course.average)  # type: ignore[no-untyped-call]
        average = AveragedModel(network, multi_avg_fn=decayed, use_buffers=True)
        parts["average"] = average
    edges = EdgeLoss() if course.edges else None
    with ExitStack() as stack:
        stages = None
        if course.stages and teacher is not None:
            stages = stack.enter_context(closing(_Stages(network, teacher)))
        done = checkpoint.load(parts) if checkpoint is not None else 0
        for _ in range(done):
            tick()
        network.train()
        while done < course.steps:
            small, large = patches.batch(done, course.batch, course.seed)
            with torch.autocast("cpu", torch.bfloat16, enabled=course.bfloat16):
                value = _loss(network, teacher, edges, course, small, large)
                if stages is not None:
                    value = value + course.stages * stages.difference()
            _step(network, optimizer, value, course, done)
            if pruner is not None:
                before = pruner.phase
                pruner.step()
                if calibration is not None and before != pruner.phase == "frozen":
                    calibrate(network, [calibration * network.input_range])
                    network.train()
            if average is not None:
                average.update_parameters(network)
            rate.step()
            done += 1
            if checkpoint is not None:
                checkpoint.save(done, parts, now=done == course.steps)
            tick()
    if average is not None:
        network.load_state_dict(average.module.state_dict())
        if pruner is not None:
            pruner.step(skipped=True)  # averaged weights decay towards zeros: write them
    network.eval()


class _Stages:
    """Outputs of the blocks of two networks' trunks, as the last images left them."""

    def __init__(self, network: SRNetwork, teacher: SRNetwork) -> None:
        self._seen: list[dict[int, Tensor]] = [{}, {}]
        self._handles = []
        for seen, source in zip(self._seen, (network, teacher), strict=True):
            for index, block in enumerate(cast(nn.ModuleList, getattr(source, source.trunk))):
                keep = partial(_keep, seen, index)
                self._handles.append(block.register_forward_hook(keep))

    def difference(self) -> Tensor:
        """Mean over the blocks of |made - taught|^2 / |taught|^2."""
        pairs = [(self._seen[0][i].float(), taught.float()) for i, taught in self._seen[1].items()]
        for seen in self._seen:
            seen.clear()  # whoever copies the network meanwhile copies its hooks
        parts = [(a - b).square().sum() / b.square().sum().clamp_min(1e-30) for a, b in pairs]
        return torch.stack(parts).mean()

    def close(self) -> None:
        """Stop looking."""
        for handle in self._handles:
            handle.remove()


def _keep(seen: dict[int, Tensor], index: int, block: nn.Module, given: Any, made: Tensor) -> None:
    seen[index] = made


def _check(network: SRNetwork, course: SRCourse, teacher: SRNetwork | None) -> None:
    if teacher is not None and teacher.scale != network.scale:
        got, do = f"{teacher.scale} and {network.scale}", "Pass another."
        raise BadConfig(need("teacher and network have one scale", got, do))
    if course.stages and (teacher is None or not _alike(network, teacher)):
        got = "none" if teacher is None else f"{teacher.family} for {network.family}"
        do = "Pass one, or set stages=0."
        raise BadConfig(need("stages needs a teacher of the network's shape", got, do))


def _alike(network: SRNetwork, teacher: SRNetwork) -> bool:
    if type(network) is not type(teacher) or not network.trunk:
        return False
    shapes = [
        [p.shape for name, p in sorted(n.named_parameters()) if name.endswith("weight")]
        for n in (network, teacher)
    ]
    return shapes[0] == shapes[1]


def _loss(
    network: SRNetwork,
    teacher: SRNetwork | None,
    edges: EdgeLoss | None,
    course: SRCourse,
    small: Tensor,
    large: Tensor,
) -> Tensor:
    made: Tensor = (network(small * network.input_range) / network.input_range).float()
    value = (made - large).abs().mean()
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(small * teacher.input_range).float() / teacher.input_range
        value = torch.lerp(value, (made - taught).abs().mean(), course.share)
    if edges is not None:
        value = value + course.edges * cast(Tensor, edges(made, large))
    return value


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    value: Tensor,
    course: SRCourse,
    done: int,
) -> None:
    if not bool(value.isfinite()):
        do = "Lower the rate, clip gradients, or look for NaN in the weights."
        raise BadWeights(
            need("training needs a finite loss", f"{value.item()}, step {done + 1}", do)
        )
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    if course.clip < float("inf"):
        nn.utils.clip_grad_norm_(network.parameters(), course.clip)
    optimizer.step()


def validate(
    run: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    pairs: Sequence[tuple[Any, Any]],
    scale: int,
) -> tuple[float, float]:
    """Mean PSNR and SSIM (metrics.quality) over pairs of a small and a large uint8 image."""
    from ternary_ops.sr.training.metrics import quality

    found = [quality(run(small), large, scale) for small, large in pairs]
    return float(np.mean([q.psnr for q in found])), float(np.mean([q.ssim for q in found]))
