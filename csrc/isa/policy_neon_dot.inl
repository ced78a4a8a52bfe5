// SPDX-License-Identifier: Apache-2.0
// 64-bit ARM with dot products (ARMv8.2 DotProd): 4 packets a vector. Included inside the target
// region and the namespace of its unit. The instruction multiplies signed by signed bytes: inputs
// are read less 128 (KernelTable::signed_input).

struct V {
  static constexpr int kLanes = 4;
  static constexpr int kPairVectors = 4;
  static constexpr int kBlockVectors2 = 8, kBlockVectors4 = 5;
  static constexpr int kSparseVectors = 8;
  // 8 channels x 2 vectors leave half of the 32 registers for inputs, their shifted form, weights.
  static constexpr int kDenseChannels = 8;
  static constexpr int kDenseVectors = 2;
  static constexpr int kChains = 4;  // a sum waits four cycles for the one before it
  static constexpr SparseBelow kSparseBelow = {0.4, 0.55, 0.4, 0.4, 2.0};
  static constexpr double kWideSpeed = 1.0;
  static constexpr int kFloatRows = 4;  // times four sums each
  static constexpr bool kSignedInput = true;
  static constexpr int kWidePixels = 10;
  using I = int32x4_t;
  using F = float32x4_t;
  using Bytes = uint8x16_t;

  static TOPS_INLINE Bytes bytes(I a) { return vreinterpretq_u8_s32(a); }
  static TOPS_INLINE I packets(Bytes a) { return vreinterpretq_s32_u8(a); }

