// SPDX-License-Identifier: Apache-2.0
// Functions of floats that networks apply to whole maps.

// x * P(-x < a normal number): max(x, 0) - |x| * Q(|x|), the tail Q(b) = e^(-b * b / 2) * t * p(t)
// with t = 1 / (1 + 0.4 b). The polynomial is the least-squares fit in Chebyshev nodes, off by less
// than 2e-8 of Q for b in [0, 13]; beyond, Q is below 1e-37. What b * b is rounded by goes into the
// exponential as well. NaN stays NaN.
static TOPS_INLINE V::F gelu(V::F x) {
  const V::F size = V::maxf(V::mulf(x, V::set1f(-1.0f)), x);
  const V::F b = V::minf(V::set1f(13.0f), size);
  const V::F square = V::mulf(b, b), half = V::set1f(-0.5f);
  const V::F rounding = V::fused(b, b, V::mulf(square, V::set1f(-1.0f)));
  const V::F e = exp_negative(V::mulf(square, half));
  const V::F t = V::divf(V::set1f(1.0f), V::fused(b, V::set1f(0.4f), V::set1f(1.0f)));
  constexpr float kTail[] = {0.0323973f,   -0.177703589f,  0.384121031f,  -0.376038313f,
                             0.120776877f, -0.0273135453f, 0.0914205611f, 0.133137733f,
                             0.159625918f, 0.159576058f};
  V::F p = V::set1f(kTail[0]);
  for (int i = 1; i < 10; ++i) p = V::fused(p, t, V::set1f(kTail[i]));
  const V::F exact = V::fused(e, V::mulf(rounding, half), e);
  const V::F tail = V::mulf(V::mulf(b, t), V::mulf(p, exact));
  return V::subf(V::maxf(V::set1f(0.0f), x), tail);
}

template <FloatMap kMap>
static TOPS_INLINE V::F mapped(V::F x, V::F a) {
  if (kMap == FloatMap::kSigmoid) return sigmoid(x);
  if (kMap == FloatMap::kGelu) return gelu(x);
  if (kMap == FloatMap::kSilu) return V::mulf(x, sigmoid(x));
  return sloped(x, a);
}

template <FloatMap kMap>
static void map_row(float a, const float* x, int64_t n, float* y) {
  const V::F factor = V::set1f(a);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    store_some(y + i, V::as_i(mapped<kMap>(V::as_f(load_some(x + i, m)), factor)), m);
  }
}

static void map_floats(FloatMap map, float a, const float* x, int64_t n, float* y) {
  if (map == FloatMap::kSigmoid) return map_row<FloatMap::kSigmoid>(a, x, n, y);
  if (map == FloatMap::kGelu) return map_row<FloatMap::kGelu>(a, x, n, y);
  if (map == FloatMap::kSilu) return map_row<FloatMap::kSilu>(a, x, n, y);
  map_row<FloatMap::kLeakyRelu>(a, x, n, y);
}
