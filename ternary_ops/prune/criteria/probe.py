# SPDX-License-Identifier: Apache-2.0
"""A network on trial: a private copy that runs batches and gives gradients, before training."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, BadWeights, check_type, need
from ternary_ops.graph.batches import samples
from ternary_ops.graph.replace import replace_modules
from ternary_ops.graph.wrappers import copy_of, unwrap
from ternary_ops.nn import TernaryLayer
from ternary_ops.prune.criteria.score import mean_over_ranks

Loss: TypeAlias = Callable[[Any, Any], Tensor]
Pairs: TypeAlias = Sequence[tuple[Tensor, Any]]


@contextmanager
def probing(model: nn.Module) -> Iterator[nn.Module]:
    """A copy of the network to run while the body does, with gradients; the network, its modes and
    the state of torch's random numbers stay as they are.

    Quantized layers are float ones in it, with latent weights. Only the weights of convolutions and
    linear layers require gradients.
    """
    trial = copy_of(unwrap(model))
    twins: dict[nn.Module, nn.Module] = {
        m: _float_twin(m) for m in trial.modules() if isinstance(m, TernaryLayer)
    }
    replace_modules(trial, twins)
    trial = twins.get(trial, trial)
    for parameter in trial.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    for weight in weights_of(trial).values():
        weight.requires_grad_(True)
    devices = {p.device.index for p in trial.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), torch.enable_grad():
        yield trial


def _float_twin(layer: Any) -> nn.Module:
    twin: nn.Module = layer.to_float()
    twin.weight = nn.Parameter(layer.weight.detach().clone())
    return twin


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weight of each convolution and linear layer by the layer's name."""
    return {
        name: weight
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
        and (weight := layer._parameters.get("weight")) is not None
    }


def pairs(model: nn.Module, batches: Iterable[Any], labels: bool) -> Pairs:
    """Inputs on the network's device and their labels; BadConfig where `labels` are needed and a
    batch has none.
    """
    found = list(samples(model, batches))
    device = found[0][0].device
    if labels and any(label is None for _, label in found):
        do = "Pass batches of (x, y); for losses without labels, y may be x."
        raise BadConfig(need("batches with labels for the loss", "inputs alone", do))
    return [(x, y.to(device) if isinstance(y, Tensor) else y) for x, y in found]


def gradients(
    model: nn.Module,
    x: Tensor,
    y: Any,
    loss: Loss,
    graph: bool = False,
    names: Container[str] | None = None,
) -> dict[str, Tensor]:
    """Of one batch, the gradient of the loss by each weight, or by those of these layers; zeros
    where the layer did not run.

    graph: keep what a gradient of the gradients needs. Raises BadWeights where they are not finite.
    """
    weights = weights_of(model)
    if names is not None:
        weights = {name: weight for name, weight in weights.items() if name in names}
    value = loss(model(x), y)
    check_type("loss(output, label)", value, Tensor, "Pass a function such as F.cross_entropy.")
    if value.numel() != 1 or not value.requires_grad:
        got = f"{list(value.shape)}, {'with' if value.requires_grad else 'without'} a gradient"
        do = "Reduce it to its mean over the samples, without detach."
        raise BadConfig(need("a loss of one number with a gradient", got, do))
    found = torch.autograd.grad(
        value.sum(), list(weights.values()), create_graph=graph, allow_unused=True
    )
    made = {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }
    check_finite("gradients of the batches", made)
    return made


def mean_gradients(model: nn.Module, batches: Pairs, loss: Loss) -> dict[str, Tensor]:
    """The mean over batches, and over ranks, of the gradient of the loss by each weight."""
    total = {name: torch.zeros_like(weight) for name, weight in weights_of(model).items()}
    for x, y in batches:
        for name, gradient in gradients(model, x, y, loss).items():
            total[name] += gradient / len(batches)
    return {name: mean_over_ranks(value) for name, value in total.items()}


def check_finite(what: str, values: dict[str, Tensor]) -> None:
    """Raise BadWeights, naming the layers, unless all values are finite."""
    bad = [name for name, value in values.items() if not bool(value.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        got = f"NaN or infinity in {', '.join(bad[:3])}{more}"
        do = "Check the batches, their scale and the loss; nothing has changed."
        raise BadWeights(need(f"finite {what}", got, do))
