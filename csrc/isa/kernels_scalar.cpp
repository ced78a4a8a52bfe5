// SPDX-License-Identifier: Apache-2.0
#include "isa/target.h"
#include "kernels/table.h"

namespace tops {
namespace scalar_impl {
#define TOPS_ISA_NAME "scalar"
#include "isa/policy_scalar.inl"
#include "kernels/ceiling.inl"
#include "kernels/conv.inl"
#include "kernels/elementwise.inl"
#include "kernels/epilogue.inl"
#include "kernels/matvec.inl"
}  // namespace scalar_impl
}  // namespace tops

namespace tops {
const KernelTable& scalar_kernels() { return scalar_impl::kTable; }
}  // namespace tops
