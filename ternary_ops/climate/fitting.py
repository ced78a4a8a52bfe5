# SPDX-License-Identifier: Apache-2.0
"""Training of downscaling models: data sets by name in, a Downscaler out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops.climate.downscaler import Downscaler, domain_channels
from ternary_ops.climate.grid import Grid, factor_between, interpolate
from ternary_ops.climate.model_file import KINDS, Input
from ternary_ops.climate.networks import DomainNetwork, Ensemble, LocalNetwork
from ternary_ops.climate.samples import Data, Features, Samples, Variable, in_memory, match
from ternary_ops.climate.training_data import cells_of
from ternary_ops.climate.units import conversion
from ternary_ops.compiler import compile as compile_network
from ternary_ops.errors import BadConfig, UnsupportedShape, check_type, need
from ternary_ops.train.config import TrainConfig, optimizer_for
from ternary_ops.train.loop import TrainLoop
from ternary_ops.train.rates import one_cycle

Floats = NDArray[np.float64]
_CONSERVED = 1e-3  # of the field's deviation: coarse fields that come so near are area means


@dataclass(frozen=True)
class Recipe:
    """Options of `fit`.

    features  what the model sees and makes
    kind      "local", "domain", or None: local where all predictors lie on one grid that the
              target's divides evenly, the coarse field of the target among them
    members   networks of a domain, trained from seeds `seed`, `seed + 1`, ..., in one program
    width     channels of the convolutions
    depth     convolutions of a local network
    dropout, ridge  of a domain network: share of values dropped before its last layer, strength of
              the ridge regression that is its linear skip
    """

    features: Features = field(default_factory=Features)
    kind: str | None = None
    members: int = 1
    width: int = 32
    depth: int = 4
    dropout: float = 0.5
    ridge: float = 300.0
    epochs: int = 12
    rate: float = 1e-3
    batch: int = 64
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises BadConfig."""
        if self.kind not in (None, *KINDS):
            raise BadConfig(need(f"kind of {', '.join(KINDS)}", repr(self.kind), "Use None."))
        for name in ("members", "width", "depth", "epochs", "batch"):
            check_type(name, getattr(self, name), int, "Use a whole number.")
            if getattr(self, name) < 1:
                raise BadConfig(need(f"{name} >= 1", getattr(self, name), "Use the default."))

    @property
    def training(self) -> TrainConfig:
        """The part that the optimizer is told."""
        return TrainConfig(
            self.epochs, self.rate, self.batch, self.seed, weight_decay=self.weight_decay
        )


