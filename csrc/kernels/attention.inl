// SPDX-License-Identifier: Apache-2.0
// Attention on codes, queries in the lanes: integer sums before and behind, one float32 softmax of
// the same bits on every instruction set between them.

// A vector of queries: scores to floats in their place, the largest of each query.
static TOPS_INLINE V::F scaled_scores(const ShareArgs& a, int32_t* x, int64_t p, int64_t m) {
  const V::F factor = V::set1f(a.factor);
  V::F most = V::set1f(0.0f);
  for (int64_t c = 0; c < a.count; ++c) {
    V::F v = V::mulf(V::to_f(V::load(x + c * a.stride)), factor);
    if (a.bias) v = V::addf(v, V::as_f(load_some(a.bias + c * a.bias_stride + p, m)));
    V::store(x + c * a.stride, V::as_i(v));
    most = c ? V::maxf(most, v) : v;
  }
  return most;
}

// What a share is rounded by goes to the next key: many small ones keep their sum, however small
// each of them is. Several vectors at a time, since each share waits for the one before it.
template <int kVectors>
static TOPS_INLINE void share_vectors(const ShareArgs& a, int64_t p) {
  const V::F least = V::set1f(-86.0f), shares = V::set1f(kShares);  // exp_negative's domain
  V::F most[kVectors], carry[kVectors];
  V::I total[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t at = p + v * V::kLanes;
    most[v] = scaled_scores(a, a.scores + at, at, min64(a.n - at, V::kLanes));
    carry[v] = V::set1f(0.0f);
    total[v] = V::set1(0);
  }
  for (int64_t c = 0; c < a.count; c += 4) {
    int32_t* const x = a.scores + c * a.stride + p;
    const int64_t keys = min64(4, a.count - c);
    V::I q[kVectors][4];
    for (int64_t j = 0; j < 4; ++j)
      for (int v = 0; v < kVectors; ++v) {
        q[v][j] = V::set1(0);
        if (j >= keys) continue;
        const V::F score = V::as_f(V::load(x + j * a.stride + v * V::kLanes));
        // The second operand where it is NaN.
        const V::F e = exp_negative(V::maxf(least, V::subf(score, most[v])));
        const V::F share = V::addf(V::mulf(e, shares), carry[v]);
        q[v][j] = V::round(share);
        carry[v] = V::subf(share, V::to_f(q[v][j]));
        total[v] = V::add(total[v], q[v][j]);
      }
    for (int v = 0; v < kVectors; ++v)
      V::store(x + v * V::kLanes, V::pack(q[v][0], q[v][1], q[v][2], q[v][3], V::set1(0)));
  }
  for (int v = 0; v < kVectors; ++v) V::store(a.totals + p + v * V::kLanes, total[v]);
}

static void attention_shares(const ShareArgs& a) {
  int64_t p = 0;
  for (; p + V::kLanes < a.n; p += 2 * V::kLanes) share_vectors<2>(a, p);
  if (p < a.n) share_vectors<1>(a, p);
}

static void attention_mix(const MixArgs& a) {
  const V::F scale = V::set1f(a.scale), inv = V::set1f(a.inv), cap = V::set1f(1073741824.0f);
  const V::I shift = V::set1(a.shift);
  const V::I zp = V::set1(static_cast<int32_t>(static_cast<uint32_t>(a.zero_point) * 0x10001u));
  for (int64_t p = 0; p < a.n; p += V::kLanes) {
    const int64_t m = min64(a.n - p, V::kLanes);
    const V::I total = V::load(a.totals + p), less = V::mul(total, shift);
    const V::F factor = V::divf(scale, V::to_f(total));
    V::I q[4];
    for (int64_t j = 0; j < 4; ++j) {
      V::F v = V::set1f(0.0f);
      if (j < a.channels)
        v = V::mulf(V::to_f(V::add(V::load(a.sums + j * a.stride + p), less)), factor);
      if (a.float_out && j < a.channels) store_some(a.y + j * a.y_stride + p * 4, V::as_i(v), m);
      q[j] = V::round(V::minf(cap, V::mulf(v, inv)));
    }
    if (!a.float_out) store_some(a.y + p * 4, V::pack(q[0], q[1], q[2], q[3], zp), m);
  }
}
