# SPDX-License-Identifier: Apache-2.0
"""SPACH: one skeleton whose spatial mixing is convolution, self-attention or a token MLP.

Zhao et al., "A Battle of Network Structures: An Empirical Study of CNN, Transformer, and MLP"
(2021). Everything but the spatial mixing is held fixed, with one resolution (`spach`) or four
(`spach_ms`); hybrids (`hybrid_ms`) mix by convolution first and by attention later. Sizes are those
of the paper, but for those that SIZES_OF_OURS names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedShape, need
from ternary_ops.models.spach_layers import (
    EPS,
    Attention,
    Downsample,
    MixingBlock,
    PatchEmbedding,
    TokenMLP,
)

FAMILIES = ("conv", "attention", "mlp")
# A stage: kinds of blocks in their order, and how many of each.
Stage = tuple[tuple[str, int], ...]
HEAD_WIDTH = 32  # channels of a head in the first stage, in every network of the paper

# Size -> width, depth and ratio of each family.
_SINGLE: dict[str, dict[str, tuple[int, int, int]]] = {
    "XXS": {"conv": (384, 12, 2), "attention": (192, 12, 2), "mlp": (384, 12, 2)},
    "XS": {"conv": (384, 24, 2), "attention": (384, 12, 2), "mlp": (384, 24, 2)},
    "S": {"conv": (512, 24, 3), "attention": (512, 12, 3), "mlp": (512, 24, 3)},
}
# Size -> depths, ratio, and the width of each family.
_MULTI: dict[str, tuple[tuple[int, ...], int, dict[str, int]]] = {
    "XXS": ((2, 2, 6, 2), 2, {"conv": 64, "attention": 32, "mlp": 64}),
    "XS": ((3, 4, 12, 3), 2, {"conv": 96, "attention": 64, "mlp": 96}),
    "S": ((3, 4, 12, 3), 3, {"conv": 128, "attention": 96, "mlp": 128}),
}
# Size -> width, ratio, and how many blocks of convolution and of attention each stage has.
_HYBRIDS: dict[str, tuple[int, int, tuple[tuple[int, int], ...]]] = {
    "XXS": (64, 2, ((2, 0), (2, 0), (2, 4), (1, 1))),
    "XS": (96, 2, ((3, 0), (4, 0), (2, 10), (1, 2))),
    "S": (128, 3, ((3, 0), (2, 2), (2, 10), (1, 2))),
}
# Hybrids that the paper does not have.
SIZES_OF_OURS = ("hybrid_ms XXS",)


@dataclass(frozen=True)
class SpachConfig:
    """What a SPACH network is made of; raises BadConfig for what does not fit together.

    width: channels of the first stage; each further one has twice as many and half the height and
    width. ratio: hidden channels of a channel MLP a channel. heads: of attention, the same number
    in every stage. token_ratio: hidden tokens of a token MLP a token. shared: the blocks of a stage
    have one spatial function between them. bypass: depthwise convolutions beside it. drop_path:
    rate of stochastic depth, of the last block; with several stages it rises from 0.
    """

    width: int
    stages: tuple[Stage, ...]
    patch: int
    ratio: int = 2
    heads: int = 1
    token_ratio: float = 0.5
    num_classes: int = 1000
    image_size: int = 224
    in_channels: int = 3
    deep_stem: bool = False
    shared: bool = False
    bypass: bool = True
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "patch", "ratio", "heads", "image_size", "in_channels"):
            if getattr(self, name) < 1:
                raise BadConfig(need(f"{name} >= 1", getattr(self, name), "Correct it."))
        kinds = {kind for stage in self.stages for kind, _ in stage}
        if not kinds or not all(self.stages) or not kinds <= set(FAMILIES):
            do = f"Each stage is one or more of ({' | '.join(FAMILIES)}, number of blocks)."
            raise BadConfig(need("stages of blocks", self.stages, do))
        if "attention" in kinds and self.width % self.heads:
            do = "Choose heads that divide the width."
            got = f"{self.width} channels for {self.heads} heads"
            raise BadConfig(need("a width that the heads divide", got, do))
        if kinds == {"conv"} and not self.bypass:
            do = "Convolutional blocks mix by their bypass alone: leave it on."
            raise BadConfig(need("bypass=True where all blocks are of kind conv", "False", do))
        if self.deep_stem and self.patch % 2:
            raise BadConfig(need("an even patch for deep_stem", self.patch, "Use 2, 4 or 16."))
        if not 0 <= self.drop_path < 1:
            raise BadConfig(need("drop_path in 0..1", self.drop_path, "Correct it."))
        if self.image_size % self.stride:
            do = f"Use a multiple of {self.stride}."
            raise BadConfig(need("an image_size that the strides divide", self.image_size, do))
        self._check_shared()

    def _check_shared(self) -> None:
        mixed = [s for s in self.spatial_stages if len(s) > 1]
        if self.shared and (mixed or not self.spatial_stages):
            do = "Use stages of attention or of token MLPs alone, or shared=False."
            raise BadConfig(need("stages of one kind with shared=True", self.stages, do))

    @property
    def spatial_stages(self) -> list[Stage]:
        """Stages in which some block has attention or a token MLP."""
        return [s for s in self.stages if any(kind != "conv" for kind, _ in s)]

    @property
    def stride(self) -> int:
        """Pixels between two tokens of the last stage."""
        return self.patch << (len(self.stages) - 1)

    @property
    def fixed_size(self) -> bool:
        """Whether a token MLP fixes the size of the image."""
        return any(kind == "mlp" for stage in self.stages for kind, _ in stage)

    def tokens(self, stage: int) -> int:
        """Tokens of a stage, from 0, of an image of image_size."""
        side = self.image_size // (self.patch << stage)
        return side * side


class SpachStage(nn.Module):
    """Blocks of one resolution, behind a Downsample in all stages but the first."""

    def __init__(self, config: SpachConfig, number: int, rates: Sequence[float]) -> None:
        super().__init__()
        width = config.width * 2**number
        self.downsample = Downsample(width // 2) if number else None
        one = None
        self.blocks = nn.Sequential()
        kinds = [kind for kind, count in config.stages[number] for _ in range(count)]
        for kind, rate in zip(kinds, rates, strict=True):
            spatial = one if one is not None else _spatial(kind, config, number)
            one = spatial if config.shared else None
            block = MixingBlock(width, config.ratio * width, spatial, config.bypass, rate)
            self.blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N, H', W', C']."""
        y: Tensor = self.blocks(x if self.downsample is None else self.downsample(x))
        return y