def fit(
    data: Data,
    recipe: Recipe | None = None,
    units: Mapping[str, str] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Downscaler:
    """Train a model on the steps that all data sets have.

    data: data sets by name; one is the target (`Features.target`), the others predictors, on as
    many grids as there are. Steps and cells with missing values are left out of the loss. units: of
    variables whose data sets say none. Raises BadConfig, UnsupportedShape.
    """
    recipe = recipe or Recipe()
    samples = in_memory(match(data, recipe.features, units))
    if samples.target is None:
        raise BadConfig(need("a target to learn from", sorted(data), "Add it to the data."))
    kind = recipe.kind or ("local" if _nests(samples, samples.target) else "domain")
    train = _fit_local if kind == "local" else _fit_domain
    return train(samples, samples.target, recipe, on_step)


def training_steps(data: Data, recipe: Recipe, units: Mapping[str, str] | None = None) -> int:
    """How often `fit` calls on_step, at most: for progress bars."""
    steps = len(match(data, recipe.features, units).times)
    return recipe.training.steps(steps) * recipe.members


def _nests(samples: Samples, target: Variable) -> bool:
    """Whether a local model can learn this."""
    first = samples.inputs[0].grid
    one_grid = all(one.grid.same(first) for one in samples.inputs)
    named = any(one.name == target.name for one in samples.inputs)
    return one_grid and named and factor_between(first, target.grid) is not None


def _fit_domain(
    samples: Samples, target: Variable, recipe: Recipe, on_step: Callable[[], None]
) -> Downscaler:
    grid = max((one.grid for one in samples.inputs), key=lambda g: g.shape[0] * g.shape[1])
    inputs, parts = [], []
    for one in samples.inputs:
        part = interpolate(one.values, one.grid, grid, conservative=False)
        with np.errstate(invalid="ignore"):
            mean, deviation = np.nanmean(part, 0), np.nanstd(part, 0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        inputs.append(Input(one.source, one.name, one.units, one.grid, mean, deviation))
        parts.append((part - mean) / deviation)
    x = domain_channels(np.stack(parts, 1), samples.times, recipe.features)
    cells = cells_of(target.values)
    y = target.values[:, cells]
    mean = np.nanmean(y, 0)
    deviation = float(np.nanstd(y - mean)) or 1.0
    there = np.isfinite(x).all((1, 2, 3)) & np.isfinite(y).any(1)
    _need_steps(there)
    rows, goal = x[there], (y[there] - mean) / deviation
    members = []
    for i in range(recipe.members):
        torch.manual_seed(recipe.seed + i)
        net = DomainNetwork(x.shape[1], grid.shape, y.shape[1], recipe.width, recipe.dropout)
        full = np.isfinite(goal).all(1)
        net.set_skip_(rows[full], goal[full], recipe.ridge)
        _train(net, rows, goal, replace(recipe, seed=recipe.seed + i), on_step)
        members.append(net)
    network = Ensemble(members).eval()
    program = compile_network(network, torch.zeros(1, *x.shape[1:]))
    return Downscaler(
        kind="domain",
        program=program,
        features=_with_inputs(recipe.features, samples, target),
        inputs=tuple(inputs),
        target=replace(target, values=None),
        mean=mean,
        deviation=deviation,
        grid=grid,
        dates=samples.times.keys,
        cells=cells,
    )


def _fit_local(
    samples: Samples, target: Variable, recipe: Recipe, on_step: Callable[[], None]
) -> Downscaler:
    if not _nests(samples, target):
        do = "Use kind='domain', or give the coarse field of the target on a nested grid."
        got = ", ".join(f"{v.label} of {v.grid.describe()}" for v in samples.inputs)
        wanted = f"predictors on one grid that divides {target.grid.describe()}"
        raise UnsupportedShape(need(wanted, got, do))
    grid = samples.inputs[0].grid
    factor = factor_between(grid, target.grid)
    if factor is None:
        raise UnsupportedShape(need("nested grids", grid.describe(), "Use kind='domain'."))
    own = next(i for i, one in enumerate(samples.inputs) if one.name == target.name)
    inputs = tuple(_scalar_input(one) for one in samples.inputs)
    coarse = _in_units(samples.inputs[own], target.units)
    inputs = (*inputs[:own], _scalar_input(coarse), *inputs[own + 1 :])
    mean, deviation = inputs[own].mean, float(inputs[own].deviation)
    fields = [*samples.inputs[:own], coarse, *samples.inputs[own + 1 :]]
    x = np.stack(
        [(v.values - i.mean) / i.deviation for v, i in zip(fields, inputs, strict=True)], 1
    )
    y = (target.values[:, None] - mean) / deviation
    there = np.isfinite(x).any((1, 2, 3)) & np.isfinite(y).any((1, 2, 3))
    _need_steps(there)
    torch.manual_seed(recipe.seed)
    net = LocalNetwork(x.shape[1], own, factor, recipe.width, recipe.depth)
    _train(net, np.nan_to_num(x[there]), y[there], recipe, on_step)
    program = compile_network(net, torch.zeros(1, x.shape[1], *grid.shape))
    features = replace(
        _with_inputs(recipe.features, samples, target), season=False, trend=False, previous=False
    )
    return Downscaler(
        kind="local",
        program=program,
        features=features,
        inputs=inputs,
        target=replace(target, values=None),
        mean=np.asarray(mean),
        deviation=deviation,
        grid=grid,
        dates=samples.times.keys,
        conserve=_are_means(coarse, target, grid),
    )


def _scalar_input(one: Variable) -> Input:
    deviation = float(np.nanstd(one.values)) or 1.0
    mean = np.asarray(np.nanmean(one.values))
    return Input(one.source, one.name, one.units, one.grid, mean, np.asarray(deviation))


def _in_units(one: Variable, units: str) -> Variable:
    factor, offset = conversion(one.units, units)
    return replace(one, values=one.values * factor + offset, units=units)


def _are_means(coarse: Variable, target: Variable, grid: Grid) -> bool:
    """Whether the coarse field is the area mean of the fine one, so that it can be conserved."""
    means = interpolate(target.values, target.grid, grid, conservative=True)
    both = np.isfinite(means) & np.isfinite(coarse.values)
    apart = np.abs(means - coarse.values)[both]
    return bool(both.any() and apart.mean() <= _CONSERVED * np.nanstd(coarse.values))


def _with_inputs(features: Features, samples: Samples, target: Variable) -> Features:
    named = tuple((one.source, one.name) for one in samples.inputs)
    return replace(features, inputs=named, variable=target.name, target=target.source)


def _need_steps(there: NDArray[np.bool_]) -> None:
    if there.sum() < 2:
        do = "Give a longer period, other variables, or gap='repeat'."
        raise BadConfig(need("two or more complete steps", int(there.sum()), do))


def _train(
    net: nn.Module, x: Floats, y: Floats, recipe: Recipe, on_step: Callable[[], None]
) -> None:
    """Mean squared error over what the target has; batches are shuffled anew in each epoch."""
    inputs = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    known = torch.from_numpy(np.isfinite(y))
    goal = torch.from_numpy(np.nan_to_num(y).astype(np.float32))
    config = recipe.training
    each = config.batches(len(x))

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, place = divmod(step, each)
        order = torch.from_numpy(np.random.default_rng((recipe.seed, epoch)).permutation(len(x)))
        at = order[place * recipe.batch : (place + 1) * recipe.batch]
        return inputs[at], goal[at], known[at]

    def loss(model: nn.Module, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        error = (model(rows[0]) - rows[1])[rows[2]]
        squares: Tensor = error**2
        return squares.mean()

    optimizer = optimizer_for(net, config)
    steps = config.steps(len(x))
    rate = one_cycle(optimizer, config.rate, steps, config.warmup)
    TrainLoop(net, optimizer, rate, steps, on_step=on_step).run(batch, loss)
