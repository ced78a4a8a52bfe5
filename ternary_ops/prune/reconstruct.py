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

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ternary_ops._moved import renamed_arguments
from ternary_ops.errors import BadConfig, BadWeights, UnsupportedModel, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.signature import result, signature_of
from ternary_ops.graph.state import load_state
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.prune.allocation import make_groups
from ternary_ops.prune.layer_matrix import LayerMatrix
from ternary_ops.prune.ranking import SummaryRow, summary
from ternary_ops.prune.targets import Target, find_targets, is_quantized

_ROUNDS = 2  # random directions of the output in each batch
_LAST = 0.97  # of a filter's units whose order is worked out; the rest would go last
_RISE = 1 + 1e-6  # costs along an order rise by this at least: ties would lose the order
_BYTES = 512 << 20  # of inverses held at once


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
    targets = find_targets(model, zeros, pattern, scope, skip, None)
    for target in targets:
        if target.pattern.rows != 1 or target.pattern.cols == 0 or target.pattern.stride:
            do = 'Pass "1x4" or "element", or prune with a Pruner.'
            got = f"{target.pattern.name!r} for {target.name!r}"
            raise BadConfig(need("units to refit that lie in one output channel", got, do))
    groups = make_groups(targets)
    inputs = [x for x, _ in samples(model, batches)]
    with _in_float(model):
        dense = copy_of(model)
        matrices = {t.name: LayerMatrix(t.owners[0], t.pattern.cols) for t in targets}
        grams, order = _grams(model, targets, matrices, inputs)
        sensitivity = _output_sensitivity(model, targets, matrices, inputs)
        scores = {}
        for t in targets:
            found = removal(matrices[t.name].rows(t.weight), grams[t.name], t.pattern.cols, damp)
            scores[t.name] = (found * sensitivity[t.name][..., None]).flatten()
            on_layer(t.name)
        for group in groups:
            group.prune([scores[t.name] for t in group.targets], group.wanted())
        by_name = {t.name: t for t in targets}
        for name in order:
            target = by_name[name]
            _refit(model, dense, target, matrices[name], inputs, damp)
            on_layer(name)
    return summary(targets, groups)


@contextmanager
def _in_float(model: nn.Module) -> Iterator[None]:
    """Quantized layers in phase "float", the model in eval mode; after an error all as before."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [m for m in model.modules() if is_quantized(m)]
    phases, training = [layer.kept_phase() for layer in layers], model.training
    model.eval()
    try:
        for layer in layers:
            layer.phase = "float"
        yield
    except BaseException:
        load_state(model, before)
        raise
    finally:
        for restore in phases:
            restore()
        model.train(training)


class _Moments:
    """Sums over a layer's input, and over that of its dense twin, float64.

    With a bias to take up means, moments are those around the mean.
    """

    def __init__(self, matrix: LayerMatrix) -> None:
        self.matrix = matrix
        self.centered = getattr(matrix.layer, "bias", None) is not None
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, then: Tensor) -> None:
        """One input of the layer, and what its twin got in its place."""
        a = self.matrix.columns(x)
        b = a if then is x else self.matrix.columns(then)
        own = (a @ a.mT).double()
        new = [own, own if then is x else (b @ a.mT).double()]
        new += [a.double().sum(-1), b.double().sum(-1)]
        self.sums = new if not self.sums else [s + n for s, n in zip(self.sums, new, strict=True)]
        self.count += a.shape[-1]

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the two inputs, [G, K]."""
        return self.sums[2] / self.count, self.sums[3] / self.count

    def own(self) -> Tensor:
        """Of the input with itself, [G, K, K]."""
        mean = self.means()[0]
        return self.sums[0] / self.count - self.centered * mean[..., None] * mean[..., None, :]

    def cross(self) -> Tensor:
        """Of the twin's input with the layer's, [G, K, K]."""
        mean, then = self.means()
        return self.sums[1] / self.count - self.centered * then[..., None] * mean[..., None, :]


