# SPDX-License-Identifier: Apache-2.0
"""Criteria by name, and criteria made of a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.prune.criteria.activations import InputScore, along_inputs
from ternary_ops.prune.criteria.probe import check_finite, mean_gradients, pairs, probing
from ternary_ops.prune.criteria.score import Score, magnitude, mean_over_ranks, wide
from ternary_ops.prune.cutter import Cutter
from ternary_ops.prune.registry import Registry

_OF_WEIGHT, _OF_NETWORK = ("weight", "gradients", "inputs"), ("batches", "loss")

CRITERIA: Registry[Callable[[], Score]] = Registry(
    "a criterion", "add yours with prune.register_criterion(name, score)"
)


def register_criterion(
    name: str,
    score: type[Score] | Callable[..., Any],
    reads: str | Sequence[str] = ("weight",),
) -> None:
    """Make `name` a value of Pruner(criterion=).

    score: a function of what it reads, in that order, or a subclass of Score without arguments,
        which says itself what it reads.
    reads: some of "weight" [O, I, ...], "gradients" (of the weight's shape: the mean over the
        Pruner's batches, without batches the running mean 0.9 over training steps) and "inputs"
        (the root mean square of the input that each weight is multiplied with, of a shape that
        broadcasts to the weight's): called for each weight, it returns scores of its shape. Or
        ("batches",) or ("batches", "loss"): called once, as score(model, batches, loss), with a
        copy of the network and a list of pairs (x, y), it returns {layer's name: scores}.

    Raises BadConfig for a taken name, for what cannot be called, and for other reads.
    """
    if not callable(score):
        do = "Pass a function or a subclass of prune.Score."
        raise BadConfig(need("a criterion that can be called", repr(score), do))
    reads = (reads,) if isinstance(reads, str) else tuple(reads)
    if isinstance(score, type) and issubclass(score, Score):
        CRITERIA.add(name, score)
        return
    function = cast("Callable[..., Any]", score)
    if reads in (_OF_NETWORK, _OF_NETWORK[:1]):
        CRITERIA.add(name, partial(OfNetwork, function, reads))
    elif reads and set(reads) <= set(_OF_WEIGHT) and len(set(reads)) == len(reads):
        CRITERIA.add(name, partial(OfWeight, function, reads))
    else:
        what = f'reads as some of {", ".join(_OF_WEIGHT)}, or as ("batches",), ("batches", "loss")'
        do = "A function takes exactly what it reads, in that order."
        raise BadConfig(need(what, repr(reads), do))


def get_criterion(
    name: str,
    optimizer: torch.optim.Optimizer | None,
    batches: Any = None,
    loss: Any = None,
) -> Score:
    """A fresh Score; BadConfig for an unknown name, or something to read that is missing."""
    score = CRITERIA.find(name)()
    if loss is not None and not callable(loss):
        do = "Pass a function such as torch.nn.functional.cross_entropy."
        raise BadConfig(need("loss as a function of output and label", repr(loss), do))
    gradients = score.reads_gradients or "gradients" in score.reads
    if isinstance(score, OfWeight) and batches is not None:
        gradients, needs_loss = False, "gradients" in score.reads
    else:
        needs_loss = "loss" in score.reads
    missing = {
        "optimizer": gradients and optimizer is None,
        "batches": "batches" in score.reads and batches is None,
        "loss": needs_loss and loss is None,
    }
    for what, lacks in missing.items():
        if lacks:
            article = "an" if what == "optimizer" else "the"
            which = "gradients" if what == "optimizer" else what
            whole = f"{article} {what} for criterion {name!r}, which reads {which}"
            raise BadConfig(need(whole, f"{what}=None", f"Pass {what}= to the Pruner."))
    return score


class OfWeight(Score):
    """The criterion that a function of each weight makes; magnitude before anything was read."""

    def __init__(self, function: Callable[..., Tensor], reads: tuple[str, ...]) -> None:
        super().__init__()
        self.function, self.reads = function, reads
        self._inputs = InputScore() if "inputs" in reads else None
        self._settled = False  # the gradients are those of the batches

    def watch(self, name: str, layers: Sequence[nn.Module]) -> None:
        """Observe inputs, if they are read."""
        if self._inputs is not None:
            self._inputs.watch(name, layers)

    def prepare(self, model: nn.Module, batches: Any, loss: Any) -> None:
        """Read what there is to read from the batches."""
        if self._inputs is not None:
            self._inputs.prepare(model, batches, loss)
        if "gradients" in self.reads:
            self._settled = True
            with probing(model) as trial:
                made = mean_gradients(trial, pairs(trial, batches, labels=True), loss)
            self.memory = {name: wide(value) for name, value in made.items()}

    def observe(self, name: str, weight: Tensor) -> None:
        """Average the gradient, and the inputs."""
        if self._inputs is not None:
            self._inputs.observe(name, weight)
        if "gradients" in self.reads and weight.grad is not None and not self._settled:
            self.average(name, wide(weight.grad.detach()))

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """Those of the function."""
        given: dict[str, Tensor | None] = {"weight": weight.detach()}
        given["gradients"] = self.known(name, weight)
        if self._inputs is not None:
            known = self._inputs.known(name, weight)
            given["inputs"] = None if known is None else along_inputs(known.sqrt(), weight, groups)
        values = [given[key] for key in self.reads]
        if any(value is None for value in values):
            return magnitude(weight)
        return check_shape(self.function(*values), name, weight)

    def state(self) -> dict[str, Tensor]:
        """Gradients by layer, and inputs."""
        inputs = {} if self._inputs is None else self._inputs.state()
        return {**super().state(), **{f"inputs:{name}": value for name, value in inputs.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of state()."""
        inputs = {n[7:]: value for n, value in state.items() if n.startswith("inputs:")}
        if self._inputs is not None:
            self._inputs.restore(inputs)
        super().restore({n: v for n, v in state.items() if not n.startswith("inputs:")})

    def resize(self, name: str, cut: Cutter) -> None:
        """Both."""
        super().resize(name, cut)
        if self._inputs is not None:
            self._inputs.resize(name, cut)


class OfNetwork(Score):
    """The criterion that a function of the network and its batches makes: fixed before training."""

    def __init__(
        self, function: Callable[..., Mapping[str, Tensor]], reads: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.function, self.reads = function, reads
        self._weights: dict[str, Tensor] = {}

    def watch(self, name: str, layers: Sequence[nn.Module]) -> None:
        """Remember what scores are to be of."""
        self._weights[name] = cast(Tensor, layers[0].weight).detach()

    def prepare(self, model: nn.Module, batches: Any, loss: Any) -> None:
        """Call the function."""
        with probing(model) as trial:
            given = pairs(trial, batches, labels="loss" in self.reads)
            made = self.function(*((trial, given, loss)[: 1 + len(self.reads)]))
        if not isinstance(made, Mapping) or not made.keys() >= self._weights.keys():
            missing = sorted(self._weights.keys() - set(made if isinstance(made, Mapping) else ()))
            do = "Return {name: scores} for each weight of prune.criteria.weights_of(model)."
            raise BadConfig(need("scores of every layer to prune", f"none of {missing}", do))
        for name, weight in self._weights.items():
            value = check_shape(made[name], name, weight)
            self.memory[name] = mean_over_ranks(wide(value.detach()))
        self._weights.clear()
        check_finite("scores", self.memory)

    def scores(self, name: str, weight: Tensor, groups: int) -> Tensor:
        """What the function returned."""
        known = self.known(name, weight)
        if known is None:
            what = f"scores of {name!r} from batches"
            raise BadConfig(need(what, "none", "Pass batches= to the Pruner."))
        return known


def check_shape(scores: Any, name: str, weight: Tensor) -> Tensor:
    """The scores; BadConfig unless they have the weight's shape."""
    if isinstance(scores, Tensor) and scores.shape == weight.shape:
        return scores
    got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    what = f"scores of {name!r} of its weight's shape {list(weight.shape)}"
    raise BadConfig(need(what, got, "Score each weight; the Pruner sums over units."))
