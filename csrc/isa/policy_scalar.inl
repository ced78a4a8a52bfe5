// SPDX-License-Identifier: Apache-2.0
// Plain C++, 4 packets a "vector": the fallback on any machine and the twin that the others are
// held to.

struct V {
  static constexpr int kLanes = 4;
  static constexpr int kPairVectors = 2;
  static constexpr int kBlockVectors2 = 4, kBlockVectors4 = 2;
  static constexpr int kSparseVectors = 3;
  static constexpr int kDenseChannels = 8;
  static constexpr int kDenseVectors = 1;
  static constexpr int kChains = 4;
  static constexpr SparseBelow kSparseBelow = {0.4, 0.55, 0.4, 0.4, 2.0};
  static constexpr double kWideSpeed = 1.0;
  static constexpr int kFloatRows = 2;  // times four sums each
  static constexpr bool kSignedInput = false;
  static constexpr int kWidePixels = 4;
  struct I {
    int32_t v[4];
  };
  struct F {
    float v[4];
  };

  static TOPS_INLINE I load(const void* p) { return load_n(p, 4); }
  static TOPS_INLINE void store(void* p, I v) { store_n(p, v, 4); }
  static TOPS_INLINE void store_n(void* p, I v, int64_t n) {
    __builtin_memcpy(p, v.v, static_cast<size_t>(n) * 4);
  }
  static TOPS_INLINE I load_n(const void* p, int64_t n) {
    I r{};
    __builtin_memcpy(r.v, p, static_cast<size_t>(n) * 4);
    return r;
  }
  static TOPS_INLINE I set1(int32_t v) { return {{v, v, v, v}}; }
  static TOPS_INLINE F set1f(float v) { return {{v, v, v, v}}; }
  // Sums wrap as the vector units do; the prepacked sizes keep them in range.
  static TOPS_INLINE int32_t wrap_add(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
#define TOPS_LANES(expr)        \
  for (int i = 0; i < 4; ++i) { \
    r.v[i] = (expr);            \
  }                             \
  return r
  static TOPS_INLINE I add(I a, I b) {
    I r;
    TOPS_LANES(wrap_add(a.v[i], b.v[i]));
  }
  static TOPS_INLINE I sub(I a, I b) {
    I r;
    TOPS_LANES(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i])));
  }
  static TOPS_INLINE I mul(I a, I b) {
    I r;
    TOPS_LANES(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i])));
  }
  static TOPS_INLINE I and_(I a, I b) {
    I r;
    TOPS_LANES(a.v[i] & b.v[i]);
  }
  template <int n>
  static TOPS_INLINE I shr(I a) {
    I r;
    TOPS_LANES(static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n));
  }
  static TOPS_INLINE F as_f(I a) {
    F r;
    __builtin_memcpy(&r, &a, 16);
    return r;
  }
  static TOPS_INLINE I as_i(F a) {
    I r;
    __builtin_memcpy(&r, &a, 16);
    return r;
  }
  static TOPS_INLINE F to_f(I a) {
    F r;
    TOPS_LANES(static_cast<float>(a.v[i]));
  }
  // As cvtps2dq: what does not fit, and NaN, becomes the smallest integer.
  static TOPS_INLINE int32_t round1(float a) {
    return a >= -2147483648.0f && a < 2147483648.0f ? static_cast<int32_t>(__builtin_lrintf(a))
                                                    : INT32_MIN;
  }
  static TOPS_INLINE I round(F a) {
    I r;
    TOPS_LANES(round1(a.v[i]));
  }
  static TOPS_INLINE F addf(F a, F b) {
    F r;
    TOPS_LANES(a.v[i] + b.v[i]);
  }
  static TOPS_INLINE F subf(F a, F b) {
    F r;
    TOPS_LANES(a.v[i] - b.v[i]);
  }
  static TOPS_INLINE F mulf(F a, F b) {
    F r;
    TOPS_LANES(a.v[i] * b.v[i]);
  }
  static TOPS_INLINE F divf(F a, F b) {
    F r;
    TOPS_LANES(a.v[i] / b.v[i]);
  }
  static TOPS_INLINE F sqrtf(F a) {
    F r;
    TOPS_LANES(__builtin_sqrtf(a.v[i]));
  }
  // As maxps and minps: the second operand where either is NaN.
  static TOPS_INLINE F maxf(F a, F b) {
    F r;
    TOPS_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
  }
  static TOPS_INLINE F minf(F a, F b) {
    F r;
    TOPS_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
  }
  static TOPS_INLINE uint8_t byte(int32_t a, int j) {
    return static_cast<uint8_t>(static_cast<uint32_t>(a) >> (8 * j));
  }
  template <bool kMax>
  static TOPS_INLINE I pick_u8(I a, I b) {
    I r;
    for (int i = 0; i < 4; ++i) {
      uint32_t packet = 0;
      for (int j = 0; j < 4; ++j) {
        const uint8_t x = byte(a.v[i], j), y = byte(b.v[i], j);
        packet |= static_cast<uint32_t>((x > y) == kMax ? x : y) << (8 * j);
      }
      r.v[i] = static_cast<int32_t>(packet);
    }
    return r;
  }
  static TOPS_INLINE I max_u8(I a, I b) { return pick_u8<true>(a, b); }
  static TOPS_INLINE I min_u8(I a, I b) { return pick_u8<false>(a, b); }
  static TOPS_INLINE I select(uint32_t bits, I a, I b) {
    I r;
    TOPS_LANES((bits >> i) & 1 ? a.v[i] : b.v[i]);
  }
  static TOPS_INLINE uint32_t bits_at(const uint8_t* bits, int64_t i) {
    return (bits[i / 8] >> (i % 8)) & 0xf;
  }
  static constexpr uint32_t kAll = 0xf;

  static TOPS_INLINE int32_t dot1(int32_t acc, int32_t x, int32_t w) {
    for (int j = 0; j < 4; ++j)
      acc = wrap_add(acc, static_cast<int32_t>(byte(x, j)) * static_cast<int8_t>(byte(w, j)));
    return acc;
  }
  static TOPS_INLINE I dot_ternary(I acc, I x, I w) { return dot_int8(acc, x, w); }
  static TOPS_INLINE I dot_int8(I acc, I x, I w) {
    I r;
    TOPS_LANES(dot1(acc.v[i], x.v[i], w.v[i]));
  }
