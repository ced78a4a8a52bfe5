// SPDX-License-Identifier: Apache-2.0
// Fake quantization of activations in training, forward and backward, one loop each. Plain code
// that compilers vectorize, with the same order of sums on every instruction set.

// NaN fails both comparisons and stays NaN, so that training shows it.
static void fake_quantize(const float* x, int64_t n, const FakeRange& r, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    const float q = __builtin_rintf(x[i] * r.inv);
    const float raised = q < r.lo ? r.lo : q;
    y[i] = raised > r.hi ? r.hi : raised;
  }
}

static TOPS_INLINE void fake_quantize_step(const float* x, const float* grad, const FakeRange& r,
                                           float* dx, int64_t i, FakeLanes& sums, int64_t l) {
  const float exact = x[i] * r.inv, q = __builtin_rintf(exact), g = grad[i] / r.scale;
  const float below = q < r.lo ? g : 0.0f, above = q > r.hi ? g : 0.0f;
  const float inside = q < r.lo || q > r.hi ? 0.0f : g;
  dx[i] = inside;
  sums.rounding[l] += inside * (q - exact);
  sums.below[l] += below;
  sums.above[l] += above;
}

static void fake_quantize_grad(const float* x, const float* grad, int64_t n, const FakeRange& r,
                               float* dx, FakeSums& sums) {
  FakeLanes lanes = {};
  int64_t i = 0;
  for (; i + FakeLanes::kCount <= n; i += FakeLanes::kCount)
    for (int64_t l = 0; l < FakeLanes::kCount; ++l)
      fake_quantize_step(x, grad, r, dx, i + l, lanes, l);
  for (; i < n; ++i) fake_quantize_step(x, grad, r, dx, i, lanes, i % FakeLanes::kCount);
  for (int64_t l = 0; l < FakeLanes::kCount; ++l) {
    sums.rounding += static_cast<double>(lanes.rounding[l]);
    sums.below += static_cast<double>(lanes.below[l]);
    sums.above += static_cast<double>(lanes.above[l]);
  }
}
