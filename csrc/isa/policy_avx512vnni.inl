// SPDX-License-Identifier: Apache-2.0
// AVX-512 F, DQ, BW, VL, VNNI: 16 packets a vector. Included inside the target region and the
// namespace of its unit.

struct V {
  static constexpr int kLanes = 16;
  static constexpr int kPairVectors = 4;
  static constexpr int kBlockVectors2 = 8, kBlockVectors4 = 6;
  static constexpr int kSparseVectors = 8;  // accumulators of the sparse kernel
  static constexpr int kDenseChannels = 8;
  static constexpr int kDenseVectors =
      3;  // 8 channels x 3 vectors leave 8 registers for inputs and weights
  static constexpr int kChains = 4;  // a sum waits five cycles for the one before it
  static constexpr SparseBelow kSparseBelow = {0.4, 0.55, 0.4, 0.4, 2.0};
  static constexpr double kWideSpeed = 1.0;
  static constexpr int kFloatRows = 4;  // times four sums each
  static constexpr bool kSignedInput = false;
  static constexpr int kWidePixels =
      14;  // two vectors of channels for each leave room for weights and input
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
  static TOPS_INLINE I mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
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
  static TOPS_INLINE F subf(F a, F b) { return _mm512_sub_ps(a, b); }
  static TOPS_INLINE F mulf(F a, F b) { return _mm512_mul_ps(a, b); }
  static TOPS_INLINE F divf(F a, F b) { return _mm512_div_ps(a, b); }
  static TOPS_INLINE F sqrtf(F a) { return _mm512_sqrt_ps(a); }
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
#include "isa/exact_dots.inl"
  // a * b + c, rounded once.
  static TOPS_INLINE F fused(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static TOPS_INLINE I dot_float(I acc, I x, I w) {
    return as_i(fused(as_f(x), as_f(w), as_f(acc)));
  }

  // kLanes values of 16 bits as float32.
  static TOPS_INLINE I widen_float16(const void* p) {
    return as_i(_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))));
  }
  static TOPS_INLINE I widen_bfloat16(const void* p) {
    return _mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))), 16);
  }

  // Four channels of 16 pixels, int32 plus zero point, saturated to u8 and interleaved to 16
  // packets.
  static TOPS_INLINE I pack(I a, I b, I c, I d, I zero_point16) {
    const I ab = _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero_point16);
    const I cd = _mm512_adds_epi16(_mm512_packs_epi32(c, d), zero_point16);
    const I order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    return _mm512_shuffle_epi8(_mm512_packus_epi16(ab, cd), order);
  }
  // 64 int32 values in their order to u8.
  static TOPS_INLINE I pack_row(I a, I b, I c, I d, I zero_point16) {
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, pack_pixels(a, b, c, d, zero_point16));
  }
  // Four pixels of 16 channels, int32, to u8 packets: 128-bit lane l holds the four pixels' packets
  // of channels 4l .. 4l + 3.
  static TOPS_INLINE I pack_pixels(I a, I b, I c, I d, I zero_point16) {
    return _mm512_packus_epi16(_mm512_adds_epi16(_mm512_packs_epi32(a, b), zero_point16),
                               _mm512_adds_epi16(_mm512_packs_epi32(c, d), zero_point16));
  }
  static TOPS_INLINE void store_lanes(uint8_t* p, int64_t stride, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm512_extracti32x4_epi32(v, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * stride), _mm512_extracti32x4_epi32(v, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * stride), _mm512_extracti32x4_epi32(v, 3));
  }
  static TOPS_INLINE __m128i lane_at(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static TOPS_INLINE I load_lanes(const uint8_t* p, int64_t stride) {
    I v = _mm512_castsi128_si512(lane_at(p));
    v = _mm512_inserti32x4(v, lane_at(p + stride), 1);
    v = _mm512_inserti32x4(v, lane_at(p + 2 * stride), 2);
    return _mm512_inserti32x4(v, lane_at(p + 3 * stride), 3);
  }
  // Pixel j of lanes packed as above, its bytes widened to int32 channels.
  static TOPS_INLINE I pixel_of(I v, int j) {
    const __m128i at = _mm_add_epi32(
        _mm_set_epi32(-0x7f7f7ffd, -0x7f7f7ffe, -0x7f7f7fff, -0x7f7f8000), _mm_set1_epi32(4 * j));
    return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(at));
  }
  // 16 bytes, in every 128-bit lane.
  static TOPS_INLINE I load_four(const void* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  // Packets of four taps to quads of taps: to[j] holds pixel j of each 128-bit lane, one channel a
  // quad.
  static TOPS_INLINE void transpose_taps(I a, I b, I c, I d, I to[4]) {
    const I ab = _mm512_unpacklo_epi8(a, b), ab2 = _mm512_unpackhi_epi8(a, b);
    const I cd = _mm512_unpacklo_epi8(c, d), cd2 = _mm512_unpackhi_epi8(c, d);
    to[0] = _mm512_unpacklo_epi16(ab, cd), to[1] = _mm512_unpackhi_epi16(ab, cd);
    to[2] = _mm512_unpacklo_epi16(ab2, cd2), to[3] = _mm512_unpackhi_epi16(ab2, cd2);
  }
  // Four channels of pixel j of each 128-bit lane in v[j] to all pixels of channel j.
  static TOPS_INLINE void transpose_channels(I v[4]) {
    const I ab = _mm512_unpacklo_epi32(v[0], v[1]), ab2 = _mm512_unpackhi_epi32(v[0], v[1]);
    const I cd = _mm512_unpacklo_epi32(v[2], v[3]), cd2 = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(ab, cd), v[1] = _mm512_unpackhi_epi64(ab, cd);
    v[2] = _mm512_unpacklo_epi64(ab2, cd2), v[3] = _mm512_unpackhi_epi64(ab2, cd2);
  }
  // 64 bytes of dense codes (weights/packed.h) to 8 rows of 8 quads, rows `stride` bytes apart. The
  // invalid code counts as 0.
  static TOPS_INLINE void expand_group(const uint8_t* codes, uint8_t* to, int64_t stride) {
    const I c = load(codes), low = set1(0x03030303),
            table = set1(static_cast<int32_t>(0xff000100u));
    store_rows(to, stride, _mm512_shuffle_epi8(table, and_(c, low)));
    store_rows(to + 2 * stride, stride, _mm512_shuffle_epi8(table, and_(shr<2>(c), low)));
    store_rows(to + 4 * stride, stride, _mm512_shuffle_epi8(table, and_(shr<4>(c), low)));
    store_rows(to + 6 * stride, stride, _mm512_shuffle_epi8(table, and_(shr<6>(c), low)));
  }
  static TOPS_INLINE void store_rows(uint8_t* to, int64_t stride, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + stride), _mm512_extracti64x4_epi64(v, 1));
  }
  static TOPS_INLINE I add_bytes(I a, I b) { return _mm512_add_epi8(a, b); }
  // a - b, at least 0.
  static TOPS_INLINE I less_bytes(I a, I b) { return _mm512_subs_epu8(a, b); }
  // (a + b + 1) / 2 of each byte.
  static TOPS_INLINE I average_bytes(I a, I b) { return _mm512_avg_epu8(a, b); }
  static TOPS_INLINE I load_stride2(const void* p) {
    const I even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    return _mm512_permutex2var_epi32(load(p), even, load(static_cast<const uint8_t*>(p) + 64));
  }
  // acc += dot(x, w), once for every call, whatever the compiler knows; and no copy of acc.
  static TOPS_INLINE void dot_again(I& acc, I x, I w) {
#if defined(TOPS_EMULATED)
    acc = _mm512_dpbusd_epi32(acc, x, w);
#else
    __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
#endif
  }
  // The compiler may not compute or load this value a second time.
  static TOPS_INLINE I in_register(I a) {
#if !defined(TOPS_EMULATED)
    __asm__ volatile("" : "+v"(a));
#endif
    return a;
  }
  static TOPS_INLINE int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }
  // Four packets of each 128-bit lane to the four bytes of each channel: 32-bit lane c of it holds
  // byte c of every packet.
  static TOPS_INLINE I packets_to_channels(I a) {
    return _mm512_shuffle_epi8(a,
                               _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
  }
  // acc plus the four bytes of a lane, and plus their squares.
  static TOPS_INLINE I add_byte_sums(I acc, I x) {
    return _mm512_dpbusd_epi32(acc, x, set1(0x01010101));
  }
  static TOPS_INLINE I add_byte_squares(I acc, I x) {
    const I even = and_(x, set1(0x00ff00ff)), odd = _mm512_srli_epi16(x, 8);
    return add(acc, add(_mm512_madd_epi16(even, even), _mm512_madd_epi16(odd, odd)));
  }
  static TOPS_INLINE float sumf(F a) { return _mm512_reduce_add_ps(a); }
  // kLanes bytes, one a lane.
  static TOPS_INLINE I bytes_to_lanes(const uint8_t* p) { return _mm512_cvtepu8_epi32(lane_at(p)); }
  static TOPS_INLINE I int8_to_lanes(const uint8_t* p) { return _mm512_cvtepi8_epi32(lane_at(p)); }
  // -1, 0 or +1 for the lowest two bits of each lane, a ternary weight plus one.
  static TOPS_INLINE F ternary_of(I codes) {
    return _mm512_permutexvar_ps(codes, _mm512_set4_ps(0, 1, 0, -1));
  }
  // table[b] for every byte b: 16 look-ups by the low half of b, then a choice by each bit of the
  // high half.
  static TOPS_INLINE I sixteen(const uint8_t* table, int k, I low) {
    const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(part), low);
  }
  static TOPS_INLINE I sixty_four(const uint8_t* table, int k, I low, __mmask64 bit4,
                                  __mmask64 bit5) {
    const I a = _mm512_mask_blend_epi8(bit4, sixteen(table, k, low), sixteen(table, k + 1, low));
    const I b =
        _mm512_mask_blend_epi8(bit4, sixteen(table, k + 2, low), sixteen(table, k + 3, low));
    return _mm512_mask_blend_epi8(bit5, a, b);
  }
  static TOPS_INLINE I lookup(I x, const uint8_t* table) {
    const I low = and_(x, set1(0x0f0f0f0f));
    const __mmask64 bit4 = _mm512_movepi8_mask(_mm512_slli_epi16(x, 3)),
                    bit5 = _mm512_movepi8_mask(_mm512_slli_epi16(x, 2)),
                    bit6 = _mm512_movepi8_mask(_mm512_slli_epi16(x, 1)),
                    bit7 = _mm512_movepi8_mask(x);
    const I a = _mm512_mask_blend_epi8(bit6, sixty_four(table, 0, low, bit4, bit5),
                                       sixty_four(table, 4, low, bit4, bit5));
    const I b = _mm512_mask_blend_epi8(bit6, sixty_four(table, 8, low, bit4, bit5),
                                       sixty_four(table, 12, low, bit4, bit5));
    return _mm512_mask_blend_epi8(bit7, a, b);
  }
};
