# SPDX-License-Identifier: Apache-2.0
"""Penalties: terms to add to the loss, which draw units of weights, or scales of norms, to zero.

Of units: u_i is the L2 norm of unit i of a layer's weight (a single weight's size under "element").
    l1            sum u_i; Tibshirani 1996
    group_lasso   sum sqrt(n_i) u_i, n_i the number of weights in unit i; Yuan & Lin 2006
    hoyer         (sum u / sqrt(sum u^2) - 1) / (sqrt(n) - 1) of n units: 0 if one alone is not 0,
                  1 if all are equal (1 minus Hoyer's sparseness); Hoyer 2004
    hoyer_square  (sum u)^2 / sum u^2; Yang et al. 2020 (arXiv 1908.09979)
Of the scales of norms:
    slimming      sum |gamma|; Liu et al. 2017 (arXiv 1708.06519)
    polarization  t sum |gamma| - sum | |gamma| - mean |gamma| |, t = 1.2, mean over the network:
                  scales part into zeros and equal ones; Zhuang et al. 2020, a reconstruction

Hoyer's and its square do not depend on the scale of a layer. `register_penalty` adds one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedModel, need
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.nn.patterns import fit_pattern, get_pattern, unit_sums
from ternary_ops.prune.criteria.probe import weights_of
from ternary_ops.prune.filter_scaling import NORMS
from ternary_ops.prune.registry import Registry

# Below every norm that float32 can square; its root has a gradient.
_TINY = 1e-38
_POLARIZE = 1.2
Rule: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class _Known:
    rule: Rule
    on: str


PENALTIES: Registry[_Known] = Registry(
    "a penalty", "add yours with prune.register_penalty(name, rule)"
)


def register_penalty(name: str, rule: Rule, on: str = "weights") -> None:
    """Make `name` a penalty: rule(parts, sizes) -> one number.

    on: "weights": parts are the norms of the units of each layer, [units], sizes the number of
        weights in each of them; "scales": the scales of each norm, [C], and ones.

    Raises BadConfig for a taken name, for what cannot be called and another `on`.
    """
    if not callable(rule) or on not in ("weights", "scales"):
        got, do = f"{rule!r:.60} on {on!r}", "See prune.penalties."
        raise BadConfig(need('a function on "weights" or "scales"', got, do))
    PENALTIES.add(name, _Known(rule, on))


class Penalty:
    """A term of the loss: penalty(model) -> one number, with a gradient."""

    def __init__(self, name: str, pattern: str, skip: Sequence[str]) -> None:
        self.name, self.pattern, self.skip = name, get_pattern(pattern), tuple(skip)
        self._known = PENALTIES.find(name)

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty of the network as it is.

        Raises UnsupportedModel where it has no layer, or no norm with scales, that is not skipped.
        """
        model = unwrap(model)
        of_weights = self._known.on == "weights"
        parts, sizes = self._units(model) if of_weights else self._scales(model)
        if not parts:
            kind = "convolution or linear layer" if of_weights else "norm with scales"
            do = "Take another penalty, or skip less."
            raise UnsupportedModel(need(f"a {kind} for penalty {self.name!r}", "none", do))
        return self._known.rule(parts, sizes)

    def _units(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        parts, sizes = [], []
        for name, weight in weights_of(model).items():
            if self._skips(name):
                continue
            groups = int(getattr(model.get_submodule(name), "groups", 1))
            pattern = fit_pattern(self.pattern, weight.shape, groups, name)
            squares = unit_sums(weight.square(), pattern)
            parts.append(squares.clamp_min(_TINY).sqrt() * (squares > 0))
            sizes.append(unit_sums(torch.ones_like(weight), pattern))
        return parts, sizes

    def _scales(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        found: list[Tensor] = [
            norm.weight
            for name, norm in model.named_modules()
            if isinstance(norm, NORMS) and norm.weight is not None and not self._skips(name)
        ]
        return found, [torch.ones_like(scale) for scale in found]

    def _skips(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.skip)


def penalty(name: str, pattern: str = "element", skip: str | Sequence[str] = ()) -> Penalty:
    """The penalty of that name, a function of the network: loss + strength * penalty(model).

    pattern: the units of weights, as for a Pruner. skip: globs of layers to leave out.
    Raises BadConfig for an unknown name or pattern.
    """
    return Penalty(name, pattern, [skip] if isinstance(skip, str) else skip)


def _l1(parts: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.abs().sum() for part in parts]).sum()


def _group_lasso(parts: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    return _l1([part * n.sqrt() for part, n in zip(parts, sizes, strict=True)], sizes)


def _hoyer_square(parts: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    found = [p.sum().square() / p.square().sum().clamp_min(_TINY) for p in parts]
    return torch.stack(found).sum()


def _hoyer(parts: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    found = []
    for part in parts:
        ratio = part.sum() / part.square().sum().clamp_min(_TINY).sqrt()
        found.append((ratio - 1) / max(part.numel() ** 0.5 - 1, _TINY))
    return torch.stack(found).sum()


def _polarization(parts: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
    scales = torch.cat([part.abs() for part in parts])
    return _POLARIZE * scales.sum() - (scales - scales.mean()).abs().sum()


register_penalty("l1", _l1)
register_penalty("group_lasso", _group_lasso)
register_penalty("hoyer", _hoyer)
register_penalty("hoyer_square", _hoyer_square)
register_penalty("slimming", _l1, on="scales")
register_penalty("polarization", _polarization, on="scales")
