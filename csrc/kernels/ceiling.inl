// SPDX-License-Identifier: Apache-2.0
// Peak of the machine: dot products from registers, reads from memory. Benchmarks divide by these.

static TOPS_INLINE void burst_step(V::I& acc, V::I x, V::I w) { V::dot_again(acc, x, w); }
static TOPS_INLINE void burst_step(V::F& acc, V::I x, V::I w) {
  acc = V::as_f(V::dot_float(V::as_i(acc), x, w));
}
static TOPS_INLINE V::I burst_bits(V::I a) { return a; }
static TOPS_INLINE V::I burst_bits(V::F a) { return V::as_i(a); }

// rounds * 12 dot products, enough to hide their latency and few enough for 16 registers. The
// accumulators start apart: equal sums would be computed once.
template <class A>
static TOPS_INLINE void product_burst(int64_t rounds, const A (&start)[12], V::I x, V::I w) {
  A a0 = start[0], a1 = start[1], a2 = start[2], a3 = start[3], a4 = start[4], a5 = start[5];
  A a6 = start[6], a7 = start[7], a8 = start[8], a9 = start[9], a10 = start[10], a11 = start[11];
  for (int64_t i = 0; i < rounds; ++i) {
    burst_step(a0, x, w), burst_step(a1, x, w), burst_step(a2, x, w), burst_step(a3, x, w);
    burst_step(a4, x, w), burst_step(a5, x, w), burst_step(a6, x, w), burst_step(a7, x, w);
    burst_step(a8, x, w), burst_step(a9, x, w), burst_step(a10, x, w), burst_step(a11, x, w);
  }
  V::I sum = V::set1(0);
  const A ends[12] = {a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11};
  for (const A& a : ends) sum = V::add(sum, burst_bits(a));
  volatile int32_t sink = V::sum(sum);
  (void)sink;
}

// Returns the products of bytes made.
static int64_t dot_burst(int64_t rounds) {
  V::I start[12];
  for (int i = 0; i < 12; ++i) start[i] = V::set1(i);
  product_burst(rounds, start, V::set1(0x03020104), V::set1(0x01ff0101));
  return rounds * 12 * V::kLanes * 4;
}

// Returns the products of floats made.
static int64_t float_burst(int64_t rounds) {
  V::F start[12];
  for (int i = 0; i < 12; ++i) start[i] = V::set1f(static_cast<float>(i));
  product_burst(rounds, start, V::as_i(V::set1f(0.5f)), V::as_i(V::set1f(0.25f)));
  return rounds * 12 * V::kLanes;
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
