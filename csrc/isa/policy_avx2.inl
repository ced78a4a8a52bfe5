// SPDX-License-Identifier: Apache-2.0
// AVX2, FMA and F16C: 8 packets a vector. Included inside the target region and the namespace of
// its unit.

struct V {
  static constexpr int kLanes = 8;
  static constexpr int kPairVectors = 4;
  static constexpr int kBlockVectors2 = 6, kBlockVectors4 = 3;
  static constexpr int kSparseVectors = 9;
  // 4 channels x 2 vectors: eight sums, two inputs, a weight and a product of the 16 registers.
  static constexpr int kDenseChannels = 4;
  static constexpr int kDenseVectors = 2;
  // The sums depend on each other through one addition of one cycle: no second chain is needed.
  static constexpr int kChains = 1;
  static constexpr SparseBelow kSparseBelow = {0.72, 0.8, 2.0, 2.0, 0.7};
  static constexpr double kWideSpeed = 0.5;  // its sums cannot wait in 16 bits
  static constexpr int kFloatRows = 2;       // times four sums each
  static constexpr bool kSignedInput = false;
  static constexpr int kWidePixels =
      4;  // two vectors of channels for each leave room for weights and input
#include "isa/policy_ymm.inl"

  // |255 * 1 + 255 * 1| = 510 fits the 16-bit lanes of maddubs, so ternary weights never saturate
  // there.
  static TOPS_INLINE I dot_ternary(I acc, I x, I w) {
    return add(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
  }
  // 64 such sums still fit 16 bits (64 * 510 = 32,640): adding them there and widening once makes
  // two instructions of the three.
  static constexpr int64_t kNarrowSteps = 64;
  // In one piece: GCC would move all additions of a block behind all of its products, which takes
  // more registers than there are.
  static TOPS_INLINE I dot_narrow(I acc, I x, I w) {
    I product;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
            : "+x"(acc), "=&x"(product)
            : "x"(x), "x"(w));
    return acc;
  }
  // dot_narrow with w in memory, 32 bytes at any address.
  static TOPS_INLINE I dot_narrow_at(I acc, I x, const uint8_t* w) {
    I product;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
            : "+x"(acc), "=&x"(product)
            : "x"(x), "m"(*reinterpret_cast<const __m256i_u*>(w)));
    return acc;
  }
  static TOPS_INLINE I add_narrow(I acc, I narrow) {
    return add(acc, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
  }
  static TOPS_INLINE I product_narrow(I x, I w) { return _mm256_maddubs_epi16(x, w); }
  // 255 * 127 * 2 does not: even and odd bytes are widened and multiplied apart.
  static TOPS_INLINE I dot_int8(I acc, I x, I w) {
    const I x_even = and_(x, set1(0x00ff00ff)), x_odd = _mm256_srli_epi16(x, 8);
    const I w_even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), w_odd = _mm256_srai_epi16(w, 8);
    return add(acc, add(_mm256_madd_epi16(x_even, w_even), _mm256_madd_epi16(x_odd, w_odd)));
  }
  // Dot product of the dense loop, which widens its inputs once for all channels and reads weights
  // widened when the panel was expanded: two pairs of int16, even and odd bytes of a quad.
  static constexpr int64_t kInt8QuadBytes = 8;
  struct Wide {
    I even, odd;
  };
  static TOPS_INLINE Wide wide_input(I x) {
    return {and_(x, set1(0x00ff00ff)), _mm256_srli_epi16(x, 8)};
  }
  static TOPS_INLINE Wide wide_weights(I w) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), _mm256_srai_epi16(w, 8)};
  }
  static TOPS_INLINE Wide wide_weight(const uint8_t* quad) {
    int32_t even, odd;
    __builtin_memcpy(&even, quad, 4);
    __builtin_memcpy(&odd, quad + 4, 4);
    return {set1(even), set1(odd)};
  }
  static TOPS_INLINE I dot_wide(I acc, const Wide& x, const Wide& w) {
    I product;
    __asm__(
        "vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0\n\t"
        "vpmaddwd %5, %4, %1\n\tvpaddd %1, %0, %0"
        : "+x"(acc), "=&x"(product)
        : "x"(x.even), "x"(w.even), "x"(x.odd), "x"(w.odd));
    return acc;
  }
  // 8 quads to 8 such pairs.
  static TOPS_INLINE void widen_quads(const uint8_t* quads, uint8_t* to) {
    const I w = load(quads);
    const I even = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8), odd = _mm256_srai_epi16(w, 8);
    const I low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    store(to, _mm256_permute2x128_si256(low, high, 0x20));
    store(to + 32, _mm256_permute2x128_si256(low, high, 0x31));
  }
};
