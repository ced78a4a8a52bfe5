# SPDX-License-Identifier: Apache-2.0
"""Three starting points: what to compress to, and how to get there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.nn.config import TernaryConfig
from ternary_ops.quantize.engine_costs import share_saved
from ternary_ops.quantize.plan_rows import Plan
from ternary_ops.quantize.plans import plan


@dataclass(frozen=True)
class Recipe:
    """A recipe: layer configs and the Pruner's options for one aim.

        recipe = quantize.get_recipe("smallest")
        tops.quantize_(model, recipe.plan(model))
        pruner = tops.prune.Pruner(model, total_steps=n, optimizer=optimizer, **recipe.pruner)

    config      of the layers that are compressed
    classifier  of the last linear layer; None: 8 bits, dense, as plan has it
    stem        of the first convolution, where it has filters to spare; None: likewise
    pruner      options of Pruner
    why         what it is for, in a sentence

    A recipe whose config has scope "time" needs an example: recipe.plan(model, example=x).
    """

    name: str
    config: TernaryConfig
    why: str
    classifier: TernaryConfig | None = None
    stem: TernaryConfig | None = None
    pruner: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def plan(self, model: nn.Module, **options: Any) -> Plan:
        """tops.plan with this recipe's configs; options are those of tops.plan, rules go first.

        With an example, the stem stays dense where its empty quads save less than a few hundredths
        of the time of a call, as measured in the engine on this machine; its row says how much.
        """
        plain = {**options, "auto": False, "budget": None, "batches": None}  # nothing is measured
        made = plan(model, replace(self.config, scope="layer"), **plain)
        own: dict[str, TernaryConfig] = {}
        said: dict[str, str] = {}
        for row in made:
            first = row.reason.startswith(_FIRST) and row.shape[0] >= _STEM_FILTERS
            if self.stem is not None and self.stem.zeros > 0 and first:
                own[row.name] = self.stem
                if (example := options.get("example")) is not None:
                    zeros = self.stem.zeros
                    saved = share_saved(model, made, row.name, zeros, example)
                    said[row.name] = f"{_FIRST}: {zeros:.0%} empty quads save {saved:.1%} of a call"
                    if saved < _STEM_SAVING:
                        del own[row.name]
            if self.classifier is not None and row.reason.startswith("last linear layer"):
                own[row.name] = self.classifier
        rules = own | dict(options.pop("rules", None) or {})
        found = plan(model, self.config, rules=rules, **options)
        rows = (replace(row, reason=said.get(row.name, row.reason)) for row in found)
        return Plan(tuple(rows))

    def with_zeros(self, zeros: float | None, pattern: str | None) -> Recipe:
        """Copy of the recipe with another sparsity or pattern, where one is given. The stem keeps
        its pattern, and its zeros unless there are to be fewer.
        """
        changes = {"zeros": zeros, "pattern": pattern}
        given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
        classifier = self.classifier and replace(self.classifier, **given)
        stem = self.stem
        if stem is not None and zeros is not None:
            stem = replace(stem, zeros=min(stem.zeros, zeros))
        config = replace(self.config, **given)
        return replace(self, config=config, classifier=classifier, stem=stem)


_QUADS = TernaryConfig(zeros=0.9)
_EIGHT_BITS = TernaryConfig("int8", zeros=0.75)
_FIRST = "first convolution"  # the reason of a plan's row
_STEM_SAVING = 0.02  # of the time of a call, at least: less is not worth the taps
_STEM_FILTERS = 32  # at least: narrower stems have none to spare, and take little time
# Of three input channels a quad is one tap: half of them hold nearly all of a stem's energy.
_STEM = TernaryConfig("int8", zeros=0.6, scope="layer")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "fastest",
            replace(_QUADS, scope="time"),
            "ternary weights, nine quads in ten empty where they cost time, a stem of 8-bit quads",
            stem=_STEM,
        ),
        Recipe("smallest", _QUADS, "the same, the classifier as well", classifier=_QUADS),
        Recipe("safe", _EIGHT_BITS, "8-bit weights, three quads in four empty"),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; BadConfig lists those there are."""
    if name not in RECIPES:
        names = ", ".join(RECIPES)
        raise BadConfig(need(f"a recipe out of {names}", repr(name), "Pick one."))
    return RECIPES[name]
