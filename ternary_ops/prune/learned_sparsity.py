# SPDX-License-Identifier: Apache-2.0
"""LearnedSparsity: zeros that a network learns with its weights, and the masks that they end in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ternary_ops.errors import BadConfig, BadWeights, need
from ternary_ops.graph.wrappers import unwrap
from ternary_ops.nn.patterns import from_mask, to_mask
from ternary_ops.prune.gates import GATES, Gate
from ternary_ops.prune.optimizer_state import forget
from ternary_ops.prune.targets import find_targets


class LearnedSparsity:
    """Lets every weight of a network be computed through a gate while it trains.

        learned = prune.LearnedSparsity(model, "l0", pattern="1x4")
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)  # those of the gates too
        for x, y in batches:
            loss = F.cross_entropy(model(x), y) + 0.5 * learned.loss()
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        masks = learned.finish_(optimizer)  # ordinary layers with exact zeros

    gate: "l0", "str", "variational", "movement" or one of your own, see prune.gates.
    The strength of the loss decides how many zeros there will be: nothing else does. For an exact
    count prune what is left with a Pruner.
    """

    def __init__(
        self,
        model: nn.Module,
        gate: str,
        pattern: str | None = None,
        skip: str | Sequence[str] = (),
    ) -> None:
        """Put gates before the weights of a float network's convolutions and linear layers, or of a
        quantized one's ternary layers.

        pattern: the units of a gate; default: that of the quantized layers' configs, "element".
        skip: globs of layers to leave out.

        Raises BadConfig for unknown names, UnsupportedModel for weights that are computed already.
        """
        made = GATES.find(gate)
        self._targets = find_targets(unwrap(model), 0.0, pattern, None, skip, None)
        counted = sorted({t.pattern.name for t in self._targets if t.pattern.of})
        if counted:
            do = "Learn blocks or elements, and let a Pruner make N:M of what is left."
            raise BadConfig(need("a pattern whose units are free of each other", counted[0], do))
        self._units = sum(target.units for target in self._targets)  # gates hide the weights
        self._gates: dict[str, Gate] = {}
        self._trained: dict[str, nn.Parameter] = {}
        for target in self._targets:
            weight = target.weight
            own = made(weight.detach(), target.pattern).train(target.owners[0].training)
            self._gates[target.name], self._trained[target.name] = own, weight
            for owner in target.owners:
                parametrize.register_parametrization(owner, "weight", own)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the gates, which are among the network's too."""
        for gate in self._open().values():
            yield from gate.parameters()

    def loss(self) -> Tensor:
        """The mean price of a unit, to be added to the loss of the task."""
        gates = self._open()
        prices = [gate.price(self._trained[name]).sum() for name, gate in gates.items()]
        return torch.stack(prices).sum() / self._units

    @property
    def zeros(self) -> float:
        """The fraction of units that would be zero if training ended now."""
        off = sum(int((~kept).sum()) for _, kept in self._final().values())
        return off / self._units

    @torch.no_grad()
    def finish_(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Tensor]:
        """Take the gates away: weights are as in eval mode, exactly 0.0 where units are off, and
        the masks of quantized layers say so. Returns them by layer: bool, True survives.

        The parameters are those the layers had before. optimizer: forgets the gates, and its state
        of zeros is zero. Raises BadWeights, with nothing changed, for layers that would vanish or
        are not finite.
        """
        final = self._final()
        gates = list(self.parameters())
        bad = [name for name, (weight, _) in final.items() if not bool(weight.isfinite().all())]
        empty = [name for name, (_, kept) in final.items() if not bool(kept.any())]
        if bad or empty:
            got = f"none in {', '.join(empty)}" if empty else f"NaN or infinity in {', '.join(bad)}"
            do = "Nothing was changed: lower the strength of the loss, or the learning rate."
            raise BadWeights(need("finite weights that are left in every layer", got, do))
        masks: dict[str, Tensor] = {}
        for target in self._targets:
            weight, kept = final[target.name]
            for owner in target.owners:
                parametrize.remove_parametrizations(owner, "weight", leave_parametrized=False)
            target.weight.copy_(weight)
            masks[target.name] = to_mask(kept, weight.shape, target.pattern).contiguous()
            target.set_mask(masks[target.name])
            target.apply_mask(optimizer)
        forget(optimizer, gates)
        self._gates.clear()
        return masks

    def _open(self) -> dict[str, Gate]:
        if not self._gates:
            raise BadConfig(need("gates before finish_", "none any more", "Ask before."))
        return self._gates

    @torch.no_grad()
    def _final(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each layer the weight in eval mode, and whether each unit is on."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for target in self._targets:
            gate = self._open()[target.name]
            training = gate.training
            weight = gate.eval()(self._trained[target.name])
            gate.train(training)
            found[target.name] = weight, from_mask(weight != 0, target.pattern)
        return found
