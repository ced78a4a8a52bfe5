# SPDX-License-Identifier: Apache-2.0
"""Pruning criteria: one score per weight, summed over the units of the pattern; the lowest go.

Data-free
    magnitude  |w|; gradients and inputs do not matter
    lamp       w^2 over the sum of squares of the layer's weights that are no smaller; Lee et al.
               2021 (arXiv 2010.07611), a reconstruction
    slimming   |w| times |gamma| of the norm behind the layer; after Liu et al. 2017 (arXiv
               1708.06519), who take whole channels: prune.filter_score("slimming")
    synflow    the sum of all paths through w, in 100 rounds; Tanaka et al. 2020 (arXiv 2006.05467),
               a reconstruction
    random     uniform, fixed at the start: the baseline
Activations
    wanda      |w| * |x|_2, x the input channel over the images seen so far (running mean 0.9 of
               squares); Sun et al. 2023 (arXiv 2306.11695), who rank within a row: scope or
               normalize decide that here
    apoz       |w| times the share of non-zero inputs; after Hu et al. 2016 (arXiv 1607.03250), who
               take whole channels: prune.filter_score("apoz")
    variance   w^2 times the variance of the input channel
First order
    movement   -sum over steps of g * w: weights that training drives towards zero go first; Sanh et
               al. 2020 (arXiv 2005.07683)
    taylor     running mean (0.9) of (g * w)^2, the first-order change of the loss; Molchanov et al.
               2019 (arXiv 1906.10771)
    snip       |g * w| before training; Lee et al. 2019 (arXiv 1810.02340)
    grasp      w * (H g) before training; Wang et al. 2020 (arXiv 2002.07376), a reconstruction
    obd        w^2 F / 2, F the diagonal of the empirical Fisher matrix; LeCun et al. 1989, a
               reconstruction
Second order
    woodfisher of a unit as a whole w_u^T ([F^-1]_uu)^-1 w_u / 2, F in blocks; Singh and Alistarh
               2020 (arXiv 2004.14340), a reconstruction: prune.woodfisher

g is the gradient that the optimizer is about to apply, or that of the Pruner's batches. In a
DistributedDataParallel run gradients are equal on all ranks, and what a criterion has seen of
inputs or of batches is averaged over them, so that masks agree. `register_criterion` adds one: a
function, or a subclass of Score.
"""

from ternary_ops.prune.criteria.activations import APoZ, Variance, Wanda
from ternary_ops.prune.criteria.data_free import Random, SynFlow, lamp, slimming
from ternary_ops.prune.criteria.first_order import Movement, Taylor, grasp, obd, snip
from ternary_ops.prune.criteria.probe import probing, weights_of
from ternary_ops.prune.criteria.register import CRITERIA, get_criterion, register_criterion
from ternary_ops.prune.criteria.score import Score, magnitude

__all__ = [
    "CRITERIA",
    "Score",
    "get_criterion",
    "magnitude",
    "probing",
    "register_criterion",
    "weights_of",
]

register_criterion("magnitude", magnitude)
register_criterion("movement", Movement)
register_criterion("taylor", Taylor)
register_criterion("wanda", Wanda)
register_criterion("random", Random)
register_criterion("lamp", lamp)
register_criterion("slimming", slimming, reads="batches")
register_criterion("synflow", SynFlow)
register_criterion("apoz", APoZ)
register_criterion("variance", Variance)
register_criterion("snip", snip, reads=("batches", "loss"))
register_criterion("grasp", grasp, reads=("batches", "loss"))
register_criterion("obd", obd, reads=("batches", "loss"))
