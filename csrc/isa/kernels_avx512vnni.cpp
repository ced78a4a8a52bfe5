// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
// GCC's own intrinsics read an undefined vector on purpose (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "isa/target.h"
#include "kernels/table.h"

TOPS_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")
namespace tops {
namespace avx512vnni_impl {
#define TOPS_ISA_NAME "avx512vnni"
// clang-format off: the kernels use the policy
#include "isa/policy_avx512vnni.inl"
#include "kernels/all.inl"
// clang-format on
}  // namespace avx512vnni_impl
}  // namespace tops
TOPS_TARGET_END

namespace tops {
const KernelTable& avx512vnni_kernels() { return avx512vnni_impl::kTable; }
}  // namespace tops
#endif
