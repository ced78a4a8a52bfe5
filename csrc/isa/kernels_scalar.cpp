// SPDX-License-Identifier: Apache-2.0
#include "isa/target.h"
#include "kernels/table.h"

namespace tops {
namespace scalar_impl {
#define TOPS_ISA_NAME "scalar"
// clang-format off: each file uses the ones before it
#include "isa/policy_scalar.inl"
#include "kernels/epilogue.inl"
#include "kernels/conv.inl"
#include "kernels/conv_wide.inl"
#include "kernels/block_sparse.inl"
#include "kernels/depthwise.inl"
#include "kernels/linear.inl"
#include "kernels/ceiling.inl"
#include "kernels/fake_quant.inl"
#include "kernels/elementwise.inl"
// clang-format on
}  // namespace scalar_impl
}  // namespace tops

namespace tops {
const KernelTable& scalar_kernels() { return scalar_impl::kTable; }
}  // namespace tops
