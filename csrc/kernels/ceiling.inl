// SPDX-License-Identifier: Apache-2.0
// What the machine can do at best: dot products from registers, reads from memory. Benchmarks
// divide by these.

// rounds * 12 dot products; returns the products of bytes made.
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
  for (int64_t i = 0; i < rounds; ++i) {
    a0 = V::dot_ternary(a0, x, V::opaque(w));
    a1 = V::dot_ternary(a1, x, V::opaque(w));
    a2 = V::dot_ternary(a2, x, V::opaque(w));
    a3 = V::dot_ternary(a3, x, V::opaque(w));
    a4 = V::dot_ternary(a4, x, V::opaque(w));
    a5 = V::dot_ternary(a5, x, V::opaque(w));
    a6 = V::dot_ternary(a6, x, V::opaque(w));
    a7 = V::dot_ternary(a7, x, V::opaque(w));
    a8 = V::dot_ternary(a8, x, V::opaque(w));
    a9 = V::dot_ternary(a9, x, V::opaque(w));
    a10 = V::dot_ternary(a10, x, V::opaque(w));
    a11 = V::dot_ternary(a11, x, V::opaque(w));
  }
  V::I s = V::add(V::add(V::add(a0, a1), V::add(a2, a3)), V::add(V::add(a4, a5), V::add(a6, a7)));
  volatile int32_t sink = V::sum(V::add(s, V::add(V::add(a8, a9), V::add(a10, a11))));
  (void)sink;
  return rounds * 12 * V::kLanes * 4;
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
