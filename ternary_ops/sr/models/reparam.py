# SPDX-License-Identifier: Apache-2.0
"""Blocks that train with several branches and are used as one 3x3 convolution.

Sums of linear maps are linear: `folded()` of each gives the kernel and bias of the convolution that
computes the same, in float64. What makes that exact at the border too: where a 1x1 convolution
comes first, its output is surrounded by its bias, which is what it makes of a ring of zeros.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, need
from ternary_ops.sr.models.base import conv

# Cross-correlation kernels of the edge branches (EFDN's code); each sums to 0.
MASKS = {
    "sbx": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "sby": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "lpl": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
}

Kernel = tuple[Tensor, Tensor]


class Conv3x3(nn.Module):
    """A folded block: one convolution, named as checkpoints name it, and its function."""

    def __init__(self, inputs: int, outputs: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.rep_conv = conv(inputs, outputs, 3)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[N, outputs, H, W]."""
        y: Tensor = self.rep_conv(x)
        return y if self.act is None else cast(Tensor, self.act(y))


class Reparametrized(nn.Module):
    """A block of several branches, and the function of their sum if it has one."""

    def __init__(self, inputs: int, outputs: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.inputs, self.outputs, self.act = inputs, outputs, act

    def folded(self) -> Kernel:
        """Kernel [O, I, 3, 3] and bias [O] of the convolution it amounts to, float64."""
        raise NotImplementedError

    def to_conv(self) -> Conv3x3:
        """The block as one convolution."""
        made = Conv3x3(self.inputs, self.outputs, self.act)
        kernel, bias = self.folded()
        like = next(self.parameters())
        made = made.to(device=like.device, dtype=like.dtype)
        with torch.no_grad():
            made.rep_conv.weight.copy_(kernel)
            cast(Tensor, made.rep_conv.bias).copy_(bias)
        return made.train(self.training)


class EdgeBranch(nn.Module):
    """1x1 convolution, then a fixed edge filter with a learned scale for each channel.

    k0 [O, I, 1, 1], b0 [O], scale [O, 1, 1, 1], bias [O], mask [O, 1, 3, 3] (fixed). The filter
    sums to 0 and meets a constant ring, so b0 has no effect on what comes out; it is there because
    checkpoints hold it.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, filter_: str) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 1)
        self.k0, self.b0 = first.weight, cast(nn.Parameter, first.bias)
        self.scale = nn.Parameter(1e-3 * torch.randn(outputs, 1, 1, 1))
        self.bias = nn.Parameter(1e-3 * torch.randn(outputs))
        mask = torch.tensor(MASKS[filter_], dtype=torch.float32)
        self.register_buffer("mask", mask.expand(outputs, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """[N, O, H, W]."""
        inner = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.k0, self.b0)
        return F.conv2d(inner, self.scale * self.mask, self.bias, groups=len(self.bias))

    def folded(self) -> Kernel:
        """K[o, i, u, v] = scale[o] mask[u, v] k0[o, i]; the bias is that of the filter."""
        edges = self.scale.double() * self.mask.double()
        rest = self.b0.double() * edges.sum((1, 2, 3))
        return self.k0.double() * edges, self.bias.double() + rest


class ExpandBranch(nn.Module):
    """1x1 convolution I -> M, then 3x3 M -> O: k0 [M, I, 1, 1], b0, k1 [O, M, 3, 3], b1."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(inputs, middle, 1), nn.Conv2d(middle, outputs, 3)
        self.k0, self.b0 = first.weight, cast(nn.Parameter, first.bias)
        self.k1, self.b1 = second.weight, cast(nn.Parameter, second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, O, H, W]."""
        inner = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.k0, self.b0)
        return F.conv2d(inner, self.k1, self.b1)

    def folded(self) -> Kernel:
        """K[o, i] = sum over m of k1[o, m] k0[m, i]."""
        return fold_pointwise(self.k0, self.b0, self.k1, self.b1)


def fold_pointwise(k0: Tensor, b0: Tensor, k1: Tensor, b1: Tensor) -> Kernel:
    """A 1x1 convolution and the 3x3 one that follows, its border filled with b0, as one."""
    k0, b0, k1, b1 = (t.detach().double() for t in (k0, b0, k1, b1))
    kernel = torch.einsum("omuv,mi->oiuv", k1, k0[:, :, 0, 0])
    return kernel, b1 + torch.einsum("omuv,m->o", k1, b0)


def add_identity(kernel: Tensor) -> Tensor:
    """The kernel with the identity added to it; as many inputs as outputs."""
    center = torch.zeros_like(kernel)
    center[:, :, 1, 1] = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    return kernel + center


class EDBB(Reparametrized):
    """Edge-enhanced diverse branch block of EFDN (Wang, arXiv 2204.08759), as its code has it.

    PReLU, one slope a channel, of the sum of a 3x3 convolution, a 1x1 one, three edge branches and,
    if asked, a 1x1-3x3 branch of `middle` channels and the input itself. Which of the two switches
    the released weights were trained with is not known.

    `to_gradient_stage_` is the second stage of training (the code's mode "gv"): convolutions merge
    into one, edge branches and identity stay. The published code adds the identity there even
    where the first stage had none, and folds without it; here it is one state of the block, so
    every stage computes the same, and a block without it has no second stage.
    """

    with_identity: Tensor

    def __init__(
        self, inputs: int, outputs: int, middle: int | None = None, identity: bool = False
    ) -> None:
        """middle: channels of the 1x1-3x3 branch, None for no such branch."""
        super().__init__(inputs, outputs, nn.PReLU(outputs))
        if identity and inputs != outputs:
            got = f"{inputs} and {outputs}"
            do = "Leave the identity out."
            raise BadConfig(need("as many inputs as outputs for an identity", got, do))
        self.register_buffer("with_identity", torch.tensor(identity))
        self.rep_conv = conv(inputs, outputs, 3)
        self.conv1x1: nn.Conv2d | None = conv(inputs, outputs, 1)
        self.conv1x1_3x3 = None if middle is None else ExpandBranch(inputs, middle, outputs)
        self.conv1x1_sbx = EdgeBranch(inputs, outputs, "sbx")
        self.conv1x1_sby = EdgeBranch(inputs, outputs, "sby")
        self.conv1x1_lpl = EdgeBranch(inputs, outputs, "lpl")

    @property
    def identity(self) -> bool:
        """Is the input added? Kept with the weights, for files do not say it otherwise."""
        return bool(self.with_identity)

    @property
    def _edges(self) -> tuple[EdgeBranch, ...]:
        return self.conv1x1_sbx, self.conv1x1_sby, self.conv1x1_lpl

    def forward(self, x: Tensor) -> Tensor:
        """[N, O, H, W]."""
        y: Tensor = self.rep_conv(x)
        for branch in (self.conv1x1, self.conv1x1_3x3, *self._edges):
            if branch is not None:
                y = y + branch(x)
        return cast(Tensor, cast(nn.Module, self.act)(y + x if self.identity else y))

    def folded(self) -> Kernel:
        """All branches summed."""
        kernel, bias = self._convolutions()
        for branch in self._edges:
            more, shift = branch.folded()
            kernel, bias = kernel + more, bias + shift
        return (add_identity(kernel) if self.identity else kernel), bias

    def _convolutions(self) -> Kernel:
        kernel, bias = _kernel_of(self.rep_conv)
        if self.conv1x1 is not None:
            more, shift = _kernel_of(self.conv1x1)
            kernel, bias = kernel + F.pad(more, (1, 1, 1, 1)), bias + shift
        if self.conv1x1_3x3 is not None:
            more, shift = self.conv1x1_3x3.folded()
            kernel, bias = kernel + more, bias + shift
        return kernel, bias

    @torch.no_grad()
    def to_gradient_stage_(self) -> None:
        """Merge the convolutions, in place; what the block computes stays."""
        if not self.identity:
            do = "Build the network with identity=True."
            raise BadConfig(need("an identity in the gradient stage", "a block without one", do))
        kernel, bias = self._convolutions()
        self.rep_conv.weight.copy_(kernel)
        cast(Tensor, self.rep_conv.bias).copy_(bias)
        self.conv1x1 = self.conv1x1_3x3 = None


class RRRB(Reparametrized):
    """Residual in residual re-parameterizable block of FMEN (Du et al., arXiv 2204.08397).

    1x1 convolution to ratio * n channels, a 3x3 one with the identity of its input, a 1x1 one back,
    and the identity of the block's input.
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__(channels, channels)
        self.expand_conv = conv(channels, ratio * channels, 1)
        self.fea_conv = nn.Conv2d(ratio * channels, ratio * channels, 3)
        self.reduce_conv = conv(ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        ringed = self.expand_conv(F.pad(x, (1, 1, 1, 1)))
        inner = self.fea_conv(ringed) + ringed[..., 1:-1, 1:-1]
        y: Tensor = self.reduce_conv(inner) + x
        return y

    def folded(self) -> Kernel:
        """Both identities become ones at the center of kernels."""
        k0, b0 = _kernel_of(self.expand_conv)
        k1, b1 = _kernel_of(self.fea_conv)
        k2, b2 = _kernel_of(self.reduce_conv)
        kernel, bias = fold_pointwise(k0, b0, add_identity(k1), b1)
        last = k2[:, :, 0, 0]
        return add_identity(torch.einsum("oj,jiuv->oiuv", last, kernel)), b2 + last @ bias


def _kernel_of(layer: nn.Conv2d) -> Kernel:
    return layer.weight.detach().double(), cast(Tensor, layer.bias).detach().double()
