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

from ternary_ops._moved import renamed_arguments
from ternary_ops.errors import BadConfig, need
from ternary_ops.prune import Pruner
from ternary_ops.quantize.calibration_hook import CalibrateAtFreeze
from ternary_ops.sr.models.base import SRNetwork
from ternary_ops.sr.training.losses import EdgeLoss
from ternary_ops.sr.training.patches import PairedPatches
from ternary_ops.train.average import WeightAverage
from ternary_ops.train.checkpoint import Checkpoint
from ternary_ops.train.loop import Hook, TrainLoop
from ternary_ops.train.rates import one_cycle


@dataclass(frozen=True)
class SRTrainConfig:
    """Steps, peak learning rate, loss and the rest of a one-cycle training.

    patch: side in pixels of the small image. edges: weight of `EdgeLoss`, 0 for none. share: weight
    of the teacher's image in the L1 loss, where there is a teacher. stages: weight of the
    difference between the outputs of the trunk's blocks and those of a teacher of the same shape,
    in squares relative to the teacher's. average: decay of the exponential moving average of the
    weights, with which training ends; 0 for none. clip: largest norm of the gradient. bfloat16: as
    in train.config.TrainConfig.
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


@renamed_arguments(tick="on_step", course="config")
def train(
    network: SRNetwork,
    patches: PairedPatches,
    config: SRTrainConfig,
    *,
    teacher: SRNetwork | None = None,
    pruner: Pruner | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    calibration: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Train in place; the network ends in eval mode.

    loss = L1(output, target) + edges * EdgeLoss + stages * difference (SRTrainConfig); L1 is to the
    teacher's image too, weighted by `share`. teacher: of the same scale, in eval mode. pruner, with
    its optimizer: for a quantized network; when it freezes the codes, activation ranges are set
    from `calibration` [N, C, H, W] in 0..1. on_step: called after each step.
    With a checkpoint a run that was cut off goes on with the same bits. Raises BadConfig for a
    teacher of another scale, BadWeights when the loss is not finite.
    """
    _check(network, config, teacher)
    if optimizer is None:
        optimizer = torch.optim.Adam(network.parameters(), config.rate, (0.9, 0.99))
    rate = one_cycle(optimizer, config.rate, config.steps, config.warmup, momentum=False)
    hooks: list[Hook] = []
    if calibration is not None:
        hooks.append(CalibrateAtFreeze(calibration * network.input_range))
    if config.average:
        hooks.append(WeightAverage(network, config.average))
    loop = TrainLoop(
        *(network, optimizer, rate, config.steps),
        pruner=pruner,
        clip=config.clip,
        bfloat16=config.bfloat16,
        checkpoint=checkpoint,
        hooks=hooks,
        on_step=on_step,
    )
    with ExitStack() as stack:
        stages = None
        if config.stages and teacher is not None:
            stages = stack.enter_context(closing(_Stages(network, teacher)))
        loop.run(
            lambda step: patches.batch(step, config.batch, config.seed),
            _Loss(network, teacher, stages, config),
        )


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
        """Mean over the blocks of |made - theirs|^2 / |theirs|^2."""
        pairs = [(self._seen[0][i].float(), theirs.float()) for i, theirs in self._seen[1].items()]
        for seen in self._seen:
            seen.clear()  # copies of the network made meanwhile copy its hooks
        parts = [(a - b).square().sum() / b.square().sum().clamp_min(1e-30) for a, b in pairs]
        return torch.stack(parts).mean()

    def close(self) -> None:
        """Stop looking."""
        for handle in self._handles:
            handle.remove()


def _keep(seen: dict[int, Tensor], index: int, block: nn.Module, given: Any, made: Tensor) -> None:
    seen[index] = made


def _check(network: SRNetwork, config: SRTrainConfig, teacher: SRNetwork | None) -> None:
    if teacher is not None and teacher.scale != network.scale:
        got, do = f"{teacher.scale} and {network.scale}", "Pass another."
        raise BadConfig(need("a teacher and a network of one scale", got, do))
    if config.stages and (teacher is None or not _alike(network, teacher)):
        got = "none" if teacher is None else f"{teacher.family} for {network.family}"
        do = "Pass one, or set stages=0."
        raise BadConfig(need("a teacher of the network's shape for stages", got, do))


def _alike(network: SRNetwork, teacher: SRNetwork) -> bool:
    if type(network) is not type(teacher) or not network.trunk:
        return False
    shapes = [
        [p.shape for name, p in sorted(n.named_parameters()) if name.endswith("weight")]
        for n in (network, teacher)
    ]
    return shapes[0] == shapes[1]


class _Loss:
    """The loss of a batch, small and large images in 0..1."""

    def __init__(
        self,
        network: SRNetwork,
        teacher: SRNetwork | None,
        stages: _Stages | None,
        config: SRTrainConfig,
    ) -> None:
        self.input_range, self.config = network.input_range, config
        self.teacher, self.stages = teacher, stages
        self.edges = EdgeLoss() if config.edges else None

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        small, large = batch
        made: Tensor = (model(small * self.input_range) / self.input_range).float()
        value = (made - large).abs().mean()
        teacher = self.teacher
        if teacher is not None:
            with torch.no_grad():
                theirs = teacher(small * teacher.input_range).float() / teacher.input_range
            value = torch.lerp(value, (made - theirs).abs().mean(), self.config.share)
        if self.edges is not None:
            value = value + self.config.edges * cast(Tensor, self.edges(made, large))
        if self.stages is not None:
            value = value + self.config.stages * self.stages.difference()
        return value


def validate(
    run: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    pairs: Sequence[tuple[Any, Any]],
    scale: int,
) -> tuple[float, float]:
    """Mean PSNR and SSIM (metrics.quality) over pairs of a small and a large uint8 image."""
    from ternary_ops.sr.training.metrics import quality

    found = [quality(run(small), large, scale) for small, large in pairs]
    return float(np.mean([q.psnr for q in found])), float(np.mean([q.ssim for q in found]))
