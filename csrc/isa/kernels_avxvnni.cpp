// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include <immintrin.h>

#include "isa/target.h"
#include "kernels/table.h"

TOPS_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
namespace tops {
namespace avxvnni_impl {
// clang-format off: the kernels use the policy
#include "isa/policy_avxvnni.inl"
#include "kernels/byte_products.inl"
// clang-format on
}  // namespace avxvnni_impl
}  // namespace tops
TOPS_TARGET_END

namespace tops {
// The kernels of AVX2 but those with a dot product of bytes.
const KernelTable& avxvnni_kernels() {
  using namespace avxvnni_impl;
  static const KernelTable table = [] {
    KernelTable t = avx2_kernels();
    t.name = "avxvnni";
    t.sparse_below = V::kSparseBelow;
    t.sparse_vectors = V::kSparseVectors;
    t.signed_input = V::kSignedInput;
    t.conv_dense = conv_dense;
    t.conv_wide = conv_wide;
    t.wide_scratch = wide_scratch;
    t.wide_speed = V::kWideSpeed;
    t.conv_sparse = conv_sparse;
    t.conv_depthwise = conv_depthwise;
    t.linear = linear;
    t.linear_epilogue = linear_epilogue;
    t.quantize_row = quantize_row;
    t.dot_burst = dot_burst;
    t.float_burst = float_burst;
    t.read_burst = read_burst;
    return t;
  }();
  return table;
}
}  // namespace tops
#endif
