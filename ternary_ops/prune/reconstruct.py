# SPDX-License-Identifier: Apache-2.0
"""One-shot pruning of a trained network from a few samples, with a refit of what is left.

Optimal brain surgeon, layer by layer: with H = X X^T of what enters a layer, removing unit u of
filter w costs w_u^T (H^-1)_uu^-1 w_u in its squared output, and the best change of the other
weights follows in closed form (Hassibi and Stork 1993; per filter and for units of several weights
as in Frantar and Alistarh 2022, arXiv 2208.11580, section 4 and appendix). Two parts are our own: a
unit's cost is weighted by the sensitivity of the network's output to that filter, so that layers
compete for one total; and the survivors of each layer are solved for once more, in the order in
which layers run, to give what the dense layer gave although what enters has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ternary_ops._moved import renamed_arguments
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.signature import result, signature_of
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.prune.allocation import make_groups
from ternary_ops.prune.layer_matrix import LayerMatrix
from ternary_ops.prune.loss_ranking import Rows, prune_cheapest
from ternary_ops.prune.moments import Moments, joined, sums_of
from ternary_ops.prune.obs import damped, inverse_of, refit
from ternary_ops.prune.one_shot import in_float, row_targets
from ternary_ops.prune.paused_runs import PausedRuns, watch
from ternary_ops.prune.ranking import SummaryRow, summary
from ternary_ops.prune.targets import Target

_COLUMNS = 256  # for each weight of a filter: enough for the order of units


@renamed_arguments(tick="on_layer")
def reconstruct_(
    model: nn.Module,
    batches: Iterable[Any],
    zeros: float | None = None,
    pattern: str | None = None,
    scope: str | None = None,
    skip: str | Sequence[str] = (),
    *,
    damp: float = 1e-4,
    on_layer: Callable[[str], None] = lambda name: None,
) -> list[SummaryRow]:
    """One-shot pruning: prune `model` in place to its target and refit the remaining weights.

    zeros, pattern, scope, skip: as for Pruner, which on a quantized model continues from the
    resulting masks; patterns of one output channel ("element", "1xM"). batches: tensors, or tuples
    that start with one, as for calibrate; a few dozen samples. damp: added to the diagonal of H,
    relative to its mean. on_layer: called with each layer's name, when ranked and when refitted.

    Works in float: a quantized model runs in phase "float" meanwhile. Costs O(K^3 / M) per filter
    of K weights: minutes for a layer of thousands. Returns one row for each pruned weight. Raises
    BadConfig for other patterns and a damp that is not positive, UnsupportedModel for layers that
    never run, BadWeights when a layer's input is not finite; the model is then as it was.
    """
    if not damp > 0:
        raise BadConfig(need("a positive damp", damp, "1e-4 suits most networks."))
    model = unwrap(model)
    targets = row_targets(model, zeros, pattern, scope, skip)
    groups = make_groups(targets)
    inputs = [x for x, _ in samples(model, batches)]
    with in_float(model):
        dense = copy_of(model)
        matrices = {t.name: LayerMatrix(t.owners[0], t.pattern.cols) for t in targets}
        moments, sensitivity = _observe(model, targets, matrices, inputs)
        for group in groups:
            weights = zip(group.targets, group.loss_weights(), strict=True)
            parts = [
                _rows(t, matrices[t.name], moments[t.name], sensitivity[t.name] * weight, damp)
                for t, weight in weights
            ]
            prune_cheapest(group, parts)
            for t in group.targets:
                on_layer(t.name)
        order = {name: number for number, name in enumerate(moments)}
        running = sorted(targets, key=lambda t: order[t.name])
        once = {name for name, seen in moments.items() if seen.calls == len(inputs)}
        _refit_all(model, dense, running, matrices, inputs, damp, once, on_layer)
    return summary(targets, groups)


def _rows(
    target: Target, matrix: LayerMatrix, moments: Moments, sensitivity: Tensor, damp: float
) -> Rows:
    """A weight for the ranking."""
    inverse = inverse_of(damped(moments.own(), damp)).float()
    rows = matrix.rows(target.weight.detach()).flatten(0, 1)
    return Rows(target.name, rows, inverse, matrix.which(), sensitivity.flatten(), matrix.unit)


def _observe(
    model: nn.Module,
    targets: list[Target],
    matrices: dict[str, LayerMatrix],
    inputs: list[Tensor],
) -> tuple[dict[str, Moments], dict[str, Tensor]]:
    """Moments of each target's input, in order of execution, and the change of the squared output
    by the output of each filter, float32 [groups, O/groups].

    The former are of as many inputs as the order of units takes. The latter is E (J^T r)^2 with
    random signs r; one constant for all layers is left out. Layers that read one tensor alike, one
    after the other, share what is computed of it.
    """
    moments: dict[str, Moments] = {}
    made: list[tuple[str, Tensor]] = []
    last: list[Any] = [None, 0, None, None]  # the tensor, its version, its reader, the sums

    def see(name: str, x: Tensor) -> None:
        matrix = matrices[name]
        known = moments.setdefault(name, Moments(matrix))
        known.calls += 1
        if known.count > _COLUMNS * matrix.depth:
            return
        if last[0] is not x or last[1:3] != [x._version, matrix.geometry]:
            last[:] = [x, x._version, matrix.geometry, sums_of(matrix, x.detach())]
        known.add(last[3])

    def leave(name: str, y: Tensor) -> None:
        made.append((name, y))

    owners = [(target.name, owner) for target in targets for owner in target.owners]
    handles = [watch(o, partial(see, name), behind=False) for name, o in owners]
    handles += [watch(o, partial(leave, name), behind=True) for name, o in owners]
    generator = torch.Generator().manual_seed(0)
    sums: dict[str, Tensor] = {}
    try:
        for x in inputs:
            made.clear()
            # The image takes part so that there is a graph even where no parameter wants one; as
            # the result of a computation, networks may change it in place.
            with torch.enable_grad():
                y = result(model, x.detach().requires_grad_().clone())
            signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
            outputs = [output for _, output in made]
            grads = torch.autograd.grad(y, outputs, signs, allow_unused=True)
            for (name, output), grad in zip(made, grads, strict=True):
                square = torch.zeros_like(output) if grad is None else grad.square()
                value = matrices[name].per_filter(square) / len(x)
                sums[name] = sums.get(name, 0) + value
    finally:
        for handle in handles:
            handle.remove()
    _check(targets, moments)
    return moments, sums


def _check(targets: list[Target], moments: dict[str, Moments]) -> None:
    """Raise for layers that did not run, and for inputs and weights that are not finite."""
    missing = [t.name for t in targets if t.name not in moments]
    if missing:
        do = "Skip these layers, or pass batches that reach them."
        raise UnsupportedModel(need("every layer to prune to run", f"not {missing}", do))
    by_name = {target.name: target for target in targets}
    for name, seen in moments.items():
        _check_finite(name, seen.own())
        if not bool(by_name[name].weight.isfinite().all()):
            do = "Load the weights again."
            raise BadWeights(need("finite weights", f"NaN or infinity in {name}", do))


def _check_finite(name: str, moment: Tensor) -> None:
    if not bool(moment.isfinite().all()):
        do, got = "Check the weights before it, and the batches.", f"NaN or infinity into {name}"
        raise BadWeights(need("finite inputs of every layer", got, do))


def _refit_all(
    model: nn.Module,
    dense: nn.Module,
    targets: list[Target],
    matrices: dict[str, LayerMatrix],
    inputs: list[Tensor],
    damp: float,
    once: set[str],
    on_layer: Callable[[str], None],
) -> None:
    """Refit the survivors of all weights, in order of execution: what enters now should give what
    the dense layer gave. once: layers that run once for each input.
    """
    names = [target.name for target in targets]
    layers = list(model.named_modules())
    known: _Seen | None = None
    with (
        PausedRuns(model, names, inputs) as runs,
        PausedRuns(dense, names, inputs, behind=True) as twins,
    ):
        for target in targets:
            name = target.name
            now, then = runs.at(name), twins.at(name)
            if len(target.owners) > 1 or name not in once or now is None or then is None:
                own = [path for path, layer in layers if layer in target.owners]
                now = _values(model, own, inputs, behind=False)
                then = _values(dense, own, inputs, behind=True)
            if known is None or not known.same(now, matrices[name]):
                known = _Seen(now, matrices[name])
            _refit(target, matrices[name], known, then, damp)
            on_layer(name)


class _Seen:
    """What entered a layer, and its moments."""

    def __init__(self, inputs: list[Tensor], matrix: LayerMatrix) -> None:
        self.inputs, self._geometry = inputs, matrix.geometry
        self._versions = [x._version for x in inputs]
        self.moments = Moments(matrix)
        for x in joined(matrix, inputs)[0]:
            self.moments.add(sums_of(matrix, x))

    def same(self, inputs: list[Tensor], matrix: LayerMatrix) -> bool:
        """Whether another layer gets the same tensors, unchanged, and reads them alike."""
        alike = self._geometry == matrix.geometry and len(inputs) == len(self.inputs)
        alike = alike and all(x is y for x, y in zip(self.inputs, inputs, strict=True))
        return alike and self._versions == [x._version for x in inputs]


@torch.no_grad()
def _refit(
    target: Target, matrix: LayerMatrix, seen: _Seen, outputs: list[Tensor], damp: float
) -> None:
    """Refit the survivors of one weight to the outputs wanted.

    A layer with a bias is solved for what differs from the mean, and the bias takes up the mean.
    """
    own, mean = seen.moments.own(), seen.moments.mean()
    _check_finite(target.name, own)
    products, wanted = seen.moments.wanted(seen.inputs, outputs)
    rows = matrix.rows(target.weight.detach())
    kept = matrix.rows(target.mask.to(rows.dtype)) > 0
    left = damped(own, damp)
    right = products + rows @ (left - own)
    made = refit(left, matrix.which(), right.flatten(0, 1), kept.flatten(0, 1)).view_as(rows)
    target.weight.copy_(matrix.weight(made))
    if seen.moments.centered:
        for owner in target.owners:
            bias = (wanted - (made @ mean[..., None])[..., 0]).flatten()
            cast(Tensor, owner.bias).copy_(bias)


@torch.no_grad()
def _values(model: nn.Module, names: list[str], inputs: list[Tensor], behind: bool) -> list[Tensor]:
    """What enters the layers of these names, or leaves them, one tensor per call."""
    seen: list[Tensor] = []
    layers = dict(model.named_modules())
    handles = [watch(layers[name], seen.append, behind) for name in names]
    try:
        for x in inputs:
            signature_of(model).call(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return seen
