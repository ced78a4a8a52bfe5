// SPDX-License-Identifier: Apache-2.0
// AVX-512 in plain C++, from SIMDe (Debian: libsimde-dev), so that its kernels run on any machine:
// tests/cpp/build.py --emulate. What SIMDe 0.7 lacks, or rounds twice, stands below.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>

using __mmask16 = uint16_t;
using __mmask64 = uint64_t;

namespace emulated {

template <class T>
struct Lanes {
  T at[16];
};

template <class To, class From>
inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Register Out whose lane k is f(lane k of a).
template <class Out, class To, class From, class In, class F>
inline Out map(const In& a, F f) {
  const Lanes<From> from = bits<Lanes<From>>(a);
  Lanes<To> to;
  for (int k = 0; k < 16; ++k) to.at[k] = f(from.at[k]);
  return bits<Out>(to);
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half >> 15) << 31, mantissa = half & 1023u;
  const int exponent = half >> 10 & 31;
  if (exponent == 31) return bits<float>(sign | 0x7f800000u | mantissa << 13);
  const float size = exponent ? std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25)
                              : std::ldexp(static_cast<float>(mantissa), -24);
  return sign ? -size : size;
}

// Out of range: the most negative integer, as the instruction gives.
inline int32_t nearest(float x) {
  const double r = std::nearbyint(static_cast<double>(x));
  return r >= -2147483648.0 && r <= 2147483647.0 ? static_cast<int32_t>(r) : INT32_MIN;
}

}  // namespace emulated

inline __m512 _mm512_cvtepi32_ps(__m512i a) {
  return emulated::map<__m512, float, int32_t>(a, [](int32_t x) { return static_cast<float>(x); });
}
inline __m512i _mm512_cvtps_epi32(__m512 a) {
  return emulated::map<__m512i, int32_t, float>(a, emulated::nearest);
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  return emulated::map<__m512i, int32_t, uint16_t>(a, [](uint16_t x) { return int32_t{x}; });
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
  return emulated::map<__m512, float, uint16_t>(a, emulated::from_half);
}
inline void _mm512_mask_storeu_epi32(void* to, __mmask16 mask, __m512i a) {
  const auto lanes = emulated::bits<emulated::Lanes<int32_t>>(a);
  for (int k = 0; k < 16; ++k)
    if (mask >> k & 1) std::memcpy(static_cast<char*>(to) + 4 * k, &lanes.at[k], 4);
}
inline __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* from) {
  emulated::Lanes<int32_t> lanes{};
  for (int k = 0; k < 16; ++k)
    if (mask >> k & 1) std::memcpy(&lanes.at[k], static_cast<const char*>(from) + 4 * k, 4);
  return emulated::bits<__m512i>(lanes);
}
inline int _mm512_reduce_add_epi32(__m512i a) {
  uint32_t sum = 0;
  for (uint32_t x : emulated::bits<emulated::Lanes<uint32_t>>(a).at) sum += x;
  return static_cast<int>(sum);
}
#undef _mm512_fmadd_ps
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const auto x = emulated::bits<emulated::Lanes<float>>(a);
  const auto y = emulated::bits<emulated::Lanes<float>>(b);
  auto z = emulated::bits<emulated::Lanes<float>>(c);
  for (int k = 0; k < 16; ++k) z.at[k] = std::fma(x.at[k], y.at[k], z.at[k]);
  return emulated::bits<__m512>(z);
}
