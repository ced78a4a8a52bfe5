# SPDX-License-Identifier: Apache-2.0
"""Pruner: updates pruning masks during training and moves quantized layers through their phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ternary_ops._moved import renamed, renamed_arguments
from ternary_ops.errors import BadConfig, need
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.nn.pruning_progress import Progress
from ternary_ops.prune.allocation import make_groups
from ternary_ops.prune.criteria import Score, get_criterion
from ternary_ops.prune.gradient_reader import GradientReader
from ternary_ops.prune.growth import Growth, get_growth
from ternary_ops.prune.growth_run import GrowthRun
from ternary_ops.prune.mask_updates import MaskUpdates
from ternary_ops.prune.masked_copy import mask_copy
from ternary_ops.prune.optimizer_state import GradientHook, Replaced
from ternary_ops.prune.phases import Phases
from ternary_ops.prune.pruner_checks import (
    check_optimizer,
    check_options,
    check_resize,
    check_strategies,
    steps_between,
)
from ternary_ops.prune.ranking import SummaryRow, summary
from ternary_ops.prune.resizing import resize_targets
from ternary_ops.prune.rewinding import Rewinding
from ternary_ops.prune.schedules import Schedule, get_schedule
from ternary_ops.prune.state import check_state, plain_names, plan_of, pruned_bits, restore_bits
from ternary_ops.prune.targets import (
    QuantizedLayer,
    decay_to_quantized,
    find_targets,
    is_quantized,
)
from ternary_ops.prune.time_scope import costs_state, restore_costs


class Pruner:
    """Prune while training. Call step() after optimizer.step().

    Targets (zeros, pattern, scope) come from the configs that quantize_ stored on ternary layers,
    and on 8-bit layers whose config asks for zeros. For a plain float model they come from the
    arguments, and the masks stay in the Pruner.

    scope: allocation of zeros to layers (prune.allocation). Under "global" and "time", layers of
    equal pattern and equal zeros are ranked together, "time" by score per millisecond, and counted
    as one total; under "layer" each is counted alone. The final count is exactly
    round(zeros * units) (one less where that would empty a layer).

    Phases of quantized layers, in steps done out of total_steps: real-valued until `ternary_at`,
    ternary with a straight-through estimator until `freeze_at`, then frozen: masks and codes are
    fixed. The zeros reach their target at `end`, by default and at the latest at `freeze_at`, for
    any total_steps >= 1. A schedule that ends dense ("dsd") leaves no zeros then.

    nested=True: a pruned weight is exactly 0.0 from then on, and so is its optimizer state.
    nested=False: pruned weights may come back until the freeze. Each has a latent value, kept here,
    which ranks it and accumulates the optimizer's updates; weight decay does not reach it. The
    weight in the model is 0.0 all the same, and its optimizer state is updated as usual. Quantized
    layers pass no gradient to pruned weights in phase "float".
    growth: dynamic sparse training (prune.growth). Pruned weights are 0.0 as with nested=True, but
    each update drops some units and grows as many; the count stays exact. The schedule is then
    "constant" unless given: training is sparse from the first step on.

    At the freeze a warning names weights that never had a gradient: their layers did not run. Until
    then compile and pack_ refuse the quantized layers (`allow_unfinished`).

    Masks depend on the weights alone, so the ranks of a DistributedDataParallel run agree on them.

    start, end: where the schedule begins (default: its own start) and ends, as fractions of
        total_steps.
    every: steps between updates of the masks (default: so that there are at most 200).
    min_nnz: units that survive in every filter (default: 1 in depthwise layers, else 0).
    normalize: rank by scores relative to their layer's mean instead of plain ones.
    criterion: "magnitude", "movement", "snip" or another of prune.criteria, or one of your own;
        where it reads weights, those that are pruned and may come back count with latent values.
    quantized_decay: lambda_q of PTQ's discrepancy-reducing decay, a reconstruction: after each
        optimizer step, latent weights w of ternary layers decay towards their quantized values,
        by lr * lambda * (scale * code - w), where lambda grows linearly from 0 to
        `quantized_decay` at freeze_at. Needs the optimizer.
    skip: globs of layers to leave out.
    growth: "set", "rigl" or another rule of prune.growth_rules, or a prune.Growth with other
        options. Needs the optimizer.
    rewind: step to whose values everything trained goes back each time the schedule, which must
        rise by jumps, has pruned more (prune.rewinding). Needs the optimizer.
    batches, loss: pairs (x, y), and a function of output and y, for criteria that read them before
        training ("snip", "grasp", "obd"; "synflow" and "slimming" need batches alone). Everything
        of the network stays as it is. They run in the mode that the network is in.
    """

    pull = renamed("quantized_decay")

    @renamed_arguments(pull="quantized_decay")
    def __init__(
        self,
        model: nn.Module,
        schedule: str | Schedule | None = None,
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
        quantized_decay: float = 0.0,
        skip: str | Sequence[str] = (),
        growth: str | Growth | None = None,
        rewind: int | None = None,
        batches: Any = None,
        loss: Any = None,
    ) -> None:
        """Plan the pruning; no weight changes before the first step().

        Raises BadConfig on a bad argument, UnsupportedModel when the model or the optimizer does
        not fit, BadWeights for gradients of batches that are not finite.
        """
        self.growth = get_growth(growth)
        usual = "one_cycle" if growth is None else "constant"
        self.schedule = get_schedule(usual if schedule is None else schedule)
        every, first = steps_between(self.growth, every), self.schedule.start
        self.phases = Phases(total_steps, ternary_at, freeze_at, start, end, every, first)
        check_options(nested, min_nnz, quantized_decay, optimizer)
        check_strategies(self.schedule, self.growth, self.phases, nested, rewind, optimizer)
        self.optimizer = optimizer
        self.criterion = get_criterion(criterion, optimizer, batches, loss)
        drop = None
        if self.growth is not None and self.growth.drop is not None:
            drop = get_criterion(self.growth.drop, optimizer, batches, loss)
        self._criteria = (self.criterion,) if drop is None else (self.criterion, drop)
        self._criterion_name = criterion
        self.quantized_decay = quantized_decay
        self.nested = nested and not (self.growth is not None and self.growth.latent)
        self.normalize = normalize
        model = unwrap(model)
        self._targets = find_targets(model, zeros, pattern, scope, skip, min_nnz)
        self._groups = make_groups(self._targets)
        self._layers = [m for m in model.modules() if is_quantized(m)]
        check_optimizer(optimizer, self._targets)
        for score in self._criteria:
            for target in self._targets:
                score.watch(target.name, target.owners)
                score.watch_units(target.name, target.pattern)
            if batches is not None:
                score.prepare(model, batches, loss)
        self._begin(model, drop, rewind)

    def _begin(self, model: nn.Module, drop: Score | None, rewind: int | None) -> None:
        """Follow the optimizer's steps, and show the layers how far the run is."""
        self._step = 0
        common = self.phases, self._groups, self.criterion
        self._growing = GrowthRun(self.growth, *common, drop, self.optimizer)
        self._masks = MaskUpdates(
            *(self._groups, self.phases, self.schedule, self._growing, self.criterion),
            criterion_name=self._criterion_name,
            nested=self.nested,
            normalize=self.normalize,
        )
        self._gradients = GradientReader()
        self._progress = Progress(0, self.phases.freeze, self.phases.total)
        self._rewinding = None
        if self.optimizer is not None and rewind is not None:
            self._rewinding = Rewinding(model, self.optimizer, rewind)
        if self.optimizer is not None:
            self.optimizer.register_step_pre_hook(GradientHook(self))
        # A frozen layer may be about to resume by load_state_dict: its codes must last until then.
        self._prepare([layer for layer in self._layers if layer.phase != "frozen"])
        for layer in self._layers:
            layer.pruning = self._progress

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.phases.total

    @property
    def every(self) -> int:
        """Steps between updates of the masks."""
        return self.phases.every

    @property
    def progress(self) -> float:
        """Fraction of the steps done."""
        return self._step / self.phases.total

    @property
    def phase(self) -> str:
        """Now: "float", "ternary" or "frozen". A plain model is never "ternary"."""
        return self.phases.at(self._step, bool(self._layers))

    @property
    def round_step(self) -> int:
        """The step by which a learning rate that is rewound too should go: after each rewinding
        it counts on from the step whose values came back.
        """
        back = self._rewinding
        return self._step if back is None else self._step - back.last + back.step

    @property
    def zeros(self) -> float:
        """Fraction of zero units over all planned layers, measured on the weights as they are."""
        units = sum(target.units for target in self._targets)
        return sum(target.empty_units() for target in self._targets) / units

    def summary(self) -> list[SummaryRow]:
        """One row per pruned weight; under scope "global" the target is that of its group."""
        return summary(self._targets, self._groups)

    @torch.no_grad()
    def step(self, skipped: bool = False) -> None:
        """Advance one step, update the masks when due, and zero what is pruned.

        skipped: GradScaler skipped the optimizer's step; the masks are applied, nothing advances.
        Beyond total_steps the masks are applied and nothing else happens.
        """
        advance = not skipped and self._step < self.phases.total
        before = self.phase
        latent = not self.nested and before != "frozen"
        self._step += advance
        self._progress.step = self._step
        left_out = self._growing.leaves_weights(self._step)
        if advance and self.quantized_decay and self.phase != "frozen" and not left_out:
            factor = self.quantized_decay * min(1.0, self._step / self.phases.freeze)
            decay_to_quantized(self._targets, cast(torch.optim.Optimizer, self.optimizer), factor)
        if latent:
            for target in self._targets:
                target.accumulate_latent()
        if advance and self._masks.due(self._step):
            if self._masks.gives_back(self._step):
                self._apply_masks()  # what comes back must not keep the optimizer's last step
            if self._masks.update(self._step) and self._rewinding is not None:
                self._rewinding.go_back(self._step)
        self._apply_masks()
        if advance and self._rewinding is not None:
            self._rewinding.take(self._step)
        self._enter_phase(before)
        if advance:
            self._prepare(self._layers)

    def _enter_phase(self, before: str) -> None:
        """What the step that ended the phase `before` has to do; nothing at other steps."""
        if before != "frozen" and self.phase == "frozen":
            for target in self._targets:
                target.latent = None
            self._gradients.warn_idle(self._targets)
        if before == "float" and self.phase == "ternary":
            for layer in self._layers:
                layer.reset_ttq_scales()

    def report_loss(self, loss: float) -> None:
        """Tell a schedule that goes by it ("generalization_loss") the loss on other data; BadConfig
        with a schedule that does not.
        """
        self._masks.pace.loss(loss)

    @torch.no_grad()
    def mask_(self, copied: nn.Module) -> None:
        """Write exact zeros into a copy of the network where this one is pruned now.

        For averages (EMA, SWA) of a plain float network, whose weights only come near to zero;
        copies of quantized layers know their masks. Raises UnsupportedModel, with nothing changed,
        where a pruned weight has no counterpart of its name and shape.
        """
        mask_copy(self._targets, copied)

    def state_dict(self) -> dict[str, Any]:
        """The step, the pruned units (one bit each), with nested=False the latent weights, the
        costs that scope "time" ranks by, and what criterion, growth and schedule remember.
        """
        return {
            "step": self._step,
            "plan": self._plan(),
            "pruned": [pruned_bits(group) for group in self._groups],
            "latent": {t.name: t.latent.clone() for t in self._targets if t.latent is not None},
            "scores": self.criterion.state(),
            "costs": costs_state(self._targets),
            "growth": self._growing.state(),
            "pace": self._masks.pace.state(),
            "rewind": {} if self._rewinding is None else self._rewinding.state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state_dict; load model and optimizer too, before or after this.

        FormatError, with nothing changed, when the state is of another model or other arguments.
        """
        state = plain_names(state)
        check_state(state, self._plan(), self._groups)
        restore_costs(state, self._targets)
        self._step = self._progress.step = int(state["step"])
        for group, packed in zip(self._groups, state["pruned"], strict=True):
            restore_bits(group, packed)
        for target in self._targets:
            latent = state["latent"].get(target.name)
            target.latent = None if latent is None else latent.to(target.weight).clone()
        self.criterion.restore(state["scores"])
        self._growing.restore(state.get("growth", {}))
        if state.get("pace"):
            self._masks.pace.restore(state["pace"])
        if self._rewinding is not None:
            self._rewinding.restore(state["rewind"])
        self._prepare(self._layers)

    def resize(self, replaced: Replaced) -> None:
        """Go on with weights that `prune.remove_`, which calls this, has made smaller.

        Zeros are then those due of what is left. BadConfig, with nothing changed: it is too little.
        """
        check_resize(self._rewinding)
        followers = *self._criteria, self._growing
        touched = resize_targets(self._targets, self._groups, followers, replaced)
        if self.phase != "frozen":
            self._masks.resettle(touched, self._step)

    def before_step(self, closure: bool = False) -> None:
        """Check gradients and let the criterion and growth read them: the optimizer's hook.

        closure: the optimizer is about to compute gradients itself, which cannot be read here;
        BadConfig with growth. Raises BadWeights for a gradient that is not finite. No weight has
        changed by then.
        """
        if closure and self.growth is not None:
            what = "gradients before optimizer.step(), which growth reads"
            do = "Call backward() before and step() without a closure."
            raise BadConfig(need(what, "a closure", do))
        self._gradients.read(self._targets, self._step + 1)
        for target in self._targets:
            if self._step < self.phases.end or self.growth is not None:
                for score in self._criteria:
                    score.observe(target.name, target.weight)
        if self._step < self.phases.total:
            self._growing.observe(self._targets, self._step + 1)

    def _apply_masks(self) -> None:
        for group in self._groups:
            if group.count or not self.nested:
                for target in group.targets:
                    target.apply_mask(self.optimizer)

    def _prepare(self, layers: Sequence[QuantizedLayer]) -> None:
        """Set layers to what the next step needs: the phase, and gradients where units grow."""
        dense = self._growing.dense(self._step + 1)
        for layer in layers:
            layer.dense_gradient = dense
            if layer.phase != self.phase:
                layer.phase = self.phase

    def _plan(self) -> dict[str, Any]:
        """The arguments that a state must share."""
        return {
            **plan_of(self.phases, self._targets),
            "schedule": self.schedule.name,
            "nested": self.nested,
            "normalize": self.normalize,
            "criterion": self._criterion_name,
            "pull": self.quantized_decay,
            "growth": None if self.growth is None else self.growth.plan(),
            "rewind": None if self._rewinding is None else self._rewinding.step,
        }