#include "isa/exact_dots.inl"
  // a * b + c, rounded once: a function call where the processor has no such instruction, so only
  // for what must be the same bits everywhere.
  static TOPS_INLINE F fused(F a, F b, F c) {
    F r;
    TOPS_LANES(__builtin_fmaf(a.v[i], b.v[i], c.v[i]));
  }
  static TOPS_INLINE I dot_float(I acc, I x, I w) {
    return as_i(addf(as_f(acc), mulf(as_f(x), as_f(w))));
  }

  // kLanes finite values of 16 bits as float32.
  static TOPS_INLINE I widen_float16(const void* p) {
    I r;
    for (int i = 0; i < 4; ++i) {
      uint16_t h;
      __builtin_memcpy(&h, static_cast<const uint8_t*>(p) + i * 2, 2);
      // The bits at float32's places have an exponent that is 112 too small, subnormals included.
      const uint32_t bits = static_cast<uint32_t>(h & 0x7fff) << 13;
      float f;
      __builtin_memcpy(&f, &bits, 4);
      f *= 0x1p112f;
      if (h & 0x8000) f = -f;
      __builtin_memcpy(&r.v[i], &f, 4);
    }
    return r;
  }
  static TOPS_INLINE I widen_bfloat16(const void* p) {
    I r;
    for (int i = 0; i < 4; ++i) {
      uint16_t h;
      __builtin_memcpy(&h, static_cast<const uint8_t*>(p) + i * 2, 2);
      r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(h) << 16);
    }
    return r;
  }

  static TOPS_INLINE int32_t saturate(int32_t a, int32_t lo, int32_t hi) {
    return a < lo ? lo : a > hi ? hi : a;
  }
  static TOPS_INLINE I pack(I a, I b, I c, I d, I zero_point16) {
    const int32_t zp = static_cast<int16_t>(zero_point16.v[0] & 0xffff);
    I r;
    for (int i = 0; i < 4; ++i) {
      const int32_t q[4] = {a.v[i], b.v[i], c.v[i], d.v[i]};
      uint32_t packet = 0;
      for (int j = 0; j < 4; ++j)
        packet |= static_cast<uint32_t>(saturate(saturate(q[j], -32768, 32767) + zp, 0, 255))
                  << (8 * j);
      r.v[i] = static_cast<int32_t>(packet);
    }
    return r;
  }
  // 16 int32 values in their order to u8.
  static TOPS_INLINE I pack_row(I a, I b, I c, I d, I zero_point16) {
    return pack_pixels(a, b, c, d, zero_point16);
  }
  // Four pixels of 4 channels, int32, to the u8 packets of those pixels.
  static TOPS_INLINE I pack_pixels(I a, I b, I c, I d, I zero_point16) {
    I q[4];
    for (int j = 0; j < 4; ++j) q[j] = {{a.v[j], b.v[j], c.v[j], d.v[j]}};
    return pack(q[0], q[1], q[2], q[3], zero_point16);
  }
  static TOPS_INLINE void store_lanes(uint8_t* p, int64_t, I v) { store(p, v); }
  static TOPS_INLINE I load_lanes(const uint8_t* p, int64_t) { return load(p); }
  // Pixel j of packets packed as above, its bytes widened to int32 channels.
  static TOPS_INLINE I pixel_of(I v, int j) {
    return {{byte(v.v[j], 0), byte(v.v[j], 1), byte(v.v[j], 2), byte(v.v[j], 3)}};
  }
  static TOPS_INLINE I load_four(const void* p) { return load(p); }
  // Packets of four taps to quads of taps: to[j] holds pixel j, one channel a quad.
  static TOPS_INLINE void transpose_taps(I a, I b, I c, I d, I to[4]) {
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 4; ++i)
        to[j].v[i] =
            static_cast<int32_t>(byte(a.v[j], i) | byte(b.v[j], i) << 8 | byte(c.v[j], i) << 16 |
                                 static_cast<uint32_t>(byte(d.v[j], i)) << 24);
  }
  // Four channels of pixel j in v[j] to four pixels of channel j.
  static TOPS_INLINE void transpose_channels(I v[4]) {
    const I from[4] = {v[0], v[1], v[2], v[3]};
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 4; ++i) v[j].v[i] = from[i].v[j];
  }
  // 64 bytes of dense codes (weights/packed.h) to 8 rows of 8 quads, rows `stride` bytes apart. The
  // invalid code counts as 0.
  static TOPS_INLINE void expand_group(const uint8_t* codes, uint8_t* to, int64_t stride) {
    for (int row = 0; row < 8; ++row)
      for (int b = 0; b < 32; ++b) {
        const int code = (codes[(row % 2) * 32 + b] >> (2 * (row / 2))) & 3;
        to[row * stride + b] = static_cast<uint8_t>(code == 1 ? 1 : code == 3 ? 0xff : 0);
      }
  }
  template <class Body>
  static TOPS_INLINE I each_byte(I a, I b, const Body& body) {
    I r;
    for (int i = 0; i < 4; ++i) {
      uint32_t packet = 0;
      for (int j = 0; j < 4; ++j)
        packet |= (body(byte(a.v[i], j), byte(b.v[i], j)) & 0xffu) << (8 * j);
      r.v[i] = static_cast<int32_t>(packet);
    }
    return r;
  }
  static TOPS_INLINE I add_bytes(I a, I b) {
    return each_byte(a, b, [](uint32_t x, uint32_t y) { return x + y; });
  }
  // a - b, at least 0.
  static TOPS_INLINE I less_bytes(I a, I b) {
    return each_byte(a, b, [](uint32_t x, uint32_t y) { return x > y ? x - y : 0; });
  }
  // (a + b + 1) / 2 of each byte.
  static TOPS_INLINE I average_bytes(I a, I b) {
    return each_byte(a, b, [](uint32_t x, uint32_t y) { return (x + y + 1) / 2; });
  }
  static TOPS_INLINE I load_stride2(const void* p) {
    I a = load(p), b = load(static_cast<const uint8_t*>(p) + 16);
    return {{a.v[0], a.v[2], b.v[0], b.v[2]}};
  }
  // The compiler may not compute or load this value a second time.
  static TOPS_INLINE I in_register(I a) {
    __asm__ volatile("" : "+m"(a));
    return a;
  }
  // acc += dot(x, w), once for every call, whatever the compiler knows.
  static TOPS_INLINE void dot_again(I& acc, I x, I w) { acc = dot_ternary(acc, x, in_register(w)); }
  static TOPS_INLINE int32_t sum(I a) {
    return wrap_add(wrap_add(a.v[0], a.v[1]), wrap_add(a.v[2], a.v[3]));
  }
  // Four packets to the four bytes of each channel: lane c holds byte c of every packet.
  static TOPS_INLINE I packets_to_channels(I a) {
    I r;
    for (int c = 0; c < 4; ++c)
      r.v[c] = static_cast<int32_t>(byte(a.v[0], c) | byte(a.v[1], c) << 8 | byte(a.v[2], c) << 16 |
                                    static_cast<uint32_t>(byte(a.v[3], c)) << 24);
    return r;
  }
  // acc plus the four bytes of a lane, and plus their squares.
  static TOPS_INLINE I add_byte_sums(I acc, I x) { return dot_ternary(acc, x, set1(0x01010101)); }
  static TOPS_INLINE I add_byte_squares(I acc, I x) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) acc.v[i] = wrap_add(acc.v[i], byte(x.v[i], j) * byte(x.v[i], j));
    return acc;
  }
  static TOPS_INLINE float sumf(F a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
  // kLanes bytes, one a lane.
  static TOPS_INLINE I bytes_to_lanes(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static TOPS_INLINE I int8_to_lanes(const uint8_t* p) {
    I r;
    TOPS_LANES(static_cast<int8_t>(p[i]));
  }
  // -1, 0 or +1 for the lowest two bits of each lane, a ternary weight plus one.
  static TOPS_INLINE F ternary_of(I codes) { return to_f(sub(and_(codes, set1(3)), set1(1))); }
  // table[b] for every byte b.
  static TOPS_INLINE I lookup(I a, const uint8_t* table) {
    I r;
    for (int i = 0; i < 4; ++i) {
      uint32_t packet = 0;
      for (int j = 0; j < 4; ++j)
        packet |= static_cast<uint32_t>(table[byte(a.v[i], j)]) << (8 * j);
      r.v[i] = static_cast<int32_t>(packet);
    }
    return r;
  }
#undef TOPS_LANES
};
