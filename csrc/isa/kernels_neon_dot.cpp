// SPDX-License-Identifier: Apache-2.0
#if defined(__aarch64__)
#include <arm_neon.h>

#include "isa/target.h"
#include "kernels/table.h"

#if defined(__clang__)
TOPS_TARGET_BEGIN("dotprod")
#else
TOPS_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif
namespace tops {
namespace neon_dot_impl {
#define TOPS_ISA_NAME "neon_dot"
// clang-format off: the kernels use the policy
#include "isa/policy_neon_dot.inl"
#include "kernels/all.inl"
// clang-format on
}  // namespace neon_dot_impl
}  // namespace tops
TOPS_TARGET_END

namespace tops {
const KernelTable& neon_dot_kernels() { return neon_dot_impl::kTable; }
}  // namespace tops
#endif
