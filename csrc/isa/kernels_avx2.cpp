// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa/target.h"
#include "kernels/table.h"

TOPS_TARGET_BEGIN("avx2,fma,f16c")
namespace tops {
namespace avx2_impl {
#define TOPS_ISA_NAME "avx2"
// clang-format off: each file uses the ones before it
#include "isa/policy_avx2.inl"
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
}  // namespace avx2_impl
}  // namespace tops
TOPS_TARGET_END

namespace tops {
const KernelTable& avx2_kernels() { return avx2_impl::kTable; }
}  // namespace tops
#endif
