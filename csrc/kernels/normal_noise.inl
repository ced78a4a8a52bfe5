// SPDX-License-Identifier: Apache-2.0
// Standard normals from a counter: Philox4x32-10 (Salmon et al., SC 2011) of (rollout, step, group
// of four sensors), then Box and Muller's transform with polynomials of our own, so that the bits
// are those of no C library. Loops over lanes that compilers vectorize.

constexpr int kNoiseLanes = 16;

static TOPS_INLINE void philox_round(uint32_t (&x)[4], uint32_t key0, uint32_t key1) {
  const uint64_t a = uint64_t{0xD2511F53u} * x[0], b = uint64_t{0xCD9E8D57u} * x[2];
  const uint32_t high_a = static_cast<uint32_t>(a >> 32), high_b = static_cast<uint32_t>(b >> 32);
  const uint32_t x1 = x[1], x3 = x[3];
  x[0] = high_b ^ x1 ^ key0;
  x[1] = static_cast<uint32_t>(b);
  x[2] = high_a ^ x3 ^ key1;
  x[3] = static_cast<uint32_t>(a);
}

// sqrt(-2 ln u) for u = (bits + 1) / 2^24 in (0, 1], bits of 24.
static TOPS_INLINE float radius(uint32_t bits) {
  const float u = (static_cast<float>(static_cast<int32_t>(bits)) + 1.0f) * 0x1p-24f;
  uint32_t pattern;
  __builtin_memcpy(&pattern, &u, 4);
  // u = 2^e f with f in [0.7, 1.42): below sqrt(1/2) the fraction goes to the other side.
  const uint32_t shifted = pattern - 0x3f3504f3u;
  const float e = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const uint32_t fraction = (shifted & 0x007fffffu) + 0x3f3504f3u;
  float f;
  __builtin_memcpy(&f, &fraction, 4);
  const float s = (f - 1.0f) / (f + 1.0f), t = s * s;
  // ln f = 2 atanh s; |s| < 0.172, and what is left out is below 2 s^11 / 11 = 7e-10.
  const float series =
      s * (2.0f + t * (0.666666667f + t * (0.4f + t * (0.285714286f + t * 0.222222222f))));
  const float log = e * 0.693147181f + series;
  return __builtin_sqrtf(log < 0.0f ? -2.0f * log : 0.0f);
}

// cos and sin of a quarter's angle x in [-pi/4, pi/4]: Taylor, off by less than 2e-9.
static TOPS_INLINE float cosine(float x) {
  const float t = x * x;
  return 1.0f + t * (-0.5f + t * (0.0416666667f + t * (-0.00138888889f + t * 2.48015873e-5f)));
}
static TOPS_INLINE float sine(float x) {
  const float t = x * x;
  return x * (1.0f + t * (-0.166666667f +
                          t * (0.00833333333f + t * (-0.000198412698f + t * 2.75573192e-6f))));
}

static TOPS_INLINE void box_muller(uint32_t a, uint32_t b, float& first, float& second) {
  const float r = radius(a >> 8);
  // The angle 2 pi b / 2^24 as a number of quarters and a rest.
  const uint32_t turn = b >> 8, quarter = (turn + (1u << 21)) >> 22;
  const int32_t rest = static_cast<int32_t>(turn) - static_cast<int32_t>(quarter << 22);
  const float x = static_cast<float>(rest) * (1.57079633f * 0x1p-22f);
  const float c = cosine(x), s = sine(x);
  const float along = quarter & 1 ? s : c, across = quarter & 1 ? c : s;
  first = r * ((quarter + 1) & 2 ? -along : along);
  second = r * (quarter & 2 ? -across : across);
}

static void normal_noise(uint64_t seed, int64_t rollout, int64_t step, int64_t group,
                         int64_t sensors, int64_t n, float* out, int64_t stride) {
  for (int64_t at = 0; at < n; at += kNoiseLanes) {
    float z[4][kNoiseLanes];
    for (int l = 0; l < kNoiseLanes; ++l) {
      const uint64_t lane = static_cast<uint64_t>(rollout + at + l);
      uint32_t x[4] = {static_cast<uint32_t>(lane), static_cast<uint32_t>(lane >> 32),
                       static_cast<uint32_t>(step), static_cast<uint32_t>(group)};
      uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
      for (int round = 0; round < 10; ++round) {
        philox_round(x, key0, key1);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
      }
      box_muller(x[0], x[1], z[0][l], z[1][l]);
      box_muller(x[2], x[3], z[2][l], z[3][l]);
    }
    const int64_t lanes = n - at < kNoiseLanes ? n - at : kNoiseLanes;
    for (int64_t j = 0; j < sensors; ++j)
      __builtin_memcpy(out + j * stride + at, z[j], static_cast<size_t>(lanes) * 4);
  }
}
