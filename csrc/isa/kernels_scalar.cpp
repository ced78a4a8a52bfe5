// SPDX-License-Identifier: Apache-2.0
#include "isa/target.h"
#include "kernels/table.h"

namespace tops {
namespace scalar_impl {
#define TOPS_ISA_NAME "scalar"
// clang-format off: the kernels use the policy
#include "isa/policy_scalar.inl"
#include "kernels/all.inl"
// clang-format on
}  // namespace scalar_impl
}  // namespace tops

namespace tops {
const KernelTable& scalar_kernels() { return scalar_impl::kTable; }
}  // namespace tops
