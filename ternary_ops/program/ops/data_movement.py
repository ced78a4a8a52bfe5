# SPDX-License-Identifier: Apache-2.0
"""Data movement: between channels and pixels, among channels, concatenation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ternary_ops import reference
from ternary_ops.errors import FormatError, UnsupportedShape, need
from ternary_ops.program.attributes import (
    MAX_CHANNELS,
    MAX_PARTS,
    OUTPUT,
    REWRITE,
    Attribute,
    among,
    pair,
    whole,
)
from ternary_ops.program.operator import (
    BoundNode,
    ChannelPairs,
    Operand,
    Operator,
    Shape,
    Value,
    need_few,
    need_known,
    need_parts,
    need_rank,
    need_same,
    output_params,
    plain,
    register,
)
from ternary_ops.program.weight import Array


def _divided(node: BoundNode, parts: int) -> int:
    """Channels of an image split into parts; raises FormatError where they do not split."""
    need_rank(node, 4)
    channels = node.inputs[0].channels
    need_parts(channels, parts)
    return (channels or 0) // parts


@register
class Concat(Operator):
    """All inputs one behind the other along an `axis`: 1 channels, 2 rows or tokens, 3 columns; of
    uint8, rounded to `y`
    """

    name = "concat"
    reads = "2 or more"
    inputs = (2, MAX_PARTS)
    attrs = {"axis": Attribute(among(1, 2, 3), 1), "y": OUTPUT}

    def value(self, node: BoundNode) -> Value:
        """Of all parts' channels together, or of those that all have."""
        x, *others = node.inputs
        if any((part.rank, part.y is None) != (x.rank, x.y is None) for part in others):
            raise FormatError(need("values of one kind for concat", "different ones", REWRITE))
        if x.y is not None and node.at["y"] is None:
            raise FormatError(need("y of a concat of uint8", "none", REWRITE))
        if node.at["axis"] >= x.rank:
            raise FormatError(need(f"an axis below {x.rank}", node.at["axis"], REWRITE))
        if node.at["axis"] > 1:
            return self._longer(node)
        known = [part.channels for part in node.inputs if part.channels is not None]
        channels = sum(known) if len(known) == len(node.inputs) else None
        need_few(channels or 0)
        multiple = channels or math.gcd(*(part.multiple for part in node.inputs))
        return Value(x.rank, channels, multiple, output_params(node))

    def _longer(self, node: BoundNode) -> Value:
        """Of parts with the same channels, behind each other along another axis."""
        x, *others = node.inputs
        for part in others:
            if part.channels != x.channels:
                raise FormatError(need(f"parts of {x.channels} channels", part.channels, REWRITE))
        return replace(x, y=output_params(node))

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """Parts that differ along the axis alone."""
        (x, *others), axis = inputs, node.at["axis"]
        for other in others:
            same = (*other[:axis], x[axis], *other[axis + 1 :])
            need_same("a part of size", x[1:], same[1:])
        return *x[:axis], sum(part[axis] for part in inputs), *x[axis + 1 :]

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs]:
        """Each part's channels behind those of the parts before it, or at the same places."""
        counts = [part.channels or 0 for part in node.inputs]
        if node.at["axis"] > 1:
            return [(np.arange(c), np.arange(c)) for c in counts]
        ends = np.cumsum(counts)
        return [(np.arange(e - c, e), np.arange(c)) for e, c in zip(ends, counts, strict=True)]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Concatenate; codes are copied where a part has the scale and zero point of the whole."""
        return reference.concat(operands, **node.at)


@register
class Slice(Operator):
    """The channels from `begin` to before `end`"""

    name = "slice"
    attrs = {
        "begin": Attribute(whole(0, MAX_CHANNELS), 0),
        "end": Attribute(whole(1, MAX_CHANNELS)),
    }
    keeps_params = per_pixel = True

    def value(self, node: BoundNode) -> Value:
        """Of fewer channels."""
        x, begin, end = node.inputs[0], node.at["begin"], node.at["end"]
        if not begin < end <= (x.channels or 0):
            wanted = f"0 <= begin < end <= {x.channels}"
            raise FormatError(need(wanted, f"{begin}, {end}", REWRITE))
        return replace(x, channels=end - begin, multiple=end - begin)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """Of fewer channels."""
        n, _, *image = inputs[0]
        return n, node.at["end"] - node.at["begin"], *image

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs]:
        """A range of channels."""
        source = np.arange(node.at["begin"], node.at["end"])
        return [(np.arange(len(source)), source)]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """A part of the array."""
        return plain(operands[0])[:, node.at["begin"] : node.at["end"]]


@register
class Flatten(Operator):
    """[N, C, H, W] as [N, C * H * W]"""

    name = "flatten"
    keeps_params = per_channel = rearranges = True

    def value(self, node: BoundNode) -> Value:
        """A row whose width depends on the image's size."""
        need_rank(node, 4)
        x = node.inputs[0]
        return Value(2, None, x.multiple, x.y)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """All pixels of all channels."""
        x = inputs[0]
        return x[0], math.prod(x[1:])

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """In the order C, H, W."""
        return reference.flatten(plain(operands[0]))


