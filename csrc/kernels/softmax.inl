// SPDX-License-Identifier: Apache-2.0
// Softmax of columns, pixels in the lanes. A vector of pixels at a time: three passes over its
// column, which the first-level cache holds.

static void softmax_rows(const SoftmaxArgs& a) {
  const V::F scale = V::set1f(a.scale), least = V::set1f(-86.0f);  // exp_negative's domain
  for (int64_t p = 0; p < a.n; p += V::kLanes) {
    const int64_t m = min64(a.n - p, V::kLanes);
    float* const x = a.x + p;
    V::F most = V::set1f(0.0f), sum = V::set1f(0.0f);
    for (int64_t c = 0; c < a.count; ++c) {
      V::F v = V::mulf(V::as_f(V::load(x + c * a.stride)), scale);
      if (a.bias) v = V::addf(v, V::as_f(load_some(a.bias + c * a.bias_stride + p, m)));
      V::store(x + c * a.stride, V::as_i(v));
      most = c ? V::maxf(most, v) : v;
    }
    for (int64_t c = 0; c < a.count; ++c) {
      const V::F v = V::subf(V::as_f(V::load(x + c * a.stride)), most);
      const V::F e = exp_negative(V::maxf(least, v));  // the second operand where it is NaN
      V::store(x + c * a.stride, V::as_i(e));
      sum = V::addf(sum, e);
    }
    const V::F share = V::divf(V::set1f(1.0f), sum);
    for (int64_t c = 0; c < a.count; ++c)
      V::store(x + c * a.stride, V::as_i(V::mulf(V::as_f(V::load(x + c * a.stride)), share)));
  }
}
