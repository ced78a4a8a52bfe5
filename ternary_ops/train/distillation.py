# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: the loss by which a compressed network learns from the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops._moved import renamed_arguments
from ternary_ops.errors import BadConfig, UnsupportedModel, UnsupportedShape, check_type, need
from ternary_ops.graph.signature import pick
from ternary_ops.graph.wrappers import unwrap


class Distillation:
    """Loss of a classifier beside its teacher: labels, softened logits and, if asked, features.

    loss = (1 - share) * CE(logits, y) + share * T^2 * KL(softmax(teacher / T) || softmax(logits /
    T)) + feature_share * mean over pairs of |f / |f| - g / |g||^2.

    The logit term is that of Hinton et al. 2015 (arXiv 1503.02531), with T^2 so that its gradient
    keeps its size when T changes; the feature term compares spatial attention, the mean square over
    channels, as Zagoruyko and Komodakis 2017 (arXiv 1612.03928), so that student and teacher may
    differ in width.

        distill = Distillation(dense, features={"layer2": "layer2"})
        loss = distill(model, x, y)

    The teacher runs in eval mode and without gradient. Called on a DistributedDataParallel wrapper,
    names of layers are those of the wrapped network.
    """

    def __init__(
        self,
        teacher: nn.Module | None = None,
        temperature: float = 4.0,
        share: float = 0.7,
        label_smoothing: float = 0.0,
        features: Mapping[str, str] | None = None,
        feature_share: float = 100.0,
    ) -> None:
        """teacher: None where the caller passes its logits (`teacher_logits`), or for labels alone.

        features: layer of the student -> layer of the teacher, outputs [N, C, H, W] of equal H, W.

        Raises BadConfig on a temperature <= 0, a share outside 0..1, or features without a teacher;
        UnsupportedModel for a layer that the teacher does not have.
        """
        numbers = {"temperature": temperature, "share": share, "label_smoothing": label_smoothing}
        for name, value in {**numbers, "feature_share": feature_share}.items():
            check_type(name, value, (int, float), "Pass a number.")
        teacher = None if teacher is None else unwrap(teacher)
        if not (temperature > 0 and 0 <= share <= 1 and 0 <= label_smoothing < 1):
            got = f"{temperature}, {share}, {label_smoothing}"
            what = "temperature > 0, 0 <= share <= 1 and 0 <= label_smoothing < 1"
            raise BadConfig(need(what, got, "Correct it."))
        self.features = dict(features or {})
        if self.features and teacher is None:
            do = "Pass teacher=, or leave features out."
            raise BadConfig(need("a teacher for features", "teacher=None", do))
        self.teacher = teacher
        self.temperature = temperature
        self.share = share
        self.label_smoothing = label_smoothing
        self.feature_share = feature_share
        if teacher is not None:
            for name in self.features.values():
                _layer(teacher, name, "teacher")

    @renamed_arguments(taught="teacher_logits")
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, teacher_logits: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar, of one batch: x as the network takes it, y int64 [N].

        teacher_logits: [N, classes] for exactly this x, if they are known already.
        Raises UnsupportedShape where logits or features of the two do not fit each other.
        """
        with _Outputs(unwrap(model), list(self.features), "student") as ours:
            logits = pick(model(x))
        theirs: dict[str, Tensor] = {}
        if self.teacher is not None and (teacher_logits is None or self.features):
            teacher_logits, theirs = self._ask(x)
        loss = self.logits_loss(logits, y, teacher_logits)
        if not self.features:
            return loss
        pairs = [_attention_gap(ours[a], theirs[b], a, b) for a, b in self.features.items()]
        return loss + self.feature_share * torch.stack(pairs).mean()

    def logits_loss(self, logits: Tensor, y: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """The first two terms, from logits [N, classes] of the student and of the teacher.

        Logits of half precision, as under autocast, are compared in float32.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        labels = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        if teacher_logits is None:
            return labels
        if teacher_logits.shape != logits.shape:
            got = f"{list(logits.shape)} and {list(teacher_logits.shape)}"
            do = "Teach with a network of the same classes."
            raise UnsupportedShape(need("equal logits of student and teacher", got, do))
        t = self.temperature
        soft = F.kl_div(
            F.log_softmax(logits / t, 1),
            F.log_softmax(teacher_logits.to(logits) / t, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.share) * labels + self.share * t * t * soft

    def _ask(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        teacher = self.teacher
        if teacher is None:
            raise TypeError("no teacher")  # unreachable: the caller has checked
        with torch.no_grad(), _Outputs(teacher, list(self.features.values()), "teacher") as theirs:
            teacher.eval()
            logits = pick(teacher(x))
        return logits, theirs


class _Outputs:
    """Collects what the named layers return while inside."""

    def __init__(self, model: nn.Module, names: list[str], who: str) -> None:
        self.layers = {name: _layer(model, name, who) for name in names}
        self.found: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> dict[str, Tensor]:
        for name, layer in self.layers.items():

            def keep(module: nn.Module, given: Any, output: Tensor, name: str = name) -> None:
                self.found[name] = output

            self.handles.append(layer.register_forward_hook(keep))
        return self.found

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def _layer(model: nn.Module, name: str, who: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(n for n, _ in model.named_children())
        raise UnsupportedModel(
            need(
                f"features that name layers of the {who} ({names}, ...)", repr(name), "Correct it."
            )
        ) from error


def _attention_gap(ours: Tensor, theirs: Tensor, a: str, b: str) -> Tensor:
    """Squared distance of normalized attention maps, averaged over images and pixels."""
    maps = []
    for value in (ours, theirs):
        if value.ndim < 3 or value.shape[2:] != ours.shape[2:]:
            got = f"{a} {list(ours.shape)}, {b} {list(theirs.shape)}"
            do = "Pair layers of one resolution, [N, C, H, W]."
            raise UnsupportedShape(need("paired features of equal height and width", got, do))
        maps.append(F.normalize(value.square().mean(1).flatten(1), dim=1))
    return (maps[0] - maps[1]).square().mean()
