# SPDX-License-Identifier: Apache-2.0
"""Pruner: raises the share of zeros step by step, and leads ternary layers through their phases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast
from weakref import ref

import numpy as np
import torch
from torch import nn

from ternary_ops.errors import (
    BadConfig,
    BadWeights,
    FormatError,
    UnsupportedModel,
    check_type,
    need,
)
from ternary_ops.graph.wrappers import plain_name, unwrap
from ternary_ops.nn.pruning_progress import Progress
from ternary_ops.prune.schedules import Schedule, get_schedule
from ternary_ops.prune.scores import Criterion
from ternary_ops.prune.targets import QuantizedLayer, find_targets, is_quantized, make_groups

_log = logging.getLogger(__name__)
# A ranking can cost as much as a small network's whole step; 200 of them follow a curve closely.
_UPDATES = 200


class SummaryRow(NamedTuple):
    """One pruned weight: its layer, the share of zero units asked for, and the share it has now."""

    name: str
    target: float
    measured: float


class Pruner:
    """Prune while training. Call step() after optimizer.step().

    Targets (zeros, pattern, scope) come from the configs that quantize_ stored on ternary layers,
    and on 8-bit layers whose config asks for zeros. For a plain float model they come from the
    arguments, and the masks stay in the Pruner.

    Under scope "global", layers of equal pattern and equal zeros are ranked together and counted
    as one total; under "layer" each is counted alone. The final count is round(zeros * units),
    exactly (one less where that would empty a layer).

    Phases of quantized layers, in steps done out of total_steps: real-valued until `ternary_at`,
    straight-through ternary until `freeze_at`, then frozen: masks and codes stay. The zeros reach
    their target at `end`, by default and at the latest at `freeze_at`, for any total_steps >= 1.
    With a schedule that makes the network dense again ("dsd"), none are left then.

    nested=True: a pruned weight is exactly 0.0 from then on, and so is its optimizer state.
    nested=False: weights may come back until the freeze. A pruned weight then has a latent value,
    kept here, by which it is ranked and to which the optimizer's change is added at every step.
    The weight in the model is 0.0 all the same; its optimizer state goes on; weight decay does not
    reach its latent value. Quantized layers pass no gradient to pruned weights in phase "float".

    At the freeze a warning names weights that never had a gradient: their layers do not run. Until
    then compile and pack_ refuse the quantized layers (`allow_unfinished`).

    Masks depend on the weights alone, so the ranks of a DistributedDataParallel run agree on them.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: str | Schedule = "one_cycle",
        total_steps: int | None = None,
        zeros: float | Mapping[str, float] | None = None,
        pattern: str | None = None,
        scope: str | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        ternary_at: float = 0.4,
        freeze_at: float = 0.9,
        start: float | None = None,
        end: float | None = None,
        every: int | None = None,
        nested: bool = True,
        min_nnz: int | None = None,
        normalize: bool = False,
        criterion: str = "magnitude",
        pull: float = 0.0,
        skip: str | Sequence[str] = (),
    ) -> None:
        """Plan the pruning; no weight changes before the first step().

        start, end: where the schedule begins (default: its own start) and ends, as shares of
            total_steps.
        every: steps between updates of the masks (default: so that there are at most 200).
        min_nnz: units that survive in every filter (default: 1 in depthwise layers, else 0).
        normalize: rank by scores relative to their layer's mean instead of plain ones.
        criterion: "magnitude", "movement", "taylor", "wanda" or "random", see prune.criteria; under
            "magnitude" and "wanda" pruned weights that may come back count with latent values.
        pull: lambda_q of PTQ's discrepancy-reducing decay, a reconstruction: after each optimizer
            step, latent weights w of ternary layers move by lr * lambda * (scale * code - w), where
            lambda grows linearly from 0 to `pull` at freeze_at. Needs the optimizer.
        skip: globs of layers to leave out.

        Raises BadConfig on a bad argument, UnsupportedModel when the model or the optimizer does
        not fit.
        """
        self.schedule = get_schedule(schedule)
        self.total_steps = _check_count("total_steps", total_steps)
        if min_nnz is not None and min_nnz < 0:
            raise BadConfig(need("min_nnz needs a count >= 0", min_nnz, "0 lets filters be empty."))
        if nested and self.schedule.last != 1.0:
            raise BadConfig(
                need(
                    f"schedule {self.schedule.name!r} gives pruned weights back: nested=False",
                    "nested=True",
                    "Pass nested=False, or a schedule that ends at its target.",
                )
            )
        times = {"ternary_at": ternary_at, "freeze_at": freeze_at, "start": start, "end": end}
        for name, value in {**times, "pull": pull}.items():
            if value is not None:
                check_type(name, value, (int, float), "Pass a share of total_steps.")
        if optimizer is not None:
            do = "Pass the optimizer itself, made after quantize_."
            check_type("optimizer", optimizer, torch.optim.Optimizer, do)
        _check_times(ternary_at, freeze_at, self.schedule.start if start is None else start, end)
        if not pull >= 0.0 or (pull and optimizer is None):
            got = f"pull={pull}, optimizer={'None' if optimizer is None else 'given'}"
            raise BadConfig(need("pull needs a factor >= 0 and an optimizer", got, "Pass both."))
        self.optimizer = optimizer
        self.criterion = Criterion(criterion, optimizer)
        self.pull = pull
        self.nested = nested
        self.normalize = normalize
        self._start = start
        self._freeze_step = max(1, round(freeze_at * self.total_steps))
        self._ternary_step = min(round(ternary_at * self.total_steps), self._freeze_step)
        end_step = self._freeze_step if end is None else max(1, round(end * self.total_steps))
        self._end_step = min(end_step, self._freeze_step)
        default_every = -(-self._end_step // _UPDATES)
        self.every = default_every if every is None else _check_count("every", every)
        model = unwrap(model)
        self._targets = find_targets(model, zeros, pattern, scope, skip, min_nnz)
        self._groups = make_groups(self._targets)
        self._layers = [m for m in model.modules() if is_quantized(m)]
        self._step = 0
        self._learning: set[str] = set()  # weights that ever had a gradient
        self._progress = Progress(0, self._freeze_step, self.total_steps)
        self._check_optimizer()
        for target in self._targets:
            self.criterion.watch(target.name, target.owners)
        if optimizer is not None:
            optimizer.register_step_pre_hook(_Guard(self))
        # A frozen layer may be about to resume by load_state_dict: its codes must last until then.
        self._set_phases([layer for layer in self._layers if layer.phase != "frozen"])
        for layer in self._layers:
            layer.pruning = self._progress

    @property
    def progress(self) -> float:
        """Share of the steps done."""
        return self._step / self.total_steps

    @property
    def phase(self) -> str:
        """Now: "float", "ternary" or "frozen". A plain model is never "ternary"."""
        if self._step >= self._freeze_step:
            return "frozen"
        return "ternary" if self._layers and self._step >= self._ternary_step else "float"

    @property
    def zeros(self) -> float:
        """Share of zero units over all planned layers, measured on the weights as they are."""
        units = sum(target.units for target in self._targets)
        return sum(target.empty_units() for target in self._targets) / units

    def summary(self) -> list[SummaryRow]:
        """One row per pruned weight; under scope "global" the target is that of its group."""
        return [
            SummaryRow(target.name, target.zeros, target.empty_units() / target.units)
            for target in self._targets
        ]

    @torch.no_grad()
    def step(self, skipped: bool = False) -> None:
        """Advance one step, update the masks when due, and zero what is pruned.

        skipped: GradScaler skipped the optimizer's step; the masks are applied, nothing advances.
        Beyond total_steps the masks are applied and nothing else happens.
        """
        advance = not skipped and self._step < self.total_steps
        before = self.phase
        regrow = not self.nested and before != "frozen"
        self._step += advance
        self._progress.step = self._step
        if advance and self.pull and self.phase != "frozen":
            self._pull()
        if regrow:
            for target in self._targets:
                target.absorb()
        if advance and self._due():
            share = self.schedule(
                self.progress, start=self._start, end=self._end_step / self.total_steps
            )
            for group in self._groups:
                group.update(share, self.nested, self.normalize, self.criterion)
        self._apply_masks()
        if regrow and self.phase == "frozen":
            for target in self._targets:
                target.latent = None
        if before != "frozen" and self.phase == "frozen" and self._learning:
            idle = [t.name for t in self._targets if t.name not in self._learning]
            if idle:
                _log.warning("pruned, but never run in training: %s", ", ".join(idle))
        if before == "float" and self.phase == "ternary":
            for layer in self._layers:
                layer.reset_poles()
        if advance:
            self._set_phases(self._layers)

    @torch.no_grad()
    def mask_(self, copied: nn.Module) -> None:
        """Write exact zeros into a copy of the network where this one is pruned now.

        For averages (EMA, SWA) of a plain float network, whose weights only come near to zero;
        copies of quantized layers know their masks. Raises UnsupportedModel, with nothing changed,
        where a pruned weight has no counterpart of its name and shape.
        """
        found: dict[str, nn.Parameter] = {}
        for target in self._targets:
            layer = dict(copied.named_modules()).get(target.name)
            weight = getattr(layer, "weight", None)
            if not isinstance(weight, nn.Parameter) or weight.shape != target.weight.shape:
                what = f"a copy of the network has a weight {target.name!r}"
                got = "none" if weight is None else list(weight.shape)
                do = "Pass the module itself, such as AveragedModel(...).module."
                raise UnsupportedModel(need(f"{what} {list(target.weight.shape)}", got, do))
            found[target.name] = weight
        for target in self._targets:
            weight = found[target.name]
            weight.masked_fill_(~target.mask.to(weight.device), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The step, the pruned units (one bit each) and, with regrowth, the latent weights."""
        return {
            "step": self._step,
            "plan": self._plan(),
            "pruned": [
                torch.from_numpy(np.packbits(group.pruned.cpu().numpy())) for group in self._groups
            ],
            "latent": {t.name: t.latent.clone() for t in self._targets if t.latent is not None},
            "scores": self.criterion.state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where state_dict was taken; load model and optimizer too, before or after this.

        FormatError, with nothing changed, when the state is of another model or other arguments.
        """
        state = _plain_names(state)
        self._check_state(state)
        self._step = self._progress.step = int(state["step"])
        for group, packed in zip(self._groups, state["pruned"], strict=True):
            bits = np.unpackbits(packed.cpu().numpy(), count=group.total).astype(bool)
            group.set_pruned(torch.from_numpy(bits).to(group.pruned.device))
            group.share_masks()
        for target in self._targets:
            latent = state["latent"].get(target.name)
            target.latent = None if latent is None else latent.to(target.weight).clone()
        self.criterion.restore(state["scores"])
        self._set_phases(self._layers)

    def before_step(self) -> None:
        """What the hook on the optimizer calls: gradients are checked and, if scored, seen.

        Raises BadWeights for a gradient that is not finite, before any weight has changed.
        """
        for target in self._targets:
            grad = target.weight.grad
            if grad is not None:
                self._learning.add(target.name)
            if grad is not None and not bool(torch.isfinite(grad.sum())):
                raise BadWeights(
                    need(
                        f"training needs finite gradients, step {self._step + 1}",
                        f"NaN or infinity in that of {target.name}",
                        "No weight has changed. Lower the learning rate or clip gradients.",
                    )
                )
            if self._step < self._end_step:
                self.criterion.observe(target.name, target.weight)

    def _pull(self) -> None:
        """Latent weights of ternary layers move towards their ternary image."""
        rates = {
            id(p): float(group["lr"])
            for group in cast(torch.optim.Optimizer, self.optimizer).param_groups
            for p in group["params"]
        }
        factor = self.pull * min(1.0, self._step / self._freeze_step)
        for target in self._targets:
            layer = target.owners[0]
            if is_quantized(layer) and layer.config.weights == "ternary":
                target.weight.lerp_(layer.image(), rates[id(target.weight)] * factor)

    def _due(self) -> bool:
        ends = self._step in (self._end_step, self._freeze_step)
        return ends or (self._step < self._freeze_step and self._step % self.every == 0)

    def _apply_masks(self) -> None:
        for group in self._groups:
            if group.count or not self.nested:
                for target in group.targets:
                    target.apply_mask(self.optimizer)

    def _set_phases(self, layers: Sequence[QuantizedLayer]) -> None:
        for layer in layers:
            if layer.phase != self.phase:
                layer.phase = self.phase

    def _plan(self) -> dict[str, Any]:
        return {
            "schedule": self.schedule.name,
            "total_steps": self.total_steps,
            "steps": [self._start, self._end_step, self._ternary_step, self._freeze_step],
            "every": self.every,
            "nested": self.nested,
            "normalize": self.normalize,
            "criterion": self.criterion.name,
            "pull": self.pull,
            "layers": [
                [t.name, list(t.weight.shape), t.pattern.name, t.scope, t.zeros, t.min_nnz]
                for t in self._targets
            ],
        }

    def _check_optimizer(self) -> None:
        if self.optimizer is None:
            return
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        missing = [t.name for t in self._targets if id(t.weight) not in known]
        if missing:
            raise UnsupportedModel(
                need(
                    "the optimizer must hold the weights that are pruned",
                    f"none of it for {', '.join(missing)}",
                    "Make it after quantize_ from model.parameters(), or leave it out of Pruner.",
                )
            )

    def _check_state(self, state: Mapping[str, Any]) -> None:
        here = self._plan()
        try:
            there = {key: state["plan"].get(key) for key in here}
            bits = [packed.numel() for packed in state["pruned"]]
            complete = bits == [-(-group.total // 8) for group in self._groups]
            complete &= isinstance(state["step"], int)
            complete &= all(isinstance(state[key], Mapping) for key in ("latent", "scores"))
        except (KeyError, AttributeError, TypeError) as error:
            raise FormatError(
                need("a Pruner's state", repr(error), "Pass what Pruner.state_dict() returned.")
            ) from error
        differ = [
            f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]
        ]
        if differ or not complete:
            raise FormatError(
                need(
                    "the state must come from a Pruner of the same model and arguments",
                    "; ".join(differ) or "masks of another size",
                    "Build both with the same arguments.",
                )
            )


def _plain_names(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state with layers named as in the network itself: earlier versions wrote the names that
    they have in DataParallel and other wrappers.
    """
    plan = state.get("plan") if isinstance(state, Mapping) else None
    rows = plan.get("layers") if isinstance(plan, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) and row for row in rows):
        return state  # the check says what is wrong
    named = {
        key: {plain_name(str(name)): value for name, value in state[key].items()}
        for key in ("latent", "scores")
        if isinstance(state.get(key), Mapping)
    }
    layers = [[plain_name(str(row[0])), *row[1:]] for row in rows]
    return {**state, "plan": {**cast("dict[str, Any]", plan), "layers": layers}, **named}


class _Guard:
    """The hook on the optimizer; it goes idle with its Pruner."""

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = ref(pruner)

    def __call__(self, *step: Any) -> None:
        pruner = self.pruner()
        if pruner is not None:
            pruner.before_step()


def _check_count(name: str, value: int | None) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise BadConfig(need(f"{name} needs an integer >= 1", repr(value), "Count optimizer steps."))


def _check_times(ternary_at: float, freeze_at: float, start: float, end: float | None) -> None:
    last = freeze_at if end is None else end
    if 0.0 <= ternary_at <= freeze_at <= 1.0 and 0.0 <= start < last <= freeze_at:
        return
    raise BadConfig(
        need(
            "0 <= ternary_at <= freeze_at <= 1 and 0 <= start < end <= freeze_at must hold",
            f"ternary_at={ternary_at}, freeze_at={freeze_at}, start={start}, end={last}",
            "Codes are fixed at freeze_at, so the zeros must be complete by then.",
        )
    )
