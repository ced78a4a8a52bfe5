// SPDX-License-Identifier: Apache-2.0
// AVX-512 F, DQ, BW, VL, VNNI: 16 cells a vector. Included inside the target region and the
// namespace of its unit.

struct V {
  static constexpr int kLanes = 16;
  static constexpr int kSparseVectors = 8;  // accumulators of the sparse kernel
  static constexpr int kDenseVectors =
      3;  // 8 channels x 3 vectors leave 8 registers for inputs and weights
  using I = __m512i;
  using F = __m512;

  static TOPS_INLINE I load(const void* p) { return _mm512_loadu_si512(p); }
  static TOPS_INLINE void store(void* p, I v) { _mm512_storeu_si512(p, v); }
  static TOPS_INLINE void store_n(void* p, I v, int64_t n) {
    _mm512_mask_storeu_epi32(p, static_cast<__mmask16>((1u << n) - 1), v);
  }
  static TOPS_INLINE I load_n(const void* p, int64_t n) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static TOPS_INLINE I set1(int32_t v) { return _mm512_set1_epi32(v); }
  static TOPS_INLINE F set1f(float v) { return _mm512_set1_ps(v); }
  static TOPS_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static TOPS_INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static TOPS_INLINE I and_(I a, I b) { return _mm512_and_si512(a, b); }
  template <int n>
  static TOPS_INLINE I shr(I a) {
    return _mm512_srli_epi32(a, n);
  }
  static TOPS_INLINE F as_f(I a) { return _mm512_castsi512_ps(a); }
  static TOPS_INLINE I as_i(F a) { return _mm512_castps_si512(a); }
  static TOPS_INLINE F to_f(I a) { return _mm512_cvtepi32_ps(a); }
  static TOPS_INLINE I round(F a) { return _mm512_cvtps_epi32(a); }
  static TOPS_INLINE F addf(F a, F b) { return _mm512_add_ps(a, b); }
  static TOPS_INLINE F mulf(F a, F b) { return _mm512_mul_ps(a, b); }
  static TOPS_INLINE F maxf(F a, F b) { return _mm512_max_ps(a, b); }
  static TOPS_INLINE F minf(F a, F b) { return _mm512_min_ps(a, b); }
  static TOPS_INLINE I max_u8(I a, I b) { return _mm512_max_epu8(a, b); }
  static TOPS_INLINE I min_u8(I a, I b) { return _mm512_min_epu8(a, b); }
  static TOPS_INLINE I select(uint32_t bits, I a, I b) {
    return _mm512_mask_mov_epi32(b, static_cast<__mmask16>(bits), a);
  }
  static TOPS_INLINE uint32_t bits_at(const uint8_t* bits, int64_t i) {
    uint16_t b;
    __builtin_memcpy(&b, bits + i / 8, 2);
    return b;
  }
  static constexpr uint32_t kAll = 0xffff;

  static TOPS_INLINE I dot_ternary(I acc, I x, I w) { return _mm512_dpbusd_epi32(acc, x, w); }
  static TOPS_INLINE I dot_int8(I acc, I x, I w) { return _mm512_dpbusd_epi32(acc, x, w); }
  static TOPS_INLINE I dot_float(I acc, I x, I w) {
    return as_i(_mm512_fmadd_ps(as_f(x), as_f(w), as_f(acc)));
  }

  // Four channels of 16 pixels, int32 plus zero point, saturated to u8 and interleaved to 16 cells.
  static TOPS_INLINE I pack(I a, I b, I c, I d, I zero_point16) {
    const I ab = _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero_point16);
    const I cd = _mm512_adds_epi16(_mm512_packs_epi32(c, d), zero_point16);
    const I order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    return _mm512_shuffle_epi8(_mm512_packus_epi16(ab, cd), order);
  }
  // Two-bit codes, one byte in each lane, to four int8 in {-1, 0, 1}; the invalid code counts as 0.
  static TOPS_INLINE I expand_codes(const uint8_t* p) {
    const I x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const I lo = _mm512_or_si512(_mm512_and_si512(x, set1(0x03)),
                                 _mm512_and_si512(_mm512_slli_epi32(x, 6), set1(0x0300)));
    const I hi = _mm512_or_si512(_mm512_and_si512(_mm512_slli_epi32(x, 12), set1(0x030000)),
                                 _mm512_and_si512(_mm512_slli_epi32(x, 18), set1(0x03000000)));
    const I table = set1(static_cast<int32_t>(0xff000100u));
    return _mm512_shuffle_epi8(table, _mm512_or_si512(lo, hi));
  }
  // Code j of each byte, top-aligned: an int8 of 0 or +-64 (invalid: -128).
  template <int j>
  static TOPS_INLINE I top_code(I c) {
    return and_(_mm512_slli_epi16(c, 6 - 2 * j), set1(static_cast<int32_t>(0xc0c0c0c0u)));
  }
  static TOPS_INLINE I load_stride2(const void* p) {
    const I even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_epi32(load(p), even, load(static_cast<const uint8_t*>(p) + 64));
  }
  // The same value, as far as the compiler cannot tell: nothing computed from it is reused.
  static TOPS_INLINE I opaque(I a) {
    __asm__ volatile("" : "+v"(a));
    return a;
  }
  static TOPS_INLINE int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }
};
