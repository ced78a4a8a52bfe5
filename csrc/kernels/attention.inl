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
// each of them is.
static void attention_shares(const ShareArgs& a) {
  const V::F least = V::set1f(-86.0f), shares = V::set1f(kShares);  // exp_negative's domain
  for (int64_t p = 0; p < a.n; p += V::kLanes) {
    int32_t* const x = a.scores + p;
    const V::F most = scaled_scores(a, x, p, min64(a.n - p, V::kLanes));
    V::F carry = V::set1f(0.0f);
    V::I total = V::set1(0);
    for (int64_t c = 0; c < a.count; c += 4) {
      V::I q[4] = {total, total, total, total};
      for (int64_t j = 0; j < 4; ++j) {
        if (c + j >= a.count) {
          q[j] = V::set1(0);
          continue;
        }
        const V::F v = V::subf(V::as_f(V::load(x + (c + j) * a.stride)), most);
        const V::F e = exp_negative(V::maxf(least, v));  // the second operand where it is NaN
        const V::F share = V::addf(V::mulf(e, shares), carry);
        q[j] = V::round(share);
        carry = V::subf(share, V::to_f(q[j]));
        total = V::add(total, q[j]);
      }
      V::store(x + c * a.stride, V::pack(q[0], q[1], q[2], q[3], V::set1(0)));
    }
    V::store(a.totals + p, total);
  }
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
