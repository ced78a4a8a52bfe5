// SPDX-License-Identifier: Apache-2.0
// Attention as one pass: a map times the sigmoid of another.

template <bool kLow, bool kResidual>
static void gate_values(const GateRow& r, int64_t n) {
  const V::F shift = V::set1f(-r.offset);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i;
    V::F s = V::as_f(load_some(r.gate + i, m));
    if (kLow) s = V::addf(s, V::as_f(load_some(r.low + i, m)));
    V::F y = V::mulf(V::addf(sigmoid(s), shift), V::as_f(load_some(r.x + i, m)));
    if (kResidual) y = V::addf(y, V::as_f(load_some(r.residual + i, m)));
    store_some(r.y + i, V::as_i(y), m);
  }
}

static void gate_row(const GateRow& r, int64_t n) {
  if (r.low != nullptr)
    return r.residual != nullptr ? gate_values<true, true>(r, n) : gate_values<true, false>(r, n);
  return r.residual != nullptr ? gate_values<false, true>(r, n) : gate_values<false, false>(r, n);
}
