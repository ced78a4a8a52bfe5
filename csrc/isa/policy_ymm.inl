// SPDX-License-Identifier: Apache-2.0
// Inside a policy of 256-bit vectors, 8 packets each: everything but the dot products of bytes.

using I = __m256i;
using F = __m256;

static TOPS_INLINE I first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static TOPS_INLINE I load(const void* p) { return _mm256_loadu_si256(static_cast<const I*>(p)); }
static TOPS_INLINE void store(void* p, I v) { _mm256_storeu_si256(static_cast<I*>(p), v); }
// A masked store takes some processors longer than the rest of a loop: whole vectors go without.
static TOPS_INLINE void store_n(void* p, I v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  _mm256_maskstore_epi32(static_cast<int*>(p), first_lanes(n), v);
}
static TOPS_INLINE I load_n(const void* p, int64_t n) {
  if (n >= kLanes) return load(p);
  return _mm256_maskload_epi32(static_cast<const int*>(p), first_lanes(n));
}
static TOPS_INLINE I set1(int32_t v) { return _mm256_set1_epi32(v); }
static TOPS_INLINE F set1f(float v) { return _mm256_set1_ps(v); }
static TOPS_INLINE I add(I a, I b) { return _mm256_add_epi32(a, b); }
static TOPS_INLINE I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
static TOPS_INLINE I mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
static TOPS_INLINE I and_(I a, I b) { return _mm256_and_si256(a, b); }
template <int n>
static TOPS_INLINE I shr(I a) {
  return _mm256_srli_epi32(a, n);
}
static TOPS_INLINE F as_f(I a) { return _mm256_castsi256_ps(a); }
static TOPS_INLINE I as_i(F a) { return _mm256_castps_si256(a); }
static TOPS_INLINE F to_f(I a) { return _mm256_cvtepi32_ps(a); }
static TOPS_INLINE I round(F a) { return _mm256_cvtps_epi32(a); }
static TOPS_INLINE F addf(F a, F b) { return _mm256_add_ps(a, b); }
static TOPS_INLINE F subf(F a, F b) { return _mm256_sub_ps(a, b); }
static TOPS_INLINE F mulf(F a, F b) { return _mm256_mul_ps(a, b); }
static TOPS_INLINE F divf(F a, F b) { return _mm256_div_ps(a, b); }
static TOPS_INLINE F sqrtf(F a) { return _mm256_sqrt_ps(a); }
static TOPS_INLINE F maxf(F a, F b) { return _mm256_max_ps(a, b); }
static TOPS_INLINE F minf(F a, F b) { return _mm256_min_ps(a, b); }
static TOPS_INLINE I max_u8(I a, I b) { return _mm256_max_epu8(a, b); }
static TOPS_INLINE I min_u8(I a, I b) { return _mm256_min_epu8(a, b); }
static TOPS_INLINE I select(uint32_t bits, I a, I b) {
  const I lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const I on = _mm256_cmpeq_epi32(_mm256_and_si256(set1(static_cast<int32_t>(bits)), lane), lane);
  return _mm256_blendv_epi8(b, a, on);
}
static TOPS_INLINE uint32_t bits_at(const uint8_t* bits, int64_t i) { return bits[i / 8]; }
static constexpr uint32_t kAll = 0xff;

// a * b + c, rounded once.
static TOPS_INLINE F fused(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
static TOPS_INLINE I dot_float(I acc, I x, I w) { return as_i(fused(as_f(x), as_f(w), as_f(acc))); }

// kLanes values of 16 bits as float32.
static TOPS_INLINE I widen_float16(const void* p) {
  return as_i(_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
static TOPS_INLINE I widen_bfloat16(const void* p) {
  return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))),
                           16);
}

static TOPS_INLINE I pack(I a, I b, I c, I d, I zero_point16) {
  const I ab = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero_point16);
  const I cd = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero_point16);
  const I order =
      _mm256_broadcastsi128_si256(_mm_set_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
  return _mm256_shuffle_epi8(_mm256_packus_epi16(ab, cd), order);
}
// 32 int32 values in their order to u8.
static TOPS_INLINE I pack_row(I a, I b, I c, I d, I zero_point16) {
  return _mm256_permutevar8x32_epi32(pack_pixels(a, b, c, d, zero_point16),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
// Four pixels of 8 channels, int32, to u8 packets: 128-bit lane l holds the four pixels' packets of
// channels 4l .. 4l + 3.
static TOPS_INLINE I pack_pixels(I a, I b, I c, I d, I zero_point16) {
  return _mm256_packus_epi16(_mm256_adds_epi16(_mm256_packs_epi32(a, b), zero_point16),
                             _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero_point16));
}
static TOPS_INLINE void store_lanes(uint8_t* p, int64_t stride, I v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + stride), _mm256_extracti128_si256(v, 1));
}
static TOPS_INLINE I load_lanes(const uint8_t* p, int64_t stride) {
  return _mm256_set_m128i(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + stride)),
                          _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Pixel j of lanes packed as above, its bytes widened to int32 channels.
