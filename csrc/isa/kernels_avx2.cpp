// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa/target.h"
#include "kernels/table.h"

TOPS_TARGET_BEGIN("avx2,fma,f16c")
namespace tops {
namespace avx2_impl {
#define TOPS_ISA_NAME "avx2"
// clang-format off: the kernels use the policy
#include "isa/policy_avx2.inl"
#include "kernels/all.inl"
// clang-format on
}  // namespace avx2_impl
}  // namespace tops
TOPS_TARGET_END

namespace tops {
const KernelTable& avx2_kernels() { return avx2_impl::kTable; }
}  // namespace tops
#endif
