# SPDX-License-Identifier: Apache-2.0
"""Attention: two products of values with a softmax between them become one step, whose scores no
value holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from ternary_ops.compiler.step import Step, rewire
from ternary_ops.program.operator import TOKENS


def attention_of_products(step: Step) -> Sequence[Step]:
    """softmax(scale * queries . keys + bias) . values, where nothing else reads what is between."""
    at = step.attrs
    if step.op != "matmul" or at["transpose"] or at.get("scale", 1.0) != 1.0:
        return ()
    (shares, values), groups = step.inputs, at["groups"]
    if shares.op != "softmax" or not _alone(shares) or shares.attrs.get("groups", 1) != groups:
        return ()
    scores, bias = _scores(shares.inputs[0])
    if scores is None or any(scores.attrs[name] != at[name] for name in ("groups", "tokens")):
        return ()
    scale = scores.attrs.get("scale", 1.0)
    step.op = "attention"
    step.attrs = {"heads": groups, "tokens": at["tokens"], "scale": scale}
    step.fixed = step.fixed or scores.fixed
    rewire(step, *scores.inputs, values, *bias)
    return ()


def _scores(step: Step) -> tuple[Step | None, list[Step]]:
    """The product of queries and keys in front of a softmax, and what is added to it for every
    query and key: a constant of one image.
    """
    bias: list[Step] = []
    if step.op == "add" and _alone(step) and step.clamp == (None, None) and len(step.inputs) == 2:
        first, second = step.inputs
        product, other = (first, second) if first.op == "matmul" else (second, first)
        if product.op != "matmul" or not _whole(other, product):
            return None, []
        step, bias = product, [other]
    found = step.op == "matmul" and step.attrs["transpose"] and _alone(step)
    return (step if found else None), bias


def _whole(other: Step, scores: Step) -> bool:
    """True for a number for each query and key of every head, not one for several of them."""
    if other.op != "constant" or other.layer is None:
        return other.shape is not None and other.shape == scores.shape
    channels, _, queries, _ = other.layer.weight.shape
    wanted = scores.attrs["groups"] * scores.attrs["tokens"]
    return other.attrs["rank"] == TOKENS and channels == wanted and queries > 1


def _alone(step: Step) -> bool:
    """True for what one step reads, once, and no layer's chain holds."""
    return len(step.users) == 1 and step.chain is None
