// SPDX-License-Identifier: Apache-2.0
// Rows of other sizes: bilinear interpolation one axis after the other (along each row, then
// between two of them), and the rows of a pixel shuffle.

static void bilinear_floats(const Bilinear& s, const float* x, int64_t n, float* __restrict y) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i)
    y[i] = s.first_weight[i] * x[s.first[i]] + s.second_weight[i] * x[s.second[i]];
}

static void bilinear_packets(const Bilinear& s, const uint8_t* x, int32_t zero_point, int64_t n,
                             float* y) {
  for (int64_t i = 0; i < n; ++i) {
    const uint8_t *const a = x + 4 * static_cast<int64_t>(s.first[i]), *const b =
                                                                           x +
                                                                           4 * static_cast<int64_t>(
                                                                                   s.second[i]);
    for (int j = 0; j < 4; ++j)
      y[4 * i + j] = s.first_weight[i] * static_cast<float>(a[j] - zero_point) +
                     s.second_weight[i] * static_cast<float>(b[j] - zero_point);
  }
}

static void blend_rows(const float* a, const float* b, float a_weight, float b_weight, int64_t n,
                       float* y) {
  const V::F left = V::set1f(a_weight), right = V::set1f(b_weight);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    const V::F from_a = V::mulf(left, V::as_f(load_some(a + i, m)));
    const V::F from_b = V::mulf(right, V::as_f(load_some(b + i, m)));
    store_some(y + i, V::as_i(V::addf(from_a, from_b)), m);
  }
}

template <int kRows>
static TOPS_INLINE void interleave_rows(const float* const* x, int64_t n, float* __restrict y) {
  for (int64_t i = 0; i < n; ++i)
    for (int k = 0; k < kRows; ++k) y[i * kRows + k] = x[k][i];
}

static void interleave(const float* const* x, int64_t count, int64_t n, float* y) {
  if (count == 2) return interleave_rows<2>(x, n, y);
  if (count == 3) return interleave_rows<3>(x, n, y);
  if (count == 4) return interleave_rows<4>(x, n, y);
  for (int64_t k = 0; k < count; ++k)
    for (int64_t i = 0; i < n; ++i) y[i * count + k] = x[k][i];
}
