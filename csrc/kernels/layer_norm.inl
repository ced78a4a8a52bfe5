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

// Channels [c, c + count) of m pixels, as floats or a packet of codes.
static TOPS_INLINE void store_channels(const LayerNormArgs& a, V::F y[4], int64_t c, int64_t count,
                                       int64_t p, int64_t m) {
  if (a.float_out) {
    for (int64_t j = 0; j < count; ++j)
      store_some(a.y + ((c + j) * a.y_stride + p) * 4, V::as_i(y[j]), m);
    return;
  }
  V::I q[4];
  for (int64_t j = 0; j < 4; ++j) {
    const V::F v = j < count ? V::mulf(y[j], V::set1f(a.inv)) : V::set1f(0.0f);
    q[j] = V::round(V::minf(V::set1f(1073741824.0f), v));
  }
  const V::I zp = V::set1(static_cast<int32_t>(static_cast<uint32_t>(a.zero_point) * 0x10001u));
  store_some(a.y + (c / 4 * a.y_stride + p) * 4, V::pack(q[0], q[1], q[2], q[3], zp), m);
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
    const V::F spread = V::addf(V::maxf(V::set1f(0.0f), variance), V::set1f(a.eps));
    const V::F factor = V::divf(V::set1f(1.0f), V::sqrtf(spread));
    for (int64_t c = 0; c < a.channels; c += 4) {
      const int64_t count = min64(4, a.channels - c);
      V::F y[4] = {factor, factor, factor, factor};
      for (int64_t j = 0; j < count; ++j) {
        const V::F x = V::as_f(load_some(a.x + (c + j) * a.x_stride + p, m));
        const V::F v = V::mulf(V::subf(V::subf(x, about), rest), factor);
        y[j] = V::fused(v, V::set1f(a.weight[c + j]), V::set1f(a.bias[c + j]));
      }
      store_channels(a, y, c, count, p, m);
    }
  }
}
