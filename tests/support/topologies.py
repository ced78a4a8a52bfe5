# SPDX-License-Identifier: Apache-2.0
"""The networks that people build, drawn at random: each takes a trunk and gives one back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from cases import program_cases
from engine_access import Graph
from random_graphs import KINDS, Draw, Val

Topology = Callable[[Draw, Val], Val]


def residual(d: Draw, x: Val) -> Val:
    """Two or three layers beside the identity, which the last of them adds."""
    for _ in range(d.number(1, 2)):
        y = d.conv(x)
        y = d.conv(y, groups=d.pick(1, d.width)) if d.chance(0.4) else y
        fits = x.channels == d.width
        if fits and d.chance(0.6) and not (y.floats and not x.floats):
            x = d.conv(y, x.channels, others=(x,))
        else:
            x = d.add(d.conv(y, x.channels), x)
    return x


def dense(d: Draw, x: Val) -> Val:
    """Every layer reads all before it."""
    seen = [x]
    for _ in range(d.number(2, 4)):
        seen.append(d.conv(seen[0] if len(seen) == 1 else d.concat(*seen), d.pick(4, 8, 5)))
    return d.concat(*seen)


def inception(d: Draw, x: Val) -> Val:
    """Branches of several windows, side by side."""
    parts = [
        d.conv(x, d.pick(4, 8), (1, 1)),
        d.conv(d.conv(x, d.pick(3, 8), (1, 1)), d.pick(4, 8), (3, 3)),
        d.conv(d.conv(x, 4, (1, 5)), 8, (5, 1)),
        d.conv(d.max_pool(x, 3, 1), 4, (1, 1)),
    ]
    if d.chance(0.5):
        parts.append(d.avg_pool(x, 3, 1))
    return d.concat(*(parts[i] for i in d.rng.permutation(len(parts))))


def squeeze_excite(d: Draw, x: Val) -> Val:
    """Channels weighted by what the whole image says."""
    y = d.conv(x, x.channels)
    s = d.flatten(d.adaptive(y, (1, 1)))
    s = d.linear(d.linear(s, d.number(1, 6)), y.channels)
    s = d.activation(d.unflatten(s), d.pick("sigmoid", "hardsigmoid"))
    return d.mul(y, s)


def attention(d: Draw, x: Val) -> Val:
    """A branch that sees far, by strides, a pool and a resize, and gates the one that waits."""
    v = d.conv(x, d.pick(4, 6), (1, 1))
    far = d.conv(v, None, (3, 3), stride=2, valid=d.chance(0.5))
    far = d.max_pool(far, d.pick(3, 5, 7), d.pick(2, 3), same=d.chance(0.7))
    far = d.conv(far, v.channels, (3, 3))
    far = d.like(far, x)
    both = d.add(far, v) if d.chance(0.5) else far
    if d.chance(0.5) and (x.floats or not both.floats):
        both = d.alike(both, x)
        return d.conv(both, x.channels, (1, 1), others=(x,), gate=True)
    mask = d.activation(d.conv(both, x.channels, (1, 1)), "sigmoid")
    return d.mul(x, mask)


def self_gated(d: Draw, x: Val) -> Val:
    """A convolution that gates its input, and adds it."""
    others = (x, x) if d.chance(0.5) else (x,)
    return d.conv(x, x.channels, others=others, gate=True)


def _down(d: Draw, x: Val) -> Val:
    how = d.number(0, 3)
    if how == 0:
        return d.max_pool(x, 2, 2)
    if how == 1:
        return d.avg_pool(x, 2, 2)
    return d.conv(x, None, (3, 3), stride=2)


def _up(d: Draw, x: Val, skip: Val) -> Val:
    if d.chance(0.3):
        x = d.pixel_shuffle(d.conv(x, 4 * d.pick(4, 8), (1, 1)), (2, 2), (0, d.number(0, 1)))
    return d.like(x, skip)


def unet(d: Draw, x: Val) -> Val:
    """Down and up again, with what was there before beside it."""
    skips = []
    for _ in range(d.number(1, 3)):
        x = d.conv(x)
        skips.append(x)
        x = _down(d, x)
    x = d.conv(x)
    for skip in reversed(skips):
        up = _up(d, x, skip)
        x = d.conv(d.concat(up, skip) if d.chance(0.8) or up.channels != skip.channels else up)
    return x


def pan(d: Draw, x: Val) -> Val:
    """Down, up, and down again (FPN, PANet), by concat or sums."""
    seen = [d.conv(x)]
    for _ in range(d.number(1, 2)):
        seen.append(_down(d, seen[-1]))
    if d.chance(0.5):
        x = d.conv(d.concat(seen[-1], d.max_pool(seen[-1], d.pick(3, 5, 9, 13), 1)), None, (1, 1))
        seen[-1] = x
    for i in range(len(seen) - 1, 0, -1):
        up = d.like(seen[i], seen[i - 1])
        seen[i - 1] = d.conv(d.concat(up, seen[i - 1]), None, d.pick((1, 1), (3, 3)))
    x = seen[0]
    outputs = [x]
    for lateral in seen[1:]:
        x = d.like(d.conv(x, None, (3, 3), stride=2), lateral)
        x = d.conv(d.concat(x, lateral), None, d.pick((1, 1), (3, 3)))
        outputs.append(x)
    if d.chance(0.3):
        return d.concat(*(d.conv(v, 4) for v in outputs))
    return x


def shuffled(d: Draw, x: Val) -> Val:
    """Half of the channels pass by, and all are shuffled."""
    x = d.conv(x, 8 * d.number(1, 3))
    half = x.channels // 2 if d.chance(0.7) else d.number(1, x.channels - 1)
    a, b = d.slice(x, 0, half), d.slice(x, half, x.channels)
    y = d.concat(a, d.conv(d.conv(b, None), x.channels - half, groups=1))
    return d.channel_shuffle(y, d.pick(2, 4))


def depthwise(d: Draw, x: Val) -> Val:
    """Expand, filter channel by channel, project."""
    y = d.conv(x, 2 * d.width, (1, 1))
    y = d.conv(y, y.channels, d.pick((3, 3), (5, 5)), stride=d.pick(1, 1, 2), groups=y.channels)
    y = d.conv(y, x.channels, (1, 1))
    return d.add(y, x) if y.level == x.level else y


def folded(d: Draw, x: Val) -> Val:
    """Pixels into channels, layers, and back."""
    y = d.pixel_unshuffle(x, (2, d.number(1, 3)))
    y = d.conv(y)
    return d.pixel_shuffle(d.conv(y, 4 * d.number(1, 4)), (2, 2), (d.number(0, 1), 0))


def pixelwise(d: Draw, x: Val) -> Val:
    """Functions, norms and products of pixels."""
    if d.chance(0.5):
        x = d.alike(d.layer_norm(x), x)
    if d.chance(0.4):
        x = d.alike(d.softmax(x), x)
    if d.chance(0.3):
        x = d.alike(d.case(x, "constant"), x)
    y = d.activation(x)
    if d.chance(0.3):
        y = d.alike(d.mul(y, d.along(y)), y)
    z = d.clamp(d.activation(y)) if d.chance(0.5) else y
    return d.mul(z, x) if d.chance(0.5) else d.add(x, d.mul(y, z))


def windows(d: Draw, x: Val) -> Val:
    """Any window, padding, stride and dilation."""
    for _ in range(d.number(1, 3)):
        what = d.number(0, 3)
        if what == 0:
            x = d.max_pool(x, d.number(1, 4), d.number(1, 3), same=False)
        elif what == 1:
            x = d.avg_pool(x, d.number(1, 4), d.number(1, 3))
        elif what == 2:
            x = d.resize(x, zoom=(d.pick(0.5, 1.5, 2.0, 1.0), d.pick(0.75, 1.5, 2.0)))
        else:
            x = d.conv(
                x, kernel=(d.number(1, 5), d.number(1, 5)), stride=d.number(1, 3), valid=True
            )
    return x


def often_read(d: Draw, x: Val) -> Val:
    """One value and many readers, some of them with the same filters."""
    x = d.conv(x)
    w = [d.conv(x, d.width, (3, 3)) for _ in range(d.number(2, 4))]
    total = w[0]
    for v in w[1:]:
        total = d.add(total, v)
    return d.add(d.mul(total, x), x)


def moved(d: Draw, x: Val) -> Val:
    """Borders, axes and halves moved about, with layers between."""
    for _ in range(d.number(1, 3)):
        x = d.case(x, d.pick("rearrange", "rearrange", "pad", "crop"))
        if x.channels > 3 * d.width or d.chance(0.4):
            x = d.conv(x, None, d.pick((1, 1), (3, 3)))
        if d.chance(0.3):
            other = d.alike(d.conv(x, x.channels), x)
            x = d.stack(d.pick(2, 3, 3, 3, 3), *d.pick((x, other), (other, x), (x, other, x)))
    return d.conv(x)


TOPOLOGIES: dict[str, Topology] = {
    "residual": residual,
    "dense": dense,
    "inception": inception,
    "squeeze_excite": squeeze_excite,
    "attention": attention,
    "self_gated": self_gated,
    "unet": unet,
    "pan": pan,
    "shuffled": shuffled,
    "depthwise": depthwise,
    "folded": folded,
    "pixelwise": pixelwise,
    "windows": windows,
    "often_read": often_read,
    "moved": moved,
}


def cased(d: Draw, x: Val) -> Val:
    """Operators that have a case of their own."""
    x = d.conv(x)
    for _ in range(d.number(1, 2)):
        x = d.conv(d.alike(d.case(x, d.pick(*program_cases())), x))
    return x


if program_cases():
    TOPOLOGIES["cased"] = cased


def _head(d: Draw, x: Val) -> Val:
    """A classifier, or an image, made larger or not."""
    what = d.number(0, 5)
    if what == 0:
        size = d.pick((1, 1), (2, 3))
        x = d.flatten(d.adaptive(x, size))
        features = x.channels * size[0] * size[1]
        x = d.linear(x, d.number(3, 20), features=features)
        if d.chance(0.5):
            x = d.linear(x, x.channels, residual=x)
        if d.chance(0.3):
            x = d.layer_norm(x)
        return d.softmax(x) if d.chance(0.5) else d.linear(x, d.number(2, 9))
    if what == 1:
        factor = d.number(2, 3), d.number(1, 3)
        x = d.conv(x, factor[0] * factor[1] * d.number(1, 3), (3, 3))
        return d.pixel_shuffle(x, factor, (d.number(0, 1), 0))
    if what == 2:
        return d.layer_norm(x) if d.chance(0.5) else d.softmax(x)
    return d.conv(x, d.number(1, 9))


def network(
    seed: int, kinds: tuple[str, ...] = KINDS, names: tuple[str, ...] = (), natural: bool = False
) -> Graph:
    """One to three topologies behind each other. natural: of usual widths, not of small ones."""
    rng = np.random.default_rng((seed, 3))
    kind = kinds[rng.integers(len(kinds))]
    width = int(rng.choice([24, 32, 48, 64] if natural else [4, 6, 8, 8, 12, 13, 16, 20]))
    d = Draw(seed, kind, width, int(rng.choice([1, 3, 3, 4, 5, 16])))
    chosen = names or tuple(TOPOLOGIES)
    x = d.conv(d.start()) if d.chance(0.8) else d.start()
    for _ in range(d.number(1, 2) if natural else d.number(2, 3)):
        x = TOPOLOGIES[chosen[d.rng.integers(len(chosen))]](d, x)
        if x.channels > 4 * width:
            x = d.conv(x, None, (1, 1))
    return d.graph(_head(d, x))