def _spatial(kind: str, config: SpachConfig, number: int) -> nn.Module | None:
    if kind == "attention":
        return Attention(config.width * 2**number, config.heads)
    if kind == "mlp":
        tokens = config.tokens(number)
        return TokenMLP(tokens, int(config.token_ratio * tokens))
    return None


class Spach(nn.Module):
    """float32 [N, in_channels, H, W] -> float32 [N, num_classes] logits.

    H and W are image_size where a token MLP fixes them, otherwise any multiples of the total
    stride; raises UnsupportedShape for others. At first the head is 0 and so are the logits.
    """

    def __init__(self, config: SpachConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = PatchEmbedding(config.in_channels, config.width, config.patch, config.deep_stem)
        self.stem_norm = nn.LayerNorm(config.width, EPS)
        depths = [sum(count for _, count in stage) for stage in config.stages]
        ends = [sum(depths[:i]) for i in range(len(depths) + 1)]
        rates = _drop_rates(config, ends[-1])
        self.stages = nn.Sequential(
            *(SpachStage(config, i, rates[a:b]) for i, (a, b) in enumerate(pairwise(ends)))
        )
        last = config.width * 2 ** (len(depths) - 1)
        self.norm = nn.LayerNorm(last, EPS)
        self.head = nn.Linear(last, config.num_classes)
        self._initialize()
        self.register_forward_pre_hook(_check)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                # Fan-out as PyTorch counts it, over all groups: depthwise weights begin small.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.weight)

    def blocks(self) -> list[MixingBlock]:
        """All blocks, first to last."""
        return [m for m in self.modules() if isinstance(m, MixingBlock)]

    def features(self, x: Tensor) -> Tensor:
        """Mean over the normalized tokens of the last stage, [N, C]."""
        y: Tensor = self.norm(self.stages(self.stem_norm(self.stem(x))))
        return y.mean((1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, num_classes]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def _drop_rates(config: SpachConfig, blocks: int) -> list[float]:
    if len(config.stages) == 1:
        return [config.drop_path] * blocks
    return [config.drop_path * i / max(1, blocks - 1) for i in range(blocks)]


def _check(module: nn.Module, args: tuple[Any, ...]) -> None:
    x, network = args[0], module
    if not isinstance(network, Spach) or not isinstance(x, Tensor):
        return
    config = network.config
    size, stride = config.image_size, config.stride
    fits = x.ndim == 4 and x.shape[1] == config.in_channels
    if config.fixed_size:
        wanted, do = f"{size}, {size}", "Resize: its token MLPs have weights for that size alone."
        fits = fits and tuple(x.shape[2:]) == (size, size)
    else:
        wanted, do = f"H, W, multiples of {stride}", "Resize or pad the images."
        fits = fits and all(n > 0 and n % stride == 0 for n in x.shape[2:])
    if not fits:
        what = f"images [N, {config.in_channels}, {wanted}]"
        raise UnsupportedShape(need(what, list(x.shape), do))


def _known(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise BadConfig(need(f"{what} {', '.join(names)}", repr(name), "Choose one of them."))


def _heads(width: int) -> int:
    return max(1, width // HEAD_WIDTH)


def spach(family: str, size: str, **options: Any) -> Spach:
    """One resolution of 16x16 patches. family: "conv", "attention", "mlp"; size: "XXS", "XS", "S".

    options: further fields of SpachConfig (num_classes, image_size, shared, deep_stem, bypass,
    drop_path, ...). Raises BadConfig.
    """
    _known("the family", family, FAMILIES)
    _known("the size", size, tuple(_SINGLE))
    width, depth, ratio = _SINGLE[size][family]
    own = {"width": width, "stages": (((family, depth),),), "patch": 16, "ratio": ratio}
    return Spach(SpachConfig(**{**own, "heads": _heads(width), **options}))


def spach_ms(family: str, size: str, **options: Any) -> Spach:
    """Four resolutions from 4x4 patches; the first stage is convolutional in every family.

    family, size and options as of `spach`. Raises BadConfig.
    """
    _known("the family", family, FAMILIES)
    _known("the size", size, tuple(_MULTI))
    depths, ratio, widths = _MULTI[size]
    kinds = ("conv", family, family, family)
    stages = tuple(((kind, depth),) for kind, depth in zip(kinds, depths, strict=True))
    own = {"width": widths[family], "stages": stages, "patch": 4, "ratio": ratio}
    return Spach(SpachConfig(**{**own, "heads": _heads(widths[family]), **options}))


def hybrid_ms(size: str, deep_stem: bool = False, **options: Any) -> Spach:
    """Four resolutions, convolution first and attention after it in the later stages.

    size: "XS" and "S" of the paper, "XXS" of ours (7.19 M parameters, 1.05 G multiply-adds).
    deep_stem: the "+" networks. options: further fields of SpachConfig. Raises BadConfig.
    """
    _known("the size", size, tuple(_HYBRIDS))
    width, ratio, counts = _HYBRIDS[size]
    stages = tuple(
        tuple((kind, n) for kind, n in zip(("conv", "attention"), pair, strict=True) if n)
        for pair in counts
    )
    own = {"width": width, "stages": stages, "patch": 4, "ratio": ratio, "heads": _heads(width)}
    return Spach(SpachConfig(**{**own, "deep_stem": deep_stem, **options}))
