# SPDX-License-Identifier: Apache-2.0
"""Targets: the weights that a Pruner prunes, and the fraction of zeros asked of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol, TypeGuard, cast

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedModel, check_type, need
from ternary_ops.nn.engine_cost import EngineCost
from ternary_ops.nn.patterns import Pattern, fit_pattern, get_pattern, unit_scores, unit_sums
from ternary_ops.nn.pruning_progress import Progress
from ternary_ops.prune.criteria import Score
from ternary_ops.prune.mask_bits import MaskBits


class _Config(Protocol):
    @property
    def weights(self) -> str: ...
    @property
    def zeros(self) -> float | None: ...
    @property
    def pattern(self) -> str: ...
    @property
    def scope(self) -> str: ...


class _Plain(NamedTuple):
    """Defaults for a layer that quantize_ has not converted."""

    weights: str = "float"
    zeros: float | None = None
    pattern: str = "element"
    scope: str = "global"


_PLAIN = _Plain()


class QuantizedLayer(Protocol):
    """Interface of a layer made by quantize_, as far as a Pruner uses it.

    dense_gradient: whether pruned weights get a gradient before codes are frozen, in any phase.
    """

    weight: nn.Parameter
    mask: Tensor
    phase: str
    config: _Config
    pruning: Progress | None
    dense_gradient: bool

    def kept(self) -> Tensor:
        """The mask, to read."""

    def kept_phase(self) -> Callable[[], None]:
        """A function that goes back to the phase of now."""

    def dequantized_weight(self) -> Tensor:
        """scale * codes of the weight as it is now, weight's shape and dtype."""

    def reset_ttq_scales(self) -> None:
        """Start learned scales, where there are any, from the weight as it is now."""


def is_quantized(module: object) -> TypeGuard[QuantizedLayer]:
    """True for a layer made by quantize_."""
    return all(hasattr(module, name) for name in ("weight", "mask", "phase", "config"))