@register
class Unflatten(Operator):
    """[N, C] as an image of one pixel, [N, C, 1, 1]"""

    name = "unflatten"
    keeps_params = rearranges = True

    def value(self, node: BoundNode) -> Value:
        """An image."""
        need_rank(node, 2)
        x = node.inputs[0]
        need_known(x.channels)
        return replace(x, rank=4)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """One pixel."""
        return *inputs[0], 1, 1

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs]:
        """Each channel stays one."""
        same = np.arange(node.inputs[0].channels or 0)
        return [(same, same)]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """Values unchanged, in another shape."""
        return plain(operands[0])[:, :, None, None]


@register
class PixelShuffle(Operator):
    """[N, C * R * S, H, W] as [N, C, H * R, W * S] less `crop` rows and columns at the bottom and
    right
    """

    name = "pixel_shuffle"
    attrs = {"factor": Attribute(pair(1)), "crop": Attribute(pair(0), (0, 0))}
    keeps_params = rearranges = True

    def value(self, node: BoundNode) -> Value:
        """Of fewer channels."""
        channels = _divided(node, math.prod(node.at["factor"]))
        return replace(node.inputs[0], channels=channels, multiple=channels)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """A larger image."""
        n, c, *image = inputs[0]
        factor, crop = node.at["factor"], node.at["crop"]
        sizes = [a * f - cut for a, f, cut in zip(image, factor, crop, strict=True)]
        if min(sizes) < 1:
            wanted = f"more pixels than a crop of {crop}"
            raise UnsupportedShape(need(wanted, image, "Use a larger."))
        return n, c // math.prod(factor), *sizes

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs]:
        """A block of channels becomes one."""
        source = np.arange(node.inputs[0].channels or 0)
        return [(source // math.prod(node.at["factor"]), source)]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """PyTorch's order of channels."""
        return reference.pixel_shuffle(plain(operands[0]), **node.at)


@register
class PixelUnshuffle(Operator):
    """[N, C, H * R, W * S] as [N, C * R * S, H, W]"""

    name = "pixel_unshuffle"
    attrs = {"factor": Attribute(pair(1))}
    keeps_params = rearranges = True

    def value(self, node: BoundNode) -> Value:
        """Of more channels."""
        need_rank(node, 4)
        channels = (node.inputs[0].channels or 0) * math.prod(node.at["factor"])
        need_few(channels)
        return replace(node.inputs[0], channels=channels, multiple=channels)

    def shape(self, node: BoundNode, inputs: Sequence[Shape]) -> Shape:
        """A smaller image."""
        n, c, *image = inputs[0]
        factor = node.at["factor"]
        if any(size % f for size, f in zip(image, factor, strict=True)):
            wanted = f"an image size divisible by {list(factor)}"
            raise UnsupportedShape(need(wanted, image, "Pad or crop the image."))
        sizes = (a // f for a, f in zip(image, factor, strict=True))
        return n, c * math.prod(factor), *sizes

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs]:
        """A channel becomes a block of them."""
        factor = math.prod(node.at["factor"])
        made = np.arange((node.inputs[0].channels or 0) * factor)
        return [(made, made // factor)]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """PyTorch's order of channels."""
        return reference.pixel_unshuffle(plain(operands[0]), **node.at)


@register
class ChannelShuffle(Operator):
    """Channel k of group g at place k * `groups` + g"""

    name = "channel_shuffle"
    attrs = {"groups": Attribute(whole(1, MAX_CHANNELS))}
    keeps_params = per_pixel = rearranges = True

    def value(self, node: BoundNode) -> Value:
        """As its input."""
        _divided(node, node.at["groups"])
        return node.inputs[0]

    def channel_pairs(self, node: BoundNode) -> list[ChannelPairs]:
        """Channel k of group g at place k * groups + g."""
        made = np.arange(node.inputs[0].channels or 0)
        return [(made, made.reshape(node.at["groups"], -1).T.ravel())]

    def reference(self, node: BoundNode, operands: Sequence[Operand]) -> Array:
        """PyTorch's order of channels."""
        return reference.channel_shuffle(plain(operands[0]), **node.at)
