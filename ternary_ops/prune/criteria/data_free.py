# SPDX-License-Identifier: Apache-2.0
"""Criteria that read no data: weights alone, the scales of BatchNorm, the paths of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from ternary_ops.graph.signature import outputs_of
from ternary_ops.prune.criteria.probe import Pairs, check_finite, pairs, probing, weights_of
from ternary_ops.prune.criteria.score import Score, magnitude
from ternary_ops.prune.cutter import Cutter
from ternary_ops.prune.filter_scaling import NORMS

_TINY = 1e-300


class Random(Score):
    """Uniform, from a generator seeded with the layer's name."""

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """Random numbers, equal at every call."""
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        return torch.rand(weight.shape, generator=generator).to(weight.device)


def lamp(weight: Tensor) -> Tensor:
    """w_i^2 over the sum of w_j^2 of the layer's weights with |w_j| >= |w_i|: the largest of every
    layer scores 1 at least.
    """
    square = weight.detach().double().square().flatten()
    ordered = square.sort().values
    above = ordered.flip(0).cumsum(0).flip(0)  # of each and all larger ones
    first = torch.searchsorted(ordered, square)  # of equal ones the first: all of them count
    return (square / above[first].clamp_min(_TINY)).view_as(weight).to(magnitude(weight).dtype)


@torch.no_grad()
def slimming(model: nn.Module, batches: Pairs) -> dict[str, Tensor]:
    """|gamma| of the norm that reads the layer's output, times |w|; 1 where none with scales does.

    Which norm follows is seen by running the first sample.
    """
    made: list[tuple[Tensor, str]] = []
    gammas: dict[str, Tensor] = {}
    weights = weights_of(model)
    names = {module: name for name, module in model.named_modules()}

    def keep(layer: nn.Module, given: Any, output: Tensor) -> None:
        made.append((output, names[layer]))

    def match(norm: Any, given: tuple[Tensor, ...]) -> None:
        for output, name in made:
            if output is given[0] and norm.weight is not None:
                gammas[name] = norm.weight.detach().abs()

    for module in model.modules():
        if isinstance(module, NORMS):
            module.register_forward_pre_hook(match)
        elif names[module] in weights:
            module.register_forward_hook(keep)
    model.eval()(batches[0][0][:1])
    scaled = {name: magnitude(weight) for name, weight in weights.items()}
    for name, gamma in gammas.items():
        weight = scaled[name]
        scaled[name] = weight * gamma.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1))
    return scaled


class SynFlow(Score):
    """(dR / dw) w, where R = 1^T (prod over layers of |W|) 1 is the sum of all paths.

    R is the sum of the outputs, in float64 and eval mode, for an input of ones, of a copy with
    absolute weights and norms, without biases and running means. Batches say the input's shape
    alone. Scores are computed anew in 100 rounds, which is what keeps every layer alive.
    """

    reads = ("batches",)
    rounds = 100

    def __init__(self) -> None:
        """Before the network is known."""
        super().__init__()
        self._model: nn.Module | None = None
        self._ones = torch.ones(())
        self._masks: Mapping[str, Tensor] = {}
        self._flow: dict[str, Tensor] = {}  # empty: to be computed
        self._trial: nn.Module | None = None  # one copy for all rounds

    def prepare(self, model: nn.Module, batches: Any, loss: Any) -> None:
        """Remember the network and the shape of its input."""
        x = pairs(model, batches, labels=False)[0][0][:1]
        self._model, self._ones = model, torch.ones_like(x, dtype=torch.float64)
        self._trial = None
        self._compute(model)

    def refresh(self, masks: Mapping[str, Tensor]) -> None:
        """Compute anew when next asked."""
        self._masks = dict(masks)
        self._flow.clear()

    def _compute(self, model: nn.Module) -> None:
        """The scores of the network as it is, and under the masks."""
        if self._trial is None:
            with probing(model) as trial:
                self._trial = trial.double().eval()
        trial = self._trial
        _take_values_(trial, model)
        absolute_(trial)
        weights = weights_of(trial)
        for name, mask in self._masks.items():
            weights[name].data.mul_(mask.to(weights[name].device))
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            total = torch.stack([y.sum() for y in outputs_of(trial(self._ones)).values()]).sum()
            found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        self._flow = {
            name: torch.zeros_like(weight) if slope is None else slope * weight.detach()
            for (name, weight), slope in zip(weights.items(), found, strict=True)
        }
        check_finite("sums of paths", self._flow)

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """Those of the network as it was when they were first asked for since refresh."""
        if not self._flow and self._model is not None:
            self._compute(self._model)
        return self._flow[name]

    def resize(self, name: str, cut: Cutter) -> None:
        """Paths through what is gone are gone."""
        self._trial = None
        self.refresh({})


@torch.no_grad()
def _take_values_(trial: nn.Module, model: nn.Module) -> None:
    """Parameters and buffers as they are in the network now; quantized layers have latent ones."""
    now: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    now |= model.named_buffers(remove_duplicate=False)
    for value in (trial.named_parameters, trial.named_buffers):
        for name, tensor in value(remove_duplicate=False):
            tensor.copy_(now[name])


@torch.no_grad()
def absolute_(model: nn.Module) -> None:
    """Absolute parameters and buffers; biases and running means 0."""
    for module in model.modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and value.is_floating_point():
                value.zero_() if name in ("bias", "running_mean") else value.abs_()
