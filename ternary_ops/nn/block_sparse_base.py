# SPDX-License-Identifier: Apache-2.0
"""Base of BlockSparseLinear and BlockSparseConv2d: state, packing, pruning."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ternary_ops.errors import BadConfig, UnsupportedShape, need
from ternary_ops.nn._integers import check_digest, digest, versions
from ternary_ops.nn.patterns import get_pattern, lowest, to_mask, unit_scores
from ternary_ops.nn.ternary import result_dtype
from ternary_ops.ops import _check
from ternary_ops.ops import blocks as layout

Block = tuple[int, int]
_Layer = TypeVar("_Layer", bound="BlockSparseLayer")


class BlockSparseLayer(nn.Module):
    """Base class of the block-sparse layers.

    values        parameter [nnz, N, M], float32, float16 or bfloat16: the nonzero blocks
    crow_indices  int64 [ceil(O/N) + 1], col_indices int64 [nnz]: their positions (ops.blocks)
    bias          parameter float32 [O], or None
    packed        uint8, not in the state dict: the weights as the kernels read them

    values and bias train; the positions of blocks are fixed. A state dict may bring other blocks of
    the same size. `packed` follows changes of `values` that autograd can see; after writing into
    values.data or the indices, call refresh(). Indices changed in any other way, such as by
    averaging networks, are refused.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    crow_indices: Tensor
    col_indices: Tensor
    packed: Tensor | None
    _indices: tuple[tuple[int, int], ...] = ()
    _digest: bytes | None = None

    def _allocate(self, rows: int, bias: bool, block: Block, device: Any, dtype: Any) -> None:
        """Register the state of a weight without blocks: all zeros."""
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in _check.FLOATS:
            names = ", ".join(str(d).removeprefix("torch.") for d in _check.FLOATS)
            raise BadConfig(need(f"dtype as one of {names}", dtype, "Pick one."))
        if len(block) != 2 or min(block) < 1:
            do = "For example (4, 4): 4 output by 4 input channels."
            raise BadConfig(need("block as two numbers >= 1", block, do))
        self.block: Block = (block[0], block[1])
        values = torch.zeros(0, *block, device=device, dtype=dtype)
        crow = torch.zeros(-(-rows // block[0]) + 1, dtype=torch.int64, device=device)
        self.values = nn.Parameter(values)
        self.register_buffer("crow_indices", crow)
        self.register_buffer("col_indices", torch.zeros(0, dtype=torch.int64, device=device))
        empty = nn.Parameter(torch.zeros(rows, device=device)) if bias else None
        self.register_parameter("bias", empty)
        self.register_buffer("packed", None, persistent=False)
        self._packed_of: tuple[tuple[int, int], ...] | None = None

    def _fill(self: _Layer, blocks: layout.Blocks, bias: Tensor | None) -> _Layer:
        self._adopt(blocks)
        if self.bias is not None and bias is not None:
            _check.per_channel(type(self).__name__, "bias", bias.float(), len(self.bias))
            self.bias.data = bias.detach().float().clone()
        self.refresh()
        return self.to(blocks.values.device)

    def _adopt(self, blocks: layout.Blocks) -> None:
        """Take over blocks of this layer's size; UnsupportedShape, BadWeights."""
        values, crow, col = blocks
        want = (tuple(values.shape[1:]), tuple(crow.shape), tuple(col.shape))
        if want != (self.block, tuple(self.crow_indices.shape), (values.shape[0],)):
            raise UnsupportedShape(
                need(
                    f"for {type(self).__name__} values [nnz, {self.block[0]}, {self.block[1]}], "
                    f"crow_indices {list(self.crow_indices.shape)} and col_indices [nnz]",
                    " and ".join(str(list(t.shape)) for t in blocks),
                    "Make the layer with the sizes and the `block` that these belong to.",
                )
            )
        if values.dtype not in _check.FLOATS:
            do = "Convert them."
            raise UnsupportedShape(need("values of a float dtype up to 32 bits", values.dtype, do))
        if not crow.is_meta:
            layout.validate(blocks, self._columns())
        self.values.data = values.detach().clone()
        self.crow_indices, self.col_indices = crow.long().clone(), col.long().clone()

    def refresh(self) -> None:
        """Make `packed` from the blocks. Raises BadWeights where they are not valid or finite."""
        self.packed, self._packed_of = None, None
        self._digest = digest(self.crow_indices, self.col_indices)
        self._indices = versions(self.crow_indices, self.col_indices)
        if self.values.device.type != "cpu":
            return
        shape = self._shape()
        self.packed = layout.pack(
            self.blocks, shape[0], self._in_channels(), shape[2:], self._groups()
        )
        self._packed_of = self._state_of_values()

    @property
    def blocks(self) -> layout.Blocks:
        """The weights as ops.block_sparse_conv2d takes them."""
        return layout.Blocks(self.values, self.crow_indices, self.col_indices)

    @property
    def zeros(self) -> float:
        """Fraction of the weight's blocks that are left out."""
        grid = (len(self.crow_indices) - 1) * self._columns()
        return 1 - len(self.col_indices) / grid if grid else 0.0

    def to_dense(self) -> Tensor:
        """The weight in torch.nn's layout, float32; differentiable in `values`."""
        shape = self._shape()
        dense = layout.to_dense(self.blocks, shape[0], shape[1], shape[2:])
        return dense.permute(0, 3, 1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """The shapes and dtypes of the torch.nn twin."""
        if not x.is_floating_point():
            do = "Convert it first."
            raise UnsupportedShape(need(f"a float input of {type(self).__name__}", x.dtype, do))
        self._check_indices()
        bias = None if self.bias is None else self.bias.float()
        return self._operator(x, bias, self._current()).to(result_dtype(x))

    def _check_indices(self) -> None:
        if torch.compiler.is_compiling():
            return
        own = self.crow_indices, self.col_indices
        if self._indices != versions(*own):
            check_digest(type(self).__name__, "indices", self._digest, *own)
            self.refresh()

    def _current(self) -> Tensor | None:
        """`packed`, if it still holds the blocks: not while they train."""
        if torch.is_grad_enabled() and self.values.requires_grad and self.training:
            return None
        if not torch.compiler.is_compiling() and self._packed_of != self._state_of_values():
            self.refresh()
        return self.packed

    def _state_of_values(self) -> tuple[tuple[int, int], ...]:
        # `packed` may be averaged, as other buffers are.
        return versions(self.values, self.packed)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        found = [state_dict.get(prefix + name) for name in layout.Blocks._fields]
        if all(isinstance(t, Tensor) for t in found):
            self._adopt(layout.Blocks(*[t.to(self.values.device) for t in found if t is not None]))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.refresh()

    def _columns(self) -> int:
        shape = self._shape()
        return -(-shape[1] // self.block[1]) * shape[2] * shape[3]

    @abstractmethod
    def _shape(self) -> tuple[int, int, int, int]:
        """O, I, R, S of the weight."""

    @abstractmethod
    def _operator(self, x: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
        """Run the operator."""

    @abstractmethod
    def _in_channels(self) -> int:
        """Input channels of all groups."""

    def _groups(self) -> int:
        return 1

    def _describe(self, twin: str) -> str:
        n, m = self.block
        dtype = str(self.values.dtype).removeprefix("torch.")
        return f"{twin}, block={n}x{m}, zeros={self.zeros:.1%}, values={dtype}"


def pruned(weight: Tensor, zeros: float, block: Block, dtype: Any = None) -> Tensor:
    """A copy of weight [O, I, ...] with a share `zeros` of its blocks set to zero: exactly, to one
    block, those of the smallest sum of magnitudes. BadConfig for a share outside 0..1.
    """
    if not 0 <= zeros <= 1:
        raise BadConfig(
            need("zeros as a fraction of the blocks, 0..1", zeros, "0.8 leaves a fifth.")
        )
    pattern = get_pattern(f"{block[0]}x{block[1]}")
    scores = unit_scores(weight, pattern)
    kept = ~lowest(scores, round(zeros * len(scores)))
    return (weight.detach() * to_mask(kept, weight.shape, pattern)).to(dtype or weight.dtype)
