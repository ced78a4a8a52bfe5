# SPDX-License-Identifier: Apache-2.0
"""The two units of a budget: each says what the layers of a network cost, and checks a choice."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ternary_ops import runtime
from ternary_ops.budget.cost_model import Measured
from ternary_ops.budget.trial import pruned_at_once, with_configs
from ternary_ops.compiler import compile  # noqa: A004
from ternary_ops.errors import UnsupportedModel, need
from ternary_ops.io.container import WeightEntry, dumps
from ternary_ops.nn import TernaryLayer
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.nn.patterns import get_pattern
from ternary_ops.program.layer_costs import MOST_EMPTY, call_ms, measure, measure_beside
from ternary_ops.quantize.calibration import calibrate
from ternary_ops.quantize.engine_costs import eight_bits
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.runtime import Program

# Shares of empty units at which layers are measured; between them costs are interpolated.
SHARES = (0.0, 0.5, 0.75, 0.9, MOST_EMPTY)
Kinds = Mapping[str, tuple[str, ...]]  # of weights that a layer may have, by name


class Checked(NamedTuple):
    """A network as chosen: costs of its layers, and of all of it."""

    layers: Mapping[str, float]
    total: float


class Unit(Protocol):
    """Milliseconds or bytes. widths: shares of all groups' channels at which costs are measured;
    alternating: of those of every other group.
    """

    name: ClassVar[str]
    widths: ClassVar[tuple[float, ...]]
    alternating: ClassVar[tuple[float, ...]]

    def share(self, config: TernaryConfig) -> float:
        """The share of empty units that the cost of a layer goes by."""

    def begin(self, network: nn.Module, inputs: list[Tensor], planned: Plan) -> None:
        """Get ready to check choices for this network."""

    def table(
        self,
        network: nn.Module,
        inputs: list[Tensor],
        planned: Plan,
        free: Kinds,
        shares: Sequence[float],
    ) -> Measured:
        """Costs of a float network's planned layers: of those in `free` at all shares of empty
        units.
        """

    def check(self, network: nn.Module, inputs: list[Tensor], planned: Plan) -> Checked:
        """What the network costs with this plan."""


class Milliseconds:
    """Of one call on one sample, in the engine, on this machine. Tables of costs have random codes;
    a choice is checked with the network's own, pruned at once: its quads are spread less evenly
    over filters, and take up to a tenth longer.

    What is checked takes turns with the whole network, dense at 8 bits: where a machine is slower
    for a while than it is in the middle, so is that one. (Beside its best moment, all that is
    checked later would look faster than it is.)
    """

    name: ClassVar[str] = "ms"
    widths: ClassVar[tuple[float, ...]] = (0.75, 0.5, 0.25)
    alternating: ClassVar[tuple[float, ...]] = (0.5,)

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._dense: Program | None = None
        self._times: list[float] = []  # of the dense network

    def begin(self, network: nn.Module, inputs: list[Tensor], planned: Plan) -> None:
        """See Unit."""
        self._dense = _program(network, inputs, planned)
        x = np.random.default_rng(0).random(self._dense.sample, np.float32)
        with runtime.num_threads(self.threads):
            self._times = [call_ms(partial(self._dense, x))]

    def share(self, config: TernaryConfig) -> float:
        """Of empty quads, where units have fewer channels than a quad: if zeros fall by chance."""
        width = get_pattern(config.pattern).cols
        return config.zeros ** (4 / width) if 0 < width < 4 else config.zeros

    def table(
        self,
        network: nn.Module,
        inputs: list[Tensor],
        planned: Plan,
        free: Kinds,
        shares: Sequence[float],
    ) -> Measured:
        """See Unit."""
        program = _program(network, inputs, planned)
        kinds = sorted({kind for kinds in free.values() for kind in kinds})
        with runtime.num_threads(self.threads):
            costs = measure(program, list(free), [(k, z) for k in kinds for z in shares])
            layers: dict[str, Any] = {n: dict(c.curves) for n, c in costs.layers.items()}
            _check_all(free, layers)
            rest = costs.others
            for (kind, zeros), names in self._fixed(planned, free).items():
                found = measure(program, names, [(kind, zeros)]).layers
                layers |= {name: dict(cost.curves) for name, cost in found.items()}
                rest -= sum(cost.ms(kind, zeros) for cost in found.values())
        return Measured(layers, max(rest, 0.0))

    def _fixed(self, planned: Plan, free: Kinds) -> dict[tuple[str, float], list[str]]:
        """Names of the other layers by kind and share of empty quads."""
        found: dict[tuple[str, float], list[str]] = {}
        for row in planned:
            if row.config is not None and row.name not in free:
                found.setdefault((row.action, self.share(row.config)), []).append(row.name)
        return found

    def check(self, network: nn.Module, inputs: list[Tensor], planned: Plan) -> Checked:
        """See Unit."""
        if self._dense is None:
            raise TypeError("check before begin")  # unreachable: solve begins
        trial = pruned_at_once(network, planned)
        calibrate(trial, inputs, method="minmax")
        program = compile(trial, inputs[0][:1])
        with runtime.num_threads(self.threads):
            layers, whole, dense = measure_beside(program, self._dense)
        self._times.append(dense)
        slower = dense / statistics.median(self._times)
        return Checked({name: ms / slower for name, ms in layers.items()}, whole / slower)


class Bytes:
    """Of the file of the compiled network."""

    name: ClassVar[str] = "bytes"
    widths: ClassVar[tuple[float, ...]] = (0.5,)  # codes take as many as there are weights
    alternating: ClassVar[tuple[float, ...]] = ()

    def begin(self, network: nn.Module, inputs: list[Tensor], planned: Plan) -> None:
        """See Unit: files are the same at any time."""

    def share(self, config: TernaryConfig) -> float:
        """Of empty units."""
        return config.zeros

    def table(
        self,
        network: nn.Module,
        inputs: list[Tensor],
        planned: Plan,
        free: Kinds,
        shares: Sequence[float],
    ) -> Measured:
        """See Unit."""
        layers: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for kind in sorted({kind for kinds in free.values() for kind in kinds}):
            for zeros in shares:
                trial = trial_at(network, planned, free, kind, zeros)
                for name in free:
                    codes, _ = _layer(trial, name).integer_weight()
                    cost = float(_coded(kind, _engine_order(codes)))
                    layers.setdefault(name, {}).setdefault(kind, []).append((zeros, cost))
        checked = _saved(trial, inputs)
        _check_all(free, checked.layers)
        for row in planned:
            if row.config is not None and row.name not in free and row.name in checked.layers:
                alone = checked.layers[row.name]
                layers[row.name] = {row.action: [(row.config.zeros, alone)]}
        rest = checked.total - sum(checked.layers[name] for name in layers)
        return Measured(layers, max(rest, 0.0))

    def check(self, network: nn.Module, inputs: list[Tensor], planned: Plan) -> Checked:
        """See Unit."""
        return _saved(pruned_at_once(network, planned), inputs)


def trial_at(network: nn.Module, planned: Plan, free: Kinds, kind: str, zeros: float) -> nn.Module:
    """The network with all free layers of one kind, and that share of their units empty at once."""
    configs = {name: at(planned, name, kind, zeros) for name in free}
    return pruned_at_once(network, with_configs(planned, configs))


def at(planned: Plan, name: str, kind: str, zeros: float) -> TernaryConfig:
    """A layer's config with other weights and zeros, which are its own alone."""
    config = planned[name].config
    if config is None:
        raise TypeError(f"{name} has no config")  # unreachable: free layers have one
    return replace(config, weights=kind, zeros=zeros, scope="layer")


