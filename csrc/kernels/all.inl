// SPDX-License-Identifier: Apache-2.0
// Every kernel, over the policy V that was defined before.
// clang-format off: each file uses the ones before it
#include "kernels/byte_products.inl"
#include "kernels/winograd.inl"
#include "kernels/block_sparse.inl"
#include "kernels/linear_float.inl"
#include "kernels/fake_quant.inl"
#include "kernels/functions.inl"
#include "kernels/softmax.inl"
#include "kernels/attention.inl"
#include "kernels/layer_norm.inl"
#include "kernels/resize.inl"
#include "kernels/gate.inl"
#include "kernels/channel_sums.inl"
#include "kernels/elementwise.inl"
// clang-format on