def _grams(
    model: nn.Module,
    targets: list[Target],
    matrices: dict[str, LayerMatrix],
    inputs: list[Tensor],
) -> tuple[dict[str, Tensor], list[str]]:
    """Second moments of each target's input, float64 [G, K, K], in order of execution."""
    moments = {t.name: _Moments(matrices[t.name]) for t in targets}
    order: dict[str, None] = {}

    def seer(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(layer: nn.Module, given: tuple[Any, ...]) -> None:
            order.setdefault(name)
            moments[name].add(given[0], given[0])

        return see

    handles = [o.register_forward_pre_hook(seer(t.name)) for t in targets for o in t.owners]
    try:
        with torch.no_grad():
            for x in inputs:
                signature_of(model).call(model, x)
    finally:
        for handle in handles:
            handle.remove()
    missing = [t.name for t in targets if t.name not in order]
    if missing:
        do = "Skip these layers, or pass batches that reach them."
        raise UnsupportedModel(need("every layer to prune to run", f"not {missing}", do))
    grams = {name: moments[name].own() for name in order}
    for name, gram in grams.items():
        if not bool(gram.isfinite().all()):
            do = "Check the weights before it, and the batches."
            raise BadWeights(
                need("finite inputs of every layer", f"NaN or infinity into {name}", do)
            )
    return grams, list(order)


def _output_sensitivity(
    model: nn.Module,
    targets: list[Target],
    matrices: dict[str, LayerMatrix],
    inputs: list[Tensor],
) -> dict[str, Tensor]:
    """Change of the squared output by each filter's output, float32 [groups, O/groups].

    Estimated by E (J^T r)^2 with random signs r. One constant for all layers is left out.
    """
    generator = torch.Generator().manual_seed(0)
    made: list[tuple[str, Tensor]] = []
    handles = [
        o.register_forward_hook(lambda m, x, y, name=t.name: made.append((name, y)))
        for t in targets
        for o in t.owners
    ]
    sums: dict[str, Tensor] = {}
    try:
        for x in inputs:
            made.clear()
            # The image takes part so that there is a graph even where no parameter wants one.
            with torch.enable_grad():
                y = result(model, x.clone().requires_grad_())
            for _ in range(_ROUNDS):
                signs = torch.randint(0, 2, y.shape, generator=generator).to(y) * 2 - 1
                outputs = [output for _, output in made]
                grads = torch.autograd.grad(y, outputs, signs, retain_graph=True, allow_unused=True)
                for (name, output), grad in zip(made, grads, strict=True):
                    square = torch.zeros_like(output) if grad is None else grad.square()
                    value = matrices[name].per_filter(square) / len(x)
                    sums[name] = sums.get(name, 0) + value
    finally:
        for handle in handles:
            handle.remove()
    return sums


@torch.no_grad()
def removal(rows: Tensor, gram: Tensor, unit: int, damp: float) -> Tensor:
    """Cost of removing each unit when its filter's units go cheapest first, [G, O, units].

    rows: [G, O, K] float64, unit-major (a unit's weights side by side). gram: [G, K, K]. Costs
    rise along a filter's order; units that would go last of all cost infinity.
    """
    groups, filters, depth = rows.shape
    costs = torch.full((groups, filters, depth // unit), torch.inf)
    chunk = max(1, _BYTES // (4 * depth * depth))
    for g in range(groups):
        inverse = torch.linalg.inv(damped(gram[g], damp)).float()
        for first in range(0, filters, chunk):
            part = slice(first, first + chunk)
            costs[g, part] = _removal(rows[g, part].float(), inverse, unit)
    return costs


def _removal(weights: Tensor, inverse: Tensor, unit: int) -> Tensor:
    filters, depth = weights.shape
    units = depth // unit
    weights = weights.clone()
    inverses = inverse.expand(filters, depth, depth).contiguous()
    costs = torch.full((filters, units), torch.inf)
    gone = torch.zeros(filters, units, dtype=torch.bool)
    row, lane = torch.arange(filters), torch.arange(unit)
    least = torch.zeros(filters)
    one = torch.eye(unit)
    for _ in range(max(1, int(_LAST * units)) if units > 1 else 0):
        blocks = inverses.view(filters, units, unit, units, unit).diagonal(dim1=1, dim2=3)
        blocks = torch.where(gone[..., None, None], one, blocks.permute(0, 3, 1, 2))
        parts = weights.view(filters, units, unit)
        solved = torch.linalg.solve(blocks, parts[..., None])[..., 0]
        cost, chosen = (parts * solved).sum(-1).masked_fill(gone, torch.inf).min(1)
        least = torch.maximum(least * _RISE, cost)
        costs[row, chosen] = least
        gone[row, chosen] = True
        at = (chosen[:, None] * unit + lane)[:, None, :].expand(filters, depth, unit)
        columns = inverses.gather(2, at)  # [O, K, unit]
        weights -= (columns @ solved[row, chosen][..., None])[..., 0]
        spread = columns @ torch.linalg.inv(blocks[row, chosen])
        inverses.baddbmm_(spread, columns.mT, alpha=-1)
        parts[row, chosen] = 0.0
    return costs


def damped(gram: Tensor, damp: float) -> Tensor:
    """The matrix, damp times its mean diagonal added to the diagonal; zeros become the identity."""
    mean = float(gram.diagonal().mean())
    return gram + torch.eye(len(gram), dtype=gram.dtype) * (damp * mean if mean > 0 else 1.0)


@torch.no_grad()
def _refit(
    model: nn.Module,
    dense: nn.Module,
    target: Target,
    matrix: LayerMatrix,
    inputs: list[Tensor],
    damp: float,
) -> None:
    """Refit the survivors of one weight: its present input should give the dense layer's output.

    A layer with a bias is solved for what differs from the mean, and the bias takes up the mean.
    """
    twins = dict(dense.named_modules())
    names = {module: name for name, module in model.named_modules()}
    moments = _Moments(matrix)
    for owner in target.owners:
        for x in inputs:
            now = _entering(model, owner, x)
            then = _entering(dense, twins[names[owner]], x)
            for a, b in zip(now, then, strict=True):
                moments.add(a, b)
    own, cross = moments.own(), moments.cross()
    rows = matrix.rows(target.weight.detach())
    kept = matrix.rows(target.mask.to(rows.dtype)) > 0
    made = torch.zeros_like(rows)
    for g in range(len(rows)):
        left = damped(own[g], damp)
        right = rows[g] @ (cross[g] + left - own[g])
        for o, mask in enumerate(kept[g]):
            at = mask.nonzero()[:, 0]
            if len(at):
                made[g, o, at] = torch.linalg.solve(left[at][:, at], right[o, at])
    target.weight.copy_(matrix.weight(made))
    if moments.centered:
        mean, mean_then = moments.means()
        shift = (rows @ mean_then[..., None] - made @ mean[..., None]).flatten()
        biases = {id(bias): bias for bias in (cast(Tensor, o.bias) for o in target.owners)}
        for bias in biases.values():  # tied layers may share it
            bias.add_(shift)


def _entering(model: nn.Module, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Inputs of `layer` when the model runs on x, one tensor per call."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        signature_of(model).call(model, x)
    finally:
        handle.remove()
    return seen
