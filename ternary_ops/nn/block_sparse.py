# SPDX-License-Identifier: Apache-2.0
"""Float layers that keep, and compute, only the blocks of their weight that are not zero.

Blocks are N output x M input channels at one tap (linear: rows x columns), as ops.blocks lays them
out, which is torch.sparse_bsr of the matrix [O, R*S*I].
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ternary_ops import ops
from ternary_ops.errors import UnsupportedShape, need
from ternary_ops.nn.block_sparse_base import Block, BlockSparseLayer, pruned
from ternary_ops.nn.geometry import GEOMETRY, ConvGeometry
from ternary_ops.ops import blocks as layout


class BlockSparseLinear(BlockSparseLayer):
    """torch.nn.Linear that keeps the blocks [N, M] of its weight that are not zero.

    x [..., K] of float32, float16 or bfloat16 -> [..., N], summed in float32. The arguments of
    torch.nn.Linear, then `block`; dtype is that of the values. A new layer holds zeros: fill it
    with load_state_dict, or use from_float, from_dense or from_bsr. Raises BadConfig.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        block: Block = (4, 4),
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._allocate(out_features, bias, block, device, dtype)
        self.refresh()

    @classmethod
    def from_float(
        cls, m: nn.Linear, zeros: float = 0.0, block: Block = (4, 4), dtype: Any = None
    ) -> BlockSparseLinear:
        """Keep of a torch.nn.Linear all but a share `zeros` of the blocks, those of the smallest
        sum of magnitudes (zero blocks are always left out); in `dtype`, else the weight's.

        Raises BadConfig, and BadWeights where the weight is not finite.
        """
        weight = pruned(m.weight, zeros, block, dtype)
        return cls.from_dense(weight, m.bias, block).train(m.training)

    @classmethod
    def from_dense(
        cls, weight: Tensor, bias: Tensor | None = None, block: Block = (4, 4)
    ) -> BlockSparseLinear:
        """Keep the blocks of a weight [N, K] that hold anything but zeros."""
        return cls._of(layout.from_dense(weight.detach(), block), weight.shape, bias)

    @classmethod
    def from_bsr(cls, matrix: Tensor, bias: Tensor | None = None) -> BlockSparseLinear:
        """Take over a torch.sparse_bsr weight [N, K], its block size included."""
        return cls._of(layout.from_bsr(matrix), matrix.shape, bias)

    @classmethod
    def _of(
        cls, blocks: layout.Blocks, shape: torch.Size, bias: Tensor | None
    ) -> BlockSparseLinear:
        n, m = blocks.values.shape[1:]
        layer = cls(shape[1], shape[0], bias is not None, dtype=blocks.values.dtype, block=(n, m))
        return layer._fill(blocks, bias)

    def to_float(self) -> nn.Linear:
        """A torch.nn.Linear that computes with this layer's weight."""
        twin = nn.Linear(self.in_features, self.out_features, device="meta")
        return _float_twin(twin, self)

    def to_dense(self) -> Tensor:
        """The weight [N, K], float32; differentiable in `values`."""
        return super().to_dense().flatten(1)

    def _operator(self, x: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            do = "Check what comes before it."
            want = f"x [..., {self.in_features}] for BlockSparseLinear"
            raise UnsupportedShape(need(want, list(x.shape), do))
        rows = x.reshape(-1, self.in_features, 1, 1)
        y = ops.block_sparse_conv2d(rows, self.blocks, self.out_features, 1, bias, packed=packed)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _shape(self) -> tuple[int, int, int, int]:
        return self.out_features, self.in_features, 1, 1

    def _in_channels(self) -> int:
        return self.in_features

    def extra_repr(self) -> str:
        """As torch.nn.Linear, then the blocks kept."""
        bias = self.bias is not None
        return self._describe(
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"
        )


class BlockSparseConv2d(ConvGeometry, BlockSparseLayer):
    """torch.nn.Conv2d that keeps the blocks of its weight that are not zero: N output by M input
    channels at one tap.

    x [N, C, H, W] or [C, H, W] of float32, float16 or bfloat16, summed in float32. The arguments of
    torch.nn.Conv2d, then `block`; dtype is that of the values. A new layer holds zeros: fill it
    with load_state_dict, or use from_float, from_dense or from_bsr. Raises BadConfig.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: Any = None,
        block: Block = (4, 4),
    ) -> None:
        super().__init__()
        given = locals()
        self._set_geometry(bias=bias, **{name: given[name] for name in GEOMETRY})
        self._allocate(out_channels, bias, block, device, dtype)
        self.refresh()

    @classmethod
    def from_float(
        cls, m: nn.Conv2d, zeros: float = 0.0, block: Block = (4, 4), dtype: Any = None
    ) -> BlockSparseConv2d:
        """Keep of a torch.nn.Conv2d all but a share `zeros` of the blocks, those of the smallest
        sum of magnitudes (zero blocks are always left out); in `dtype`, else the weight's.

        Raises BadConfig, and BadWeights where the weight is not finite.
        """
        options = {name: getattr(m, name) for name in GEOMETRY[3:]}
        weight = pruned(m.weight, zeros, block, dtype)
        return cls.from_dense(weight, m.bias, block, **options).train(m.training)

    @classmethod
    def from_dense(
        cls, weight: Tensor, bias: Tensor | None = None, block: Block = (4, 4), **geometry: Any
    ) -> BlockSparseConv2d:
        """Keep the blocks of a weight [O, I, R, S] that hold anything but zeros.

        geometry: stride, padding, dilation, groups, padding_mode.
        """
        blocks = layout.from_dense(weight.detach(), block)
        return cls._of(blocks, weight.shape, bias, geometry)

    @classmethod
    def from_bsr(
        cls,
        matrix: Tensor,
        kernel_size: tuple[int, int],
        bias: Tensor | None = None,
        **geometry: Any,
    ) -> BlockSparseConv2d:
        """Take over a torch.sparse_bsr matrix [O, R*S*I], input channels innermost, its block size
        included. I must be a multiple of the block's columns. geometry: as from_dense.
        """
        taps = kernel_size[0] * kernel_size[1]
        blocks = layout.from_bsr(matrix)
        columns = matrix.shape[1]
        if columns % (taps * blocks.values.shape[2]):
            raise UnsupportedShape(
                need(
                    f"a matrix of columns [R*S*I] for {taps} taps of whole blocks of "
                    f"{blocks.values.shape[2]} input channels",
                    columns,
                    "Order the weight as weight.permute(0, 2, 3, 1).flatten(1).",
                )
            )
        shape = torch.Size((matrix.shape[0], columns // taps, *kernel_size))
        return cls._of(blocks, shape, bias, geometry)

    @classmethod
    def _of(
        cls,
        blocks: layout.Blocks,
        shape: torch.Size,
        bias: Tensor | None,
        geometry: dict[str, Any],
    ) -> BlockSparseConv2d:
        o, i, r, s = shape
        n, m = blocks.values.shape[1:]
        layer = cls(
            i * geometry.get("groups", 1),
            o,
            (r, s),
            bias=bias is not None,
            dtype=blocks.values.dtype,
            block=(n, m),
            **geometry,
        )
        return layer._fill(blocks, bias)

    def to_float(self) -> nn.Conv2d:
        """A torch.nn.Conv2d that computes with this layer's weight."""
        return _float_twin(self._twin(), self)

    def _operator(self, x: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
        return ops.block_sparse_conv2d(
            self._pad(x),
            self.blocks,
            self.out_channels,
            self.kernel_size,
            bias,
            self.stride,
            self._inner_padding,
            self.dilation,
            self.groups,
            packed=packed,
        )

    def _shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _in_channels(self) -> int:
        return self.in_channels

    def _groups(self) -> int:
        return self.groups

    def extra_repr(self) -> str:
        """As torch.nn.Conv2d, then the blocks kept."""
        return self._describe(self._twin().extra_repr())  # type: ignore[no-untyped-call]


def float_twins(model: nn.Module) -> nn.Module:
    """Put a torch.nn layer in the place of each block-sparse one, in place; returns the model. A
    model that is such a layer becomes a part of one, so that tracing sees a layer.
    """
    if isinstance(model, (BlockSparseConv2d, BlockSparseLinear)):
        return nn.Sequential(model.to_float())
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (BlockSparseConv2d, BlockSparseLinear)):
                setattr(parent, name, child.to_float())
    return model


_Twin = TypeVar("_Twin", nn.Linear, nn.Conv2d)


def _float_twin(twin: _Twin, layer: BlockSparseLayer) -> _Twin:
    twin.weight = nn.Parameter(layer.to_dense().detach())
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().float().clone())
    twin.register_parameter("bias", bias)
    return twin.train(layer.training)
