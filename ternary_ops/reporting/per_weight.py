# SPDX-License-Identifier: Apache-2.0
"""Accuracy per weight that is left: figures to plot over nonzero weights, or over stored bits.

"Sparsity in Deep Learning" (Hoefler et al. 2021) defines a metric of pruned parameter efficiency,
whose equation was not available to us: none of these claims to be it. The first is the accuracy
density of Bianco et al. 2018 (arXiv 1810.00736) with the weights that are left for all weights; the
second counts samples in place of percent; the third, ours, counts halvings of the error, since the
last points of accuracy are the hardest. Show a curve of small dense networks beside them: a small
network has a high density of accuracy, pruned or not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ternary_ops.errors import BadConfig, need


class Efficiency(NamedTuple):
    """accuracy_density: percent per million nonzero weights. correct_per_weight: samples that are
    right per nonzero weight. our_halvings_per_million: -log2(1 - accuracy) per million of them.
    """

    accuracy_density: float
    correct_per_weight: float
    our_halvings_per_million: float


def efficiency(correct: int, of: int, nonzero: int) -> Efficiency:
    """The figures of a network with so many nonzero weights that has `correct` of `of` samples
    right; the last one is infinite if all are. BadConfig for other counts.
    """
    if not (0 <= correct <= of and of > 0 and nonzero > 0):
        got = f"{correct} of {of} with {nonzero}"
        raise BadConfig(need("0 <= correct <= of samples and nonzero weights", got, "Count again."))
    millions, share = nonzero / 1e6, correct / of
    halvings = math.inf if correct == of else -math.log2(1 - share)
    return Efficiency(100 * share / millions, correct / nonzero, halvings / millions)
