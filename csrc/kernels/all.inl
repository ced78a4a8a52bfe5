// SPDX-License-Identifier: Apache-2.0
// Every kernel, over the policy V that was defined before.
// clang-format off: each file uses the ones before it
#include "kernels/spans.inl"
#include "kernels/sigmoid.inl"
#include "kernels/epilogue.inl"
#include "kernels/conv_tile.inl"
#include "kernels/conv_dense.inl"
#include "kernels/conv_sparse.inl"
#include "kernels/conv_wide.inl"
#include "kernels/winograd.inl"
#include "kernels/block_sparse.inl"
#include "kernels/depthwise.inl"
#include "kernels/linear.inl"
#include "kernels/linear_float.inl"
#include "kernels/ceiling.inl"
#include "kernels/fake_quant.inl"
#include "kernels/functions.inl"
#include "kernels/resize.inl"
#include "kernels/gate.inl"
#include "kernels/elementwise.inl"
// clang-format on