class Target:
    """One weight to prune and every layer that holds it (tied layers share one weight)."""

    def __init__(
        self, name: str, owner: nn.Module, pattern: Pattern, scope: str, zeros: float, min_nnz: int
    ) -> None:
        self.name = name
        self.owners = [owner]
        self.pattern = pattern
        self.scope = scope
        self.zeros = zeros
        self.min_nnz = min_nnz
        self.latent: Tensor | None = None  # nested=False: the values of pruned weights
        self._bits = MaskBits()
        weight = cast(Tensor, owner.weight)
        self._own_mask = None if is_quantized(owner) else torch.ones_like(weight, dtype=torch.bool)

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, looked up each time because loading a state may replace it. Raises
        UnsupportedModel where it has become a computed one.
        """
        held = self.owners[0]._parameters.get("weight")
        return _parameter(self.name, self.owners[0]) if held is None else held

    @property
    def mask(self) -> Tensor:
        """Bool of the weight's shape, True survives: the layer's buffer, or ours if plain."""
        if self._own_mask is None:
            return cast(QuantizedLayer, self.owners[0]).kept()
        if self._own_mask.device != self.weight.device:
            self._own_mask = self._own_mask.to(self.weight.device)
        return self._own_mask

    @property
    def cost(self) -> EngineCost | None:
        """What the layer's units save in the engine; None unless a plan measured it."""
        return getattr(self.owners[0], "cost", None)

    def set_mask(self, mask: Tensor) -> None:
        """Store a mask of the weight's shape where the layers find it."""
        if self._own_mask is not None:
            self._own_mask = mask.contiguous()
            return
        for owner in self.owners:
            cast(QuantizedLayer, owner).mask = mask

    def resize(self, cut: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        """Follow the weight, which has lost what `cut` takes from tensors of its former shape.
        Returns a function that undoes it. UnsupportedShape: the pattern does not divide it.
        """
        former = self._own_mask, self.latent, self.pattern
        groups = int(getattr(self.owners[0], "groups", 1))
        self.pattern = fit_pattern(self.pattern, self.weight.shape, groups, self.name)
        self._own_mask, self.latent = (None if t is None else cut(t) for t in former[:2])

        def undo() -> None:
            self._own_mask, self.latent, self.pattern = former

        return undo

    @property
    def units(self) -> int:
        """Number of units of the weight."""
        return self.pattern.units(self.weight.shape)

    @property
    def protected(self) -> int:
        """Number of units pruning must leave: min_nnz per filter (or row of blocks), at least 1."""
        rows, cols, taps = self.pattern.grid(self.weight.shape)
        return max(1, rows * min(self.min_nnz, cols * taps))

    @property
    def current(self) -> Tensor:
        """The weight, pruned places with their latent values where they have some."""
        return self.weight if self.latent is None else self.latent

    def scores(self, criterion: Score) -> Tensor:
        """Score of each unit by the criterion, [units]."""
        groups = int(getattr(self.owners[0], "groups", 1))
        return unit_sums(criterion.scores(self.name, self.current, groups), self.pattern)

    def empty_units(self) -> int:
        """Number of units whose weights are all exactly zero now."""
        return int((unit_scores(self.weight, self.pattern) == 0).sum())

    def accumulate_latent(self) -> None:
        """Add the optimizer's update of pruned weights, which were 0, to their latent values."""
        if self.latent is None:
            self.latent = self.weight.detach().clone()
        else:
            moved = self.latent + self.weight
            self.latent = torch.where(self.mask, self.weight.detach(), moved)

    def apply_mask(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write exact zeros where the weight is pruned, and into the optimizer's state there."""
        weight = self.weight
        if self.latent is not None:
            # The optimizer's state stays: with it the latent values go on learning.
            weight.copy_(self.latent.masked_fill(~self.mask, 0.0))
            return
        mask = self.mask
        self._bits.clear_(weight, mask)
        state = {} if optimizer is None else optimizer.state.get(weight, {})
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                self._bits.clear_(value, mask)


def decay_to_quantized(
    targets: Sequence[Target], optimizer: torch.optim.Optimizer, factor: float
) -> None:
    """Move latent weights of ternary layers towards their quantized values, by lr * factor of the
    difference.
    """
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    for target in targets:
        layer = target.owners[0]
        if is_quantized(layer) and layer.config.weights == "ternary":
            target.weight.lerp_(layer.dequantized_weight(), rates[id(target.weight)] * factor)


def find_targets(
    model: nn.Module,
    zeros: float | Mapping[str, float] | None,
    pattern: str | None,
    scope: str | None,
    skip: str | Sequence[str],
    min_nnz: int | None,
) -> list[Target]:
    """Find the weights to prune: of a quantized model those of ternary layers and of 8-bit ones
    whose config has zeros; of a plain model those of every nn.Linear and nn.Conv2d.

    Arguments that are None come from each layer's config; for a plain model pattern is then
    "element" and scope "global", and zeros is required unless the pattern is N:M. A mapping gives
    glob -> zeros: the last glob that matches a layer counts; a layer that none matches keeps its
    config, or is left out of a plain model.
    """
    check_type("skip", skip, (str, Sequence), "Pass a glob, or a list of them.")
    skip = [skip] if isinstance(skip, str) else skip
    globs = list(zeros) if isinstance(zeros, Mapping) else []
    targets: dict[int, Target] = {}
    for name, layer in _prunable_layers(model, [*skip, *globs]).items():
        config = layer.config if is_quantized(layer) else _PLAIN
        units = get_pattern(pattern or config.pattern)
        fraction = _layer_zeros(name, zeros, config.zeros)
        if fraction is None and not globs:
            fraction = units.least_zeros or None
        if fraction is None or any(fnmatchcase(name, glob) for glob in skip):
            continue
        weight = _parameter(name, layer)
        if id(weight) in targets:
            targets[id(weight)].owners.append(layer)
            continue
        groups = int(getattr(layer, "groups", 1))
        units = fit_pattern(units, weight.shape, groups, name)
        depthwise = groups > 1 and weight.shape[1] == 1
        least = int(depthwise) if min_nnz is None else min_nnz
        targets[id(weight)] = Target(name, layer, units, scope or config.scope, fraction, least)
    if not targets:
        raise BadConfig(
            need(
                "zeros for some layer of a model that quantize_ has not converted",
                f"zeros={zeros}, skip={list(skip)}",
                'Pass zeros=0.9 or zeros={"layer4.*": 0.9}.',
            )
        )
    return list(targets.values())


def can_prune(model: nn.Module) -> bool:
    """True for a model that a Pruner takes: it has ternary layers, or some with zeros to come."""
    quantized = any(is_quantized(module) for module in model.modules())
    return any(_prunable(module, quantized) for module in model.modules())


def _prunable_layers(model: nn.Module, globs: Sequence[str]) -> dict[str, nn.Module]:
    """Layers that can be pruned, by name; every glob must match one."""
    quantized = any(is_quantized(module) for module in model.modules())
    layers = {name: m for name, m in model.named_modules() if _prunable(m, quantized)}
    if not layers:
        kind = "ternary layer" if quantized else "nn.Linear or nn.Conv2d"
        raise UnsupportedModel(
            need(f"at least one {kind} to prune", "none", "Check the plan, or the model passed.")
        )
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in layers):
            what = f"globs that match a layer that can be pruned ({', '.join(layers)})"
            raise BadConfig(need(what, repr(glob), "Correct it or leave it out."))
    return layers


def _prunable(module: nn.Module, quantized: bool) -> bool:
    if quantized:
        if not is_quantized(module):
            return False
        return module.config.weights == "ternary" or bool(module.config.zeros)
    return isinstance(module, (nn.Linear, nn.Conv2d))


def _parameter(name: str, layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    if isinstance(weight, nn.Parameter) and not nn.parameter.is_lazy(weight):
        return weight
    raise UnsupportedModel(
        need(
            f"a weight of {name!r} that is a parameter of its own",
            "a computed or uninitialized one (a parametrization, weight_norm or a lazy layer)",
            "Remove the parametrization (LearnedSparsity: finish_), run a lazy layer once, or skip "
            "this layer.",
        )
    )


def _layer_zeros(
    name: str, zeros: float | Mapping[str, float] | None, default: float | None
) -> float | None:
    fraction = default
    if isinstance(zeros, Mapping):
        for glob in zeros:
            fraction = zeros[glob] if fnmatchcase(name, glob) else fraction
    elif zeros is not None:
        fraction = zeros
    if fraction is not None:
        check_type(f"zeros for {name!r}", fraction, (int, float), "0.9 keeps a tenth.")
    if fraction is not None and not 0.0 <= fraction < 1.0:
        raise BadConfig(
            need("zeros with 0 <= zeros < 1", f"{fraction} for {name!r}", "0.9 keeps a tenth.")
        )
    return fraction
