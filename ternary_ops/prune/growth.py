# SPDX-License-Identifier: Apache-2.0
"""Growth: dynamic sparse training, in which pruned units come back while as many others go.

At each exchange a fraction of the units that are left is dropped, the lowest by a criterion, and as
many pruned units grow: the count stays exact. A unit that is dropped and grows in one exchange
keeps its value; others come back as zeros with zero optimizer state. Rules are subclasses of Growth
(prune.growth_rules has those there are); `register_growth` gives one a name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, fields
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor

from ternary_ops.errors import BadConfig, check_type, need
from ternary_ops.nn.patterns import Pattern, from_mask
from ternary_ops.prune.registry import Registry


@dataclass(frozen=True)
class Candidates:
    """One weight as a rule of growth sees it.

    name: of its layer. weight, gradient: [O, I, ...], the gradient also where the weight is pruned;
    zeros if the layer did not run. step: optimizer steps done. mask: bool of the weight's shape,
    False where it is pruned. rate: the learning rate. memory: what the rule's `observe` returned
    last, None before. seed: that of the rule.
    """

    name: str
    weight: Tensor
    gradient: Tensor
    pattern: Pattern
    step: int
    mask: Tensor
    rate: float
    memory: Tensor | None = None
    seed: int = 0

    @property
    def units(self) -> int:
        """Number of units of the weight."""
        return self.pattern.units(self.weight.shape)

    @property
    def kept(self) -> Tensor:
        """The units that are left, bool [units]."""
        return from_mask(self.mask, self.pattern)

    def generator(self, purpose: str = "") -> torch.Generator:
        """Seeded with name, step, purpose and the rule's seed alone: equal on all ranks and in a
        resumed run.
        """
        words = [self.name, self.step, *([purpose] if purpose else [])]
        words += [self.seed] if self.seed else []
        return torch.Generator().manual_seed(crc32(" ".join(map(str, words)).encode()))

    def uniform(self, purpose: str = "") -> Tensor:
        """Numbers in 0..1, float32 [units]; other purposes get other ones."""
        return torch.rand(self.units, generator=self.generator(purpose)).to(self.weight.device)


@dataclass(frozen=True)
class Growth:
    """A rule of dynamic sparse training. `Growth(grow="rigl", ...)` makes an object of the rule of
    that name; a subclass, such as RigL, says by `scores` which pruned units come back.

    drop          criterion by which units are dropped; None: that of the Pruner
    grow          name of the rule, for Growth itself
    every         steps between exchanges; None: those between updates of the Pruner's masks
    until         fraction of total_steps after which masks are fixed
    fraction      fraction of the surviving units dropped and grown at the first exchange
    decay         how the fraction falls to 0 at `until`: "cosine" along half a cosine, "constant"
                  not at all, a number p by (1 - t / until)^p
    random_start  draw the first mask at random, as in training from scratch; False: by the
                  Pruner's criterion, and the schedule may then rise by degrees
    seed          of what is random: first masks, and units that grow at random
    skip_update   apply no optimizer step to any parameter at the steps that exchange units
    """

    drop: str | None = None
    grow: InitVar[str | None] = None
    every: int | None = None
    until: float = 0.75
    fraction: float = 0.3
    decay: str | float = "cosine"
    random_start: bool = True
    skip_update: bool = False
    seed: int = 0

    # What a rule needs of the Pruner.
    usual_every: ClassVar[int | None] = None  # steps between updates unless the user says otherwise
    observes: ClassVar[bool] = False  # `observe` is to be called
    dense_gradients: ClassVar[bool] = False  # pruned weights need gradients at every step
    latent: ClassVar[bool] = False  # pruned weights keep latent values (Pruner's nested=False)

    def __new__(cls, drop: Any = None, grow: Any = None, *_: Any, **options: Any) -> Growth:
        """An object of the named rule's class; BadConfig for an unknown name."""
        if cls is Growth:
            cls = GROWTHS.find(grow)
        return object.__new__(cls)

    def __post_init__(self, grow: str | None) -> None:
        """Raises BadConfig for values out of range."""
        if grow is not None and GROWTHS.find(grow) is not type(self):
            got, do = f"{type(self).__name__}(grow={grow!r})", "Leave grow out, or use Growth."
            raise BadConfig(need("grow= with prune.Growth itself", got, do))
        check_type("seed", self.seed, int, "Pass that of the run.")
        check_type("drop", self.drop, (str, type(None)), 'Name a criterion, "magnitude".')
        for name in ("fraction", "until"):
            check_type(name, getattr(self, name), (int, float), "0.3 and 0.75 suit most networks.")
        if not (0 < self.fraction < 1 and 0 < self.until <= 1):
            got = f"fraction={self.fraction}, until={self.until}"
            what = "growth with 0 < fraction < 1 and 0 < until <= 1"
            raise BadConfig(need(what, got, "0.3 and 0.75 suit most networks."))
        named = self.decay in ("cosine", "constant")
        if not named and (isinstance(self.decay, (str, bool)) or not 0 <= self.decay < math.inf):
            what = 'decay "cosine", "constant" or an exponent >= 0'
            raise BadConfig(need(what, repr(self.decay), "Pass one of them."))

    def plan(self) -> str:
        """What a state must share. Options younger than the first version stand where they differ
        from what it did.
        """
        first = {"fraction": None, "until": None, "random_start": None}
        new = {"drop": None, "decay": "cosine", "skip_update": False, "seed": 0}
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "every"}
        own = {name: mine[name] for name in mine if name not in first | new}
        shown = {name: mine[name] for name in first}
        shown |= {name: mine[name] for name in new if mine[name] != new[name]} | own
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def fraction_at(self, progress: float) -> float:
        """The fraction at `progress` (0..1) of the steps."""
        if progress >= self.until:
            return 0.0
        t = progress / self.until
        if self.decay == "cosine":
            return self.fraction / 2 * (1 + math.cos(math.pi * t))
        exponent = 0.0 if isinstance(self.decay, str) else self.decay
        return self.fraction * math.pow(1 - t, exponent)

    def observe(self, candidates: Candidates) -> Tensor | None:
        """Called for each weight before every optimizer step, where the rule `observes`; may
        change the gradient in place. Returns what the rule will see as `memory`.
        """
        return None

    def drop_scores(self, candidates: Candidates) -> Tensor | None:
        """One score per unit, [units]; the lowest of those left go. None: the criterion's."""
        return None

    def drop_count(self, scores: Tensor, fraction: float, left: int) -> int:
        """How many of the `left` units go at an exchange; scores: by which they are ranked."""
        return int(fraction * left)

    def scores(self, candidates: Candidates) -> Tensor:
        """One score per unit, [units]; of the units that are pruned the highest grow. Here random
        numbers.
        """
        return candidates.uniform()

    def shares(self, candidates: Sequence[Candidates]) -> Sequence[float] | None:
        """For layers counted as one total: each one's share of what grows, where the rule gives
        it one; each layer then drops the same fraction. None: units of all layers compete.
        """
        return None


GROWTHS: Registry[type[Growth]] = Registry(
    "a growth rule", "pass an instance of prune.Growth, or add yours with prune.register_growth"
)


def register_growth(name: str, growth: type[Growth]) -> None:
    """Make `name` a value of Pruner(growth=); BadConfig for a taken name or no subclass."""
    if not (isinstance(growth, type) and issubclass(growth, Growth)):
        raise BadConfig(need("a subclass of prune.Growth", repr(growth), "Pass one."))
    GROWTHS.add(name, growth)


def get_growth(growth: str | Growth | None) -> Growth | None:
    """The rule of that name with its defaults; a Growth, or None, passes through."""
    return growth if growth is None or isinstance(growth, Growth) else GROWTHS.find(growth)()