  static TOPS_INLINE I load(const void* p) {
    return packets(vld1q_u8(static_cast<const uint8_t*>(p)));
  }
  static TOPS_INLINE void store(void* p, I v) { vst1q_u8(static_cast<uint8_t*>(p), bytes(v)); }
  static TOPS_INLINE void store_n(void* p, I v, int64_t n) {
    if (n >= kLanes) return store(p, v);
    int32_t lanes[kLanes];
    vst1q_s32(lanes, v);
    __builtin_memcpy(p, lanes, static_cast<size_t>(n) * 4);
  }
  static TOPS_INLINE I load_n(const void* p, int64_t n) {
    if (n >= kLanes) return load(p);
    int32_t lanes[kLanes] = {};
    __builtin_memcpy(lanes, p, static_cast<size_t>(n) * 4);
    return vld1q_s32(lanes);
  }
  static TOPS_INLINE I set1(int32_t v) { return vdupq_n_s32(v); }
  static TOPS_INLINE F set1f(float v) { return vdupq_n_f32(v); }
  static TOPS_INLINE I add(I a, I b) { return vaddq_s32(a, b); }
  static TOPS_INLINE I sub(I a, I b) { return vsubq_s32(a, b); }
  static TOPS_INLINE I mul(I a, I b) { return vmulq_s32(a, b); }
  static TOPS_INLINE I and_(I a, I b) { return vandq_s32(a, b); }
  template <int n>
  static TOPS_INLINE I shr(I a) {
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), n));
  }
  static TOPS_INLINE F as_f(I a) { return vreinterpretq_f32_s32(a); }
  static TOPS_INLINE I as_i(F a) { return vreinterpretq_s32_f32(a); }
  static TOPS_INLINE F to_f(I a) { return vcvtq_f32_s32(a); }
  // As cvtps2dq: NaN becomes the smallest integer. What is too large saturates, as the callers see
  // to it that it does not happen.
  static TOPS_INLINE I round(F a) {
    return vbslq_s32(vceqq_f32(a, a), vcvtnq_s32_f32(a), vdupq_n_s32(INT32_MIN));
  }
  static TOPS_INLINE F addf(F a, F b) { return vaddq_f32(a, b); }
  static TOPS_INLINE F subf(F a, F b) { return vsubq_f32(a, b); }
  static TOPS_INLINE F mulf(F a, F b) { return vmulq_f32(a, b); }
  static TOPS_INLINE F divf(F a, F b) { return vdivq_f32(a, b); }
  static TOPS_INLINE F sqrtf(F a) { return vsqrtq_f32(a); }
  // As maxps and minps: the second operand where either is NaN.
  static TOPS_INLINE F maxf(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static TOPS_INLINE F minf(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static TOPS_INLINE I max_u8(I a, I b) { return packets(vmaxq_u8(bytes(a), bytes(b))); }
  static TOPS_INLINE I min_u8(I a, I b) { return packets(vminq_u8(bytes(a), bytes(b))); }
  static TOPS_INLINE I select(uint32_t bits, I a, I b) {
    static const uint32_t kLane[4] = {1, 2, 4, 8};
    return vbslq_s32(vtstq_u32(vdupq_n_u32(bits), vld1q_u32(kLane)), a, b);
  }
  static TOPS_INLINE uint32_t bits_at(const uint8_t* bits, int64_t i) {
    return (bits[i / 8] >> (i % 8)) & 0xf;
  }
  static constexpr uint32_t kAll = 0xf;

  static TOPS_INLINE I less_128(I x) { return packets(veorq_u8(bytes(x), vdupq_n_u8(0x80))); }
  static TOPS_INLINE I dot_signed(I acc, I x, I w) {
    return vdotq_s32(acc, vreinterpretq_s8_s32(x), vreinterpretq_s8_s32(w));
  }
  static TOPS_INLINE I dot_ternary(I acc, I x, I w) { return dot_signed(acc, less_128(x), w); }
  static TOPS_INLINE I dot_int8(I acc, I x, I w) { return dot_signed(acc, less_128(x), w); }
  // Four products are added exactly to 32-bit sums: nothing is narrowed, nothing is widened.
  static constexpr int64_t kNarrowSteps = 0;
  static TOPS_INLINE I dot_narrow(I acc, I x, I w) { return dot_ternary(acc, x, w); }
  // Codes below 128 times signed inputs: both are signed bytes already.
  static TOPS_INLINE I dot_narrow_at(I acc, I codes, const uint8_t* x) {
    return dot_signed(acc, codes, load(x));
  }
  static TOPS_INLINE I add_narrow(I acc, I narrow) { return add(acc, narrow); }
  static TOPS_INLINE I product_narrow(I x, I w) { return dot_int8(set1(0), x, w); }
  static constexpr int64_t kInt8QuadBytes = 4;
  using Wide = I;
  static TOPS_INLINE Wide wide_input(I x) { return less_128(x); }
  static TOPS_INLINE Wide wide_weights(I w) { return w; }
  static TOPS_INLINE Wide wide_weight(const uint8_t* quad) {
    int32_t w;
    __builtin_memcpy(&w, quad, 4);
    return set1(w);
  }
  static TOPS_INLINE I dot_wide(I acc, Wide x, Wide w) { return dot_signed(acc, x, w); }
  static TOPS_INLINE void widen_quads(const uint8_t*, uint8_t*) {}
  // a * b + c, rounded once.
  static TOPS_INLINE F fused(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static TOPS_INLINE I dot_float(I acc, I x, I w) {
    return as_i(fused(as_f(x), as_f(w), as_f(acc)));
  }

  // kLanes values of 16 bits as float32.
  static TOPS_INLINE I widen_float16(const void* p) {
    const uint16x4_t h = vld1_u16(static_cast<const uint16_t*>(p));
    return as_i(vcvt_f32_f16(vreinterpret_f16_u16(h)));
  }
  static TOPS_INLINE I widen_bfloat16(const void* p) {
    return vreinterpretq_s32_u32(vshll_n_u16(vld1_u16(static_cast<const uint16_t*>(p)), 16));
  }

  static TOPS_INLINE uint8x8_t pack_two(I a, I b, I zero_point16) {
    const int16x8_t ab = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
    return vqmovun_s16(vqaddq_s16(ab, vreinterpretq_s16_s32(zero_point16)));
  }
  static TOPS_INLINE I pack(I a, I b, I c, I d, I zero_point16) {
    static const uint8_t kOrder[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return packets(vqtbl1q_u8(bytes(pack_row(a, b, c, d, zero_point16)), vld1q_u8(kOrder)));
  }
  // 16 int32 values in their order to u8.
  static TOPS_INLINE I pack_row(I a, I b, I c, I d, I zero_point16) {
    return packets(vcombine_u8(pack_two(a, b, zero_point16), pack_two(c, d, zero_point16)));
  }
  // Four pixels of 4 channels, int32, to the u8 packets of those pixels.
  static TOPS_INLINE I pack_pixels(I a, I b, I c, I d, I zero_point16) {
    return pack_row(a, b, c, d, zero_point16);
  }
  static TOPS_INLINE void store_lanes(uint8_t* p, int64_t, I v) { store(p, v); }
  static TOPS_INLINE I load_lanes(const uint8_t* p, int64_t) { return load(p); }
  // Pixel j of packets packed as above, its bytes widened to int32 channels; an index past 15 gives
  // 0.
  static TOPS_INLINE I pixel_of(I v, int j) {
    static const uint8_t kFirst[16] = {0, 128, 128, 128, 1, 128, 128, 128,
                                       2, 128, 128, 128, 3, 128, 128, 128};
    const Bytes at = vaddq_u8(vld1q_u8(kFirst), vdupq_n_u8(static_cast<uint8_t>(4 * j)));
    return packets(vqtbl1q_u8(bytes(v), at));
  }
  static TOPS_INLINE I load_four(const void* p) { return load(p); }
  // Packets of four taps to quads of taps: to[j] holds pixel j, one channel a quad.
  static TOPS_INLINE void transpose_taps(I a, I b, I c, I d, I to[4]) {
    const uint16x8_t ab = vreinterpretq_u16_u8(vzip1q_u8(bytes(a), bytes(b))),
                     ab2 = vreinterpretq_u16_u8(vzip2q_u8(bytes(a), bytes(b))),
                     cd = vreinterpretq_u16_u8(vzip1q_u8(bytes(c), bytes(d))),
                     cd2 = vreinterpretq_u16_u8(vzip2q_u8(bytes(c), bytes(d)));
    to[0] = vreinterpretq_s32_u16(vzip1q_u16(ab, cd));
    to[1] = vreinterpretq_s32_u16(vzip2q_u16(ab, cd));
    to[2] = vreinterpretq_s32_u16(vzip1q_u16(ab2, cd2));
    to[3] = vreinterpretq_s32_u16(vzip2q_u16(ab2, cd2));
  }
  // Four channels of pixel j in v[j] to four pixels of channel j.
  static TOPS_INLINE void transpose_channels(I v[4]) {
    const int64x2_t ab = vreinterpretq_s64_s32(vzip1q_s32(v[0], v[1])),
                    ab2 = vreinterpretq_s64_s32(vzip2q_s32(v[0], v[1])),
                    cd = vreinterpretq_s64_s32(vzip1q_s32(v[2], v[3])),
                    cd2 = vreinterpretq_s64_s32(vzip2q_s32(v[2], v[3]));
    v[0] = vreinterpretq_s32_s64(vzip1q_s64(ab, cd));
    v[1] = vreinterpretq_s32_s64(vzip2q_s64(ab, cd));
    v[2] = vreinterpretq_s32_s64(vzip1q_s64(ab2, cd2));
    v[3] = vreinterpretq_s32_s64(vzip2q_s64(ab2, cd2));
  }
  // 64 bytes of dense codes (weights/packed.h) to 8 rows of 8 quads, rows `stride` bytes apart. The
  // invalid code counts as 0.
  static TOPS_INLINE void expand_group(const uint8_t* codes, uint8_t* to, int64_t stride) {
    static const uint8_t kTable[16] = {0, 1, 0, 255};
    const Bytes low = vdupq_n_u8(3), table = vld1q_u8(kTable);
    for (int part = 0; part < 4; ++part) {
      const Bytes c = vld1q_u8(codes + 16 * part);
      uint8_t* const row = to + (part / 2) * stride + 16 * (part % 2);
      vst1q_u8(row, vqtbl1q_u8(table, vandq_u8(c, low)));
      vst1q_u8(row + 2 * stride, vqtbl1q_u8(table, vandq_u8(vshrq_n_u8(c, 2), low)));
      vst1q_u8(row + 4 * stride, vqtbl1q_u8(table, vandq_u8(vshrq_n_u8(c, 4), low)));
      vst1q_u8(row + 6 * stride, vqtbl1q_u8(table, vshrq_n_u8(c, 6)));
    }
  }
  static TOPS_INLINE I add_bytes(I a, I b) { return packets(vaddq_u8(bytes(a), bytes(b))); }
  // a - b, at least 0.
  static TOPS_INLINE I less_bytes(I a, I b) { return packets(vqsubq_u8(bytes(a), bytes(b))); }
  // (a + b + 1) / 2 of each byte.
  static TOPS_INLINE I average_bytes(I a, I b) { return packets(vrhaddq_u8(bytes(a), bytes(b))); }
  static TOPS_INLINE I load_stride2(const void* p) {
    return vuzp1q_s32(load(p), load(static_cast<const uint8_t*>(p) + 16));
  }
  // The compiler may not compute or load this value a second time.
  static TOPS_INLINE I in_register(I a) {
    __asm__ volatile("" : "+w"(a));
    return a;
  }
  // acc += dot(x, w), once for every call, whatever the compiler knows.
  static TOPS_INLINE void dot_again(I& acc, I x, I w) { acc = dot_signed(acc, x, in_register(w)); }
  static TOPS_INLINE int32_t sum(I a) { return vaddvq_s32(a); }
  // Four packets to the four bytes of each channel: lane c holds byte c of every packet.
  static TOPS_INLINE I packets_to_channels(I a) {
    static const uint8_t kOrder[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return packets(vqtbl1q_u8(bytes(a), vld1q_u8(kOrder)));
  }
  // acc plus the four bytes of a lane, and plus their squares.
  static TOPS_INLINE I add_byte_sums(I acc, I x) {
    return vreinterpretq_s32_u32(vdotq_u32(vreinterpretq_u32_s32(acc), bytes(x), vdupq_n_u8(1)));
  }
  static TOPS_INLINE I add_byte_squares(I acc, I x) {
    return vreinterpretq_s32_u32(vdotq_u32(vreinterpretq_u32_s32(acc), bytes(x), bytes(x)));
  }
  static TOPS_INLINE float sumf(F a) { return vaddvq_f32(a); }
  // kLanes bytes, one a lane.
  static TOPS_INLINE I bytes_to_lanes(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
  }
  static TOPS_INLINE I int8_to_lanes(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
  }
  // -1, 0 or +1 for the lowest two bits of each lane, a ternary weight plus one.
  static TOPS_INLINE F ternary_of(I codes) { return to_f(sub(and_(codes, set1(3)), set1(1))); }
  // table[b] for every byte b, 64 entries at a time: an index outside of a part leaves what is
  // there.
  static TOPS_INLINE I lookup(I x, const uint8_t* table) {
    Bytes at = bytes(x), found = vqtbl4q_u8(part_of(table), at);
    for (int part = 1; part < 4; ++part) {
      at = vsubq_u8(at, vdupq_n_u8(64));
      found = vqtbx4q_u8(found, part_of(table + 64 * part), at);
    }
    return packets(found);
  }
  static TOPS_INLINE uint8x16x4_t part_of(const uint8_t* table) {
    return {{vld1q_u8(table), vld1q_u8(table + 16), vld1q_u8(table + 32), vld1q_u8(table + 48)}};
  }
};