def _program(network: nn.Module, inputs: list[Tensor], planned: Plan) -> Program:
    made = eight_bits(network, inputs[0][:1], planned)
    if not isinstance(made, Program):
        raise TypeError("islands without islands=True")  # unreachable
    return made


def _check_all(free: Iterable[str], found: Iterable[str]) -> None:
    missing = sorted(set(free) - set(found))
    if missing:
        got = f"{', '.join(missing)} outside of it"
        raise UnsupportedModel(need("layers that the engine runs", got, "Skip them by a rule."))


def _layer(trial: nn.Module, name: str) -> TernaryLayer:
    layer = trial.get_submodule(name)
    if not isinstance(layer, TernaryLayer):
        raise TypeError(f"{name} is not quantized")  # unreachable
    return layer


def _engine_order(codes: Tensor) -> NDArray[Any]:
    """[O, R, S, I] as programs have it; linear layers [O, 1, 1, I]."""
    wide = codes if codes.ndim == 4 else codes[:, :, None, None]
    return wide.permute(0, 2, 3, 1).contiguous().numpy()


_STORED = {"float": "float32"}  # a weight's kind in files, where it is another: norms, constants


def _saved(trial: nn.Module, inputs: list[Tensor]) -> Checked:
    calibrate(trial, inputs)
    program = compile(trial, inputs[0][:1])
    layers = {
        weight.name: float(_coded(_STORED.get(weight.kind, weight.kind), weight.array))
        for weight in program.graph.weights
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trial.safetensors")
        program.save(file)
        return Checked(layers, float(file.stat().st_size))


def _coded(kind: str, values: NDArray[Any]) -> int:
    """Bytes of one weight in a file of its own, without what the file itself takes."""
    full, bare = (
        len(dumps("weights", {}, [WeightEntry("w", kind, v)])) for v in (values, values[:0])
    )
    return full - bare
