// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa/target.h"
#include "kernels/table.h"

TOPS_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
namespace tops {
namespace avxvnni_impl {
#define TOPS_ISA_NAME "avxvnni"
// clang-format off: the kernels use the policy
#include "isa/policy_avxvnni.inl"
#include "kernels/all.inl"
// clang-format on
}  // namespace avxvnni_impl
}  // namespace tops
TOPS_TARGET_END

namespace tops {
const KernelTable& avxvnni_kernels() { return avxvnni_impl::kTable; }
}  // namespace tops
#endif
