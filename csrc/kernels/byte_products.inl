// SPDX-License-Identifier: Apache-2.0
// Kernels that multiply bytes, over the policy V that was defined before: what an instruction set
// that adds nothing but a dot product of bytes compiles for itself.
// clang-format off: each file uses the ones before it
#include "kernels/spans.inl"
#include "kernels/sigmoid.inl"
#include "kernels/epilogue.inl"
#include "kernels/conv_tile.inl"
#include "kernels/conv_dense.inl"
#include "kernels/conv_sparse.inl"
#include "kernels/conv_wide.inl"
#include "kernels/depthwise.inl"
#include "kernels/linear.inl"
#include "kernels/ceiling.inl"
// clang-format on
