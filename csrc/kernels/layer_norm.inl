// SPDX-License-Identifier: Apache-2.0
// LayerNorm over channels, pixels in the lanes, in float32 alone: what the first mean is off by is
// measured and taken off again, and sums run in blocks, so that many channels lose few digits.

constexpr int64_t kNormBlock = 32;  // channels

// Sums over channels of body(x[c]) for one vector of pixels, m of it.
template <int kSums, class Body>
static TOPS_INLINE void sum_channels(const LayerNormArgs& a, int64_t p, int64_t m,
                                     V::F (&sums)[kSums], const Body& body) {
  for (V::F& sum : sums) sum = V::set1f(0.0f);
  for (int64_t first = 0; first < a.channels; first += kNormBlock) {
    V::F part[kSums];
    for (V::F& sum : part) sum = V::set1f(0.0f);
    const int64_t last = min64(first + kNormBlock, a.channels);
    for (int64_t c = first; c < last; ++c)
      body(V::as_f(load_some(a.x + c * a.x_stride + p, m)), part);
    for (int i = 0; i < kSums; ++i) sums[i] = V::addf(sums[i], part[i]);
  }
}

static void layer_norm(const LayerNormArgs& a) {
  const V::F count = V::set1f(static_cast<float>(a.channels));
  for (int64_t p = 0; p < a.n; p += V::kLanes) {
    const int64_t m = min64(a.n - p, V::kLanes);
    V::F sum[1], off[2];  // of x; of x - mean and of its square
    sum_channels(a, p, m, sum, [](V::F x, V::F(&s)[1]) { s[0] = V::addf(s[0], x); });
    const V::F about = V::divf(sum[0], count);
    sum_channels(a, p, m, off, [about](V::F x, V::F(&s)[2]) {
      const V::F d = V::subf(x, about);
      s[0] = V::addf(s[0], d);
      s[1] = V::fused(d, d, s[1]);
    });
    const V::F rest = V::divf(off[0], count);
    const V::F variance = V::subf(V::divf(off[1], count), V::mulf(rest, rest));
    alignas(64) float spread[V::kLanes];
    V::store(spread, V::as_i(V::addf(V::maxf(V::set1f(0.0f), variance), V::set1f(a.eps))));
    for (float& v : spread) v = 1.0f / __builtin_sqrtf(v);
    const V::F factor = V::as_f(V::load(spread));
    for (int64_t c = 0; c < a.channels; ++c) {
      const V::F x = V::as_f(load_some(a.x + c * a.x_stride + p, m));
      const V::F v = V::mulf(V::subf(V::subf(x, about), rest), factor);
      store_some(a.y + c * a.y_stride + p,
                 V::as_i(V::fused(v, V::set1f(a.weight[c]), V::set1f(a.bias[c]))), m);
    }
  }
}