static TOPS_INLINE I pixel_of(I v, int j) {
  const __m128i at = _mm_add_epi32(
      _mm_set_epi32(-0x7f7f7ffd, -0x7f7f7ffe, -0x7f7f7fff, -0x7f7f8000), _mm_set1_epi32(4 * j));
  return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(at));
}
// 16 bytes, in every 128-bit lane.
static TOPS_INLINE I load_four(const void* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
// Packets of four taps to quads of taps: to[j] holds pixel j of each 128-bit lane, one channel a
// quad.
static TOPS_INLINE void transpose_taps(I a, I b, I c, I d, I to[4]) {
  const I ab = _mm256_unpacklo_epi8(a, b), ab2 = _mm256_unpackhi_epi8(a, b);
  const I cd = _mm256_unpacklo_epi8(c, d), cd2 = _mm256_unpackhi_epi8(c, d);
  to[0] = _mm256_unpacklo_epi16(ab, cd), to[1] = _mm256_unpackhi_epi16(ab, cd);
  to[2] = _mm256_unpacklo_epi16(ab2, cd2), to[3] = _mm256_unpackhi_epi16(ab2, cd2);
}
// Four channels of pixel j of each 128-bit lane in v[j] to all pixels of channel j.
static TOPS_INLINE void transpose_channels(I v[4]) {
  const I ab = _mm256_unpacklo_epi32(v[0], v[1]), ab2 = _mm256_unpackhi_epi32(v[0], v[1]);
  const I cd = _mm256_unpacklo_epi32(v[2], v[3]), cd2 = _mm256_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm256_unpacklo_epi64(ab, cd), v[1] = _mm256_unpackhi_epi64(ab, cd);
  v[2] = _mm256_unpacklo_epi64(ab2, cd2), v[3] = _mm256_unpackhi_epi64(ab2, cd2);
}
// 64 bytes of dense codes (weights/packed.h) to 8 rows of 8 quads, rows `stride` bytes apart. The
// invalid code counts as 0.
static TOPS_INLINE void expand_group(const uint8_t* codes, uint8_t* to, int64_t stride) {
  const I low = set1(0x03030303), table = set1(static_cast<int32_t>(0xff000100u));
  for (int half = 0; half < 2; ++half) {
    const I c = load(codes + 32 * half);
    uint8_t* const row = to + half * stride;
    store(row, _mm256_shuffle_epi8(table, and_(c, low)));
    store(row + 2 * stride, _mm256_shuffle_epi8(table, and_(shr<2>(c), low)));
    store(row + 4 * stride, _mm256_shuffle_epi8(table, and_(shr<4>(c), low)));
    store(row + 6 * stride, _mm256_shuffle_epi8(table, and_(shr<6>(c), low)));
  }
}
static TOPS_INLINE I add_bytes(I a, I b) { return _mm256_add_epi8(a, b); }
// a - b, at least 0.
static TOPS_INLINE I less_bytes(I a, I b) { return _mm256_subs_epu8(a, b); }
// (a + b + 1) / 2 of each byte.
static TOPS_INLINE I average_bytes(I a, I b) { return _mm256_avg_epu8(a, b); }
static TOPS_INLINE I load_stride2(const void* p) {
  const F a = as_f(load(p)), b = as_f(load(static_cast<const uint8_t*>(p) + 32));
  return _mm256_permute4x64_epi64(as_i(_mm256_shuffle_ps(a, b, 0x88)), 0xd8);
}
// The compiler may not compute or load this value a second time.
static TOPS_INLINE I in_register(I a) {
  __asm__ volatile("" : "+x"(a));
  return a;
}
// acc += dot(x, w), once for every call, whatever the compiler knows.
static TOPS_INLINE void dot_again(I& acc, I x, I w) { acc = dot_ternary(acc, x, in_register(w)); }
static TOPS_INLINE int32_t sum(I a) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
// Four packets of each 128-bit lane to the four bytes of each channel: 32-bit lane c of it holds
// byte c of every packet.
static TOPS_INLINE I packets_to_channels(I a) {
  return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(
                                    _mm_set_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400)));
}
// acc plus the four bytes of a lane, and plus their squares.
static TOPS_INLINE I add_byte_sums(I acc, I x) {
  const I pairs = _mm256_maddubs_epi16(x, set1(0x01010101));
  return add(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
static TOPS_INLINE I add_byte_squares(I acc, I x) {
  const I even = and_(x, set1(0x00ff00ff)), odd = _mm256_srli_epi16(x, 8);
  return add(acc, add(_mm256_madd_epi16(even, even), _mm256_madd_epi16(odd, odd)));
}
// table[b] for every byte b: 16 look-ups by the low half of b, then a choice by each bit of the
// high half.
static TOPS_INLINE I sixteen(const uint8_t* table, int k, I low) {
  const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16 * k));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(part), low);
}
static TOPS_INLINE I sixty_four(const uint8_t* table, int k, I low, I bit4, I bit5) {
  const I a = _mm256_blendv_epi8(sixteen(table, k, low), sixteen(table, k + 1, low), bit4);
  const I b = _mm256_blendv_epi8(sixteen(table, k + 2, low), sixteen(table, k + 3, low), bit4);
  return _mm256_blendv_epi8(a, b, bit5);
}
static TOPS_INLINE I lookup(I x, const uint8_t* table) {
  const I low = and_(x, set1(0x0f0f0f0f)), bit4 = _mm256_slli_epi16(x, 3),
          bit5 = _mm256_slli_epi16(x, 2), bit6 = _mm256_slli_epi16(x, 1);
  const I a = _mm256_blendv_epi8(sixty_four(table, 0, low, bit4, bit5),
                                 sixty_four(table, 4, low, bit4, bit5), bit6);
  const I b = _mm256_blendv_epi8(sixty_four(table, 8, low, bit4, bit5),
                                 sixty_four(table, 12, low, bit4, bit5), bit6);
  return _mm256_blendv_epi8(a, b, x);
}
// kLanes bytes, one a lane.
static TOPS_INLINE I bytes_to_lanes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
static TOPS_INLINE I int8_to_lanes(const uint8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
// -1, 0 or +1 for the lowest two bits of each lane, a ternary weight plus one.
static TOPS_INLINE F ternary_of(I codes) {
  return _mm256_permutevar8x32_ps(_mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0), codes);
}
static TOPS_INLINE float sumf(F a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
