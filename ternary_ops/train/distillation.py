# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation: the loss by which a compressed network learns from the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops._moved import renamed_arguments
from ternary_ops.errors import BadConfig, UnsupportedModel, UnsupportedShape, check_type, need
from ternary_ops.graph.signature import pick
from ternary_ops.graph.wrappers import unwrap


class Distillation:
    """Loss of a classifier beside its teacher: labels, softened logits and, if asked, features and
    tokens.

    loss = (1 - share) * CE(logits, y) + share * T^2 * KL(softmax(teacher / T) || softmax(logits /
    T)) + feature_share * mean over pairs of |f / |f| - g / |g||^2
    + token_share * mean over layers of the mean of (n(t) - n(u))^2.

    The logit term is that of Hinton et al. 2015 (arXiv 1503.02531), with T^2 so that its gradient
    keeps its size when T changes; the feature term compares spatial attention, the mean square over
    channels, as Zagoruyko and Komodakis 2017 (arXiv 1612.03928), so that student and teacher may
    differ in width. The token term compares what the layers of one name make in a network and in
    its dense parent, token by token: t of the student, u of the teacher, n makes mean 0 and
    variance 1 over the channels of each, so that no layer counts more for its size.

        distill = Distillation(dense, features={"layer2": "layer2"})
        distill = Distillation(dense, tokens="stages.*.blocks.?")
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
        tokens: str | Sequence[str] = (),
        token_share: float = 1.0,
    ) -> None:
        """teacher: None where the caller passes its logits (`teacher_logits`), or for labels alone.

        features: layer of the student -> layer of the teacher, outputs [N, C, H, W] of equal H, W.
        tokens: globs on names of modules of the teacher, which the student has as well; outputs
        [N, L, C] or [N, H, W, C] of equal shapes.

        Raises BadConfig on a temperature <= 0, a share outside 0..1, features or tokens without a
        teacher, or a glob that matches none of its modules; UnsupportedModel for a layer that the
        teacher does not have.
        """
        numbers = {"temperature": temperature, "share": share, "label_smoothing": label_smoothing}
        numbers |= {"feature_share": feature_share, "token_share": token_share}
        for name, value in numbers.items():
            check_type(name, value, (int, float), "Pass a number.")
        teacher = None if teacher is None else unwrap(teacher)
        if not (temperature > 0 and 0 <= share <= 1 and 0 <= label_smoothing < 1):
            got = f"{temperature}, {share}, {label_smoothing}"
            what = "temperature > 0, 0 <= share <= 1 and 0 <= label_smoothing < 1"
            raise BadConfig(need(what, got, "Correct it."))
        self.features = dict(features or {})
        globs = [tokens] if isinstance(tokens, str) else list(tokens)
        if (self.features or globs) and teacher is None:
            do = "Pass teacher=, or leave features and tokens out."
            raise BadConfig(need("a teacher for features and tokens", "teacher=None", do))
        self.tokens = [] if teacher is None else _matching(teacher, globs)
        self.teacher = teacher
        self.temperature = temperature
        self.share = share
        self.label_smoothing = label_smoothing
        self.feature_share = feature_share
        self.token_share = token_share
        if teacher is not None:
            for name in self.features.values():
                _layer(teacher, name, "teacher")

    @renamed_arguments(taught="teacher_logits")
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, teacher_logits: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar, of one batch: x as the network takes it, y int64 [N].

        teacher_logits: [N, classes] for exactly this x, if they are known already.
        Raises UnsupportedShape where logits, features or tokens of the two do not fit each other,
        UnsupportedModel for a layer that the student does not have or does not run.
        """
        with _Outputs(unwrap(model), [*self.features, *self.tokens], "student") as ours:
            logits = pick(model(x))
        theirs: dict[str, Tensor] = {}
        inner = bool(self.features or self.tokens)
        if self.teacher is not None and (teacher_logits is None or inner):
            teacher_logits, theirs = self._ask(x)
        loss = self.logits_loss(logits, y, teacher_logits)
        if self.features:
            pairs = [_attention_gap(ours[a], theirs[b], a, b) for a, b in self.features.items()]
            loss = loss + self.feature_share * torch.stack(pairs).mean()
        if self.tokens:
            gaps = [_token_gap(ours[name], theirs[name], name) for name in self.tokens]
            loss = loss + self.token_share * torch.stack(gaps).mean()
        return loss

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
        wanted = [*self.features.values(), *self.tokens]
        with torch.no_grad(), _Outputs(teacher, wanted, "teacher") as theirs:
            teacher.eval()
            logits = pick(teacher(x))
        return logits, theirs


class _Outputs:
    """Collects what the named layers return while inside; all of them must have run."""

    def __init__(self, model: nn.Module, names: list[str], who: str) -> None:
        self.who = who
        self.layers = {name: _layer(model, name, who) for name in names}
        self.found: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> dict[str, Tensor]:
        for name, layer in self.layers.items():

            def keep(module: nn.Module, given: Any, output: Tensor, name: str = name) -> None:
                self.found[name] = pick(output)

            self.handles.append(layer.register_forward_hook(keep))
        return self.found

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        idle = [name for name in self.layers if name not in self.found]
        if idle and not any(error):
            do = "Leave them out."
            raise UnsupportedModel(need(f"layers that the {self.who} runs", ", ".join(idle), do))


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


def _matching(teacher: nn.Module, globs: list[str]) -> list[str]:
    """Names of the teacher's modules that globs match."""
    names = [name for name, _ in teacher.named_modules() if name]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            known = ", ".join(n for n, _ in teacher.named_children())
            what = f"globs in tokens that match modules of the teacher ({known}, ...)"
            raise BadConfig(need(what, repr(glob), "Correct it or leave it out."))
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def _token_gap(ours: Tensor, theirs: Tensor, name: str) -> Tensor:
    """Mean squared difference of tokens, each normalized over its channels, which lie last."""
    if ours.ndim < 3 or ours.shape != theirs.shape:
        got = f"{name} {list(ours.shape)} and {list(theirs.shape)}"
        do = "Name layers that return [N, L, C] or [N, H, W, C], as wide in both networks."
        raise UnsupportedShape(need("equal tokens of student and teacher", got, do))
    a, b = (F.layer_norm(value.float(), value.shape[-1:]) for value in (ours, theirs))
    return F.mse_loss(a, b)


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
