// SPDX-License-Identifier: Apache-2.0
// AVX2, FMA, F16C and AVX-VNNI: 8 packets a vector, four products of a packet in one instruction.

struct V {
  static constexpr int kLanes = 8;
  static constexpr int kPairVectors = 4;
  static constexpr int kBlockVectors2 = 6, kBlockVectors4 = 3;
  static constexpr int kSparseVectors = 9;
  // 4 channels x 3 vectors: twelve sums, three inputs and a weight are the 16 registers.
  static constexpr int kDenseChannels = 4;
  static constexpr int kDenseVectors = 3;
  static constexpr int kChains = 4;  // a sum waits five cycles for the one before it
  static constexpr SparseBelow kSparseBelow = {0.4, 0.55, 0.4, 0.4, 2.0};
  static constexpr double kWideSpeed = 1.0;
  static constexpr int kWidePixels = 5;
  static constexpr int kFloatRows = 2;  // times four sums each
  static constexpr bool kSignedInput = false;
#include "isa/policy_ymm.inl"

  static TOPS_INLINE I dot_ternary(I acc, I x, I w) { return _mm256_dpbusd_avx_epi32(acc, x, w); }
  static TOPS_INLINE I dot_int8(I acc, I x, I w) { return _mm256_dpbusd_avx_epi32(acc, x, w); }
#include "isa/exact_dots.inl"
};
