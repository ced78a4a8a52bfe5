// SPDX-License-Identifier: Apache-2.0
// Rows of bfloat16 times integer weights with AVX512_BF16: two products a lane, summed in float32.
#if defined(__x86_64__) && !defined(TOPS_EMULATED)
// GCC's own intrinsics read an undefined vector on purpose (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "isa/target.h"
#include "kernels/table.h"

TOPS_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma")
namespace tops {
namespace avx512bf16_impl {
// clang-format off: the kernels use the policy
#include "isa/policy_avx512vnni.inl"
#include "kernels/linear_float.inl"
// clang-format on

struct Bfloat16Dots {
  using X = uint16_t;
  static constexpr int kWeights = 2 * V::kLanes;
  static TOPS_INLINE V::I dot(V::I acc, V::I x, V::I w) {
    return V::as_i(_mm512_dpbf16_ps(V::as_f(acc), as_bfloat16(x), as_bfloat16(w)));
  }
  static TOPS_INLINE V::I widen(const uint8_t* codes) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  }
  // The look-up reads five bits: what stands above the lowest two changes nothing, as the table
  // repeats. 0x3f80 is one, 0xbf80 minus one.
  static TOPS_INLINE V::I ternary(V::I codes) {
    return _mm512_permutexvar_epi16(codes, _mm512_set1_epi64(0x00003f800000bf80));
  }
  // An int8 fits the eight bits of a bfloat16's fraction.
  static TOPS_INLINE V::I int8(const uint8_t* p) {
    const V::F low = V::to_f(V::int8_to_lanes(p)), high = V::to_f(V::int8_to_lanes(p + V::kLanes));
    V::I both;
    const __m512bh pairs = _mm512_cvtne2ps_pbh(high, low);
    __builtin_memcpy(&both, &pairs, sizeof(both));
    return both;
  }

 private:
  static TOPS_INLINE __m512bh as_bfloat16(V::I v) {
    __m512bh pairs;
    __builtin_memcpy(&pairs, &v, sizeof(pairs));
    return pairs;
  }
};

}  // namespace avx512bf16_impl
}  // namespace tops
TOPS_TARGET_END

namespace tops {
void linear_bfloat16(const FloatLinearArgs& a, int64_t begin, int64_t end) {
  avx512bf16_impl::linear_float<avx512bf16_impl::Bfloat16Dots>(a, begin, end);
}
}  // namespace tops
#endif
