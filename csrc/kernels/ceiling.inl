// SPDX-License-Identifier: Apache-2.0
// What the machine can do at best: dot products from registers, reads from memory. Benchmarks
// divide by these.

// rounds * 16 dot products; returns the products of bytes made.
static int64_t dot_burst(int64_t rounds) {
  const V::I x = V::set1(0x03020104), w = V::set1(0x01ff0101);
  // Different starts: equal sums would be computed once.
  V::I a0 = V::set1(0);
  V::I a1 = V::set1(1);
  V::I a2 = V::set1(2);
  V::I a3 = V::set1(3);
  V::I a4 = V::set1(4);
  V::I a5 = V::set1(5);
  V::I a6 = V::set1(6);
  V::I a7 = V::set1(7);
  V::I a8 = V::set1(8);
  V::I a9 = V::set1(9);
  V::I a10 = V::set1(10);
  V::I a11 = V::set1(11);
  V::I a12 = V::set1(12);
  V::I a13 = V::set1(13);
  V::I a14 = V::set1(14);
  V::I a15 = V::set1(15);
  for (int64_t i = 0; i < rounds; ++i) {
    V::dot_again(a0, x, w);
    V::dot_again(a1, x, w);
    V::dot_again(a2, x, w);
    V::dot_again(a3, x, w);
    V::dot_again(a4, x, w);
    V::dot_again(a5, x, w);
    V::dot_again(a6, x, w);
    V::dot_again(a7, x, w);
    V::dot_again(a8, x, w);
    V::dot_again(a9, x, w);
    V::dot_again(a10, x, w);
    V::dot_again(a11, x, w);
    V::dot_again(a12, x, w);
    V::dot_again(a13, x, w);
    V::dot_again(a14, x, w);
    V::dot_again(a15, x, w);
  }
  const V::I s0 =
      V::add(V::add(V::add(a0, a1), V::add(a2, a3)), V::add(V::add(a4, a5), V::add(a6, a7)));
  const V::I s1 =
      V::add(V::add(V::add(a8, a9), V::add(a10, a11)), V::add(V::add(a12, a13), V::add(a14, a15)));
  volatile int32_t sink = V::sum(V::add(s0, s1));
  (void)sink;
  return rounds * 16 * V::kLanes * 4;
}

// rounds * 12 multiply-adds of float vectors; returns the products made.
static int64_t fma_burst(int64_t rounds) {
  const V::I x = V::as_i(V::set1f(1.0f)), w = V::as_i(V::set1f(0.5f));
  constexpr int kSums = 12;  // enough for any latency, few enough for 16 registers
  V::I sums[kSums];
#pragma GCC unroll 12
  for (int j = 0; j < kSums; ++j) sums[j] = V::as_i(V::set1f(static_cast<float>(j)));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) sums[j] = V::in_register(V::dot_float(sums[j], x, w));
  }
#pragma GCC unroll 12
  for (int j = 1; j < kSums; ++j) sums[0] = V::add(sums[0], sums[j]);
  volatile int32_t sink = V::sum(sums[0]);
  (void)sink;
  return rounds * kSums * V::kLanes;
}

// Reads every byte of [p, p + bytes) once; bytes is a multiple of 256.
static void read_burst(const uint8_t* p, int64_t bytes) {
  V::I a = V::set1(0), b = a, c = a, d = a;
  constexpr int64_t kStep = V::kLanes * 4;
  for (int64_t i = 0; i + 4 * kStep <= bytes; i += 4 * kStep) {
    a = V::add(a, V::load(p + i)), b = V::add(b, V::load(p + i + kStep));
    c = V::add(c, V::load(p + i + 2 * kStep)), d = V::add(d, V::load(p + i + 3 * kStep));
  }
  volatile int32_t sink = V::sum(V::add(V::add(a, b), V::add(c, d)));
  (void)sink;
}
