// SPDX-License-Identifier: Apache-2.0
// Float input rows times integer weight rows (engine/row_weights.h): weights are read as they are
// stored and become floats in registers. Sums run in kFloatChains parts and blocks of kFloatBlock
// weights, the same for any number of input rows: a row's result does not depend on its company.

constexpr int kFloatChains = 4;
constexpr int64_t kFloatBlock = 1024;  // weights; their inputs stay in the first-level cache

template <int R>
struct FloatSums {
  V::I v[R][kFloatChains];
  TOPS_INLINE FloatSums() {
    for (int i = 0; i < R; ++i)
      for (int c = 0; c < kFloatChains; ++c) v[i][c] = V::as_i(V::set1f(0.0f));
  }
  TOPS_INLINE void add(int chain, V::F w, const float* x, int64_t stride) {
    for (int i = 0; i < R; ++i)
      v[i][chain] = V::dot_float(v[i][chain], V::load(x + i * stride), V::as_i(w));
  }
  TOPS_INLINE float sum(int i) const {
    return V::sumf(V::addf(V::addf(V::as_f(v[i][0]), V::as_f(v[i][1])),
                           V::addf(V::as_f(v[i][2]), V::as_f(v[i][3]))));
  }
};

// Weights [first, last) of a row, whole blocks of it.
template <int R>
static TOPS_INLINE FloatSums<R> two_bit_sums(const FloatRowsArgs& a, const uint8_t* row,
                                             const float* x, int64_t first, int64_t last) {
  static_assert(kFloatBlock % (4 * kRowBlock) == 0, "blocks of rows are not cut");
  FloatSums<R> sums;
  for (int64_t b = first / 4; b < last / 4; b += kRowBlock) {
    __builtin_prefetch(row + b + 4 * kRowBlock);
    for (int64_t i = 0; i < kRowBlock; i += V::kLanes) {
      const V::I codes = V::bytes_to_lanes(row + b + i);
      const float* const in = x + 4 * b + i;
      sums.add(0, V::ternary_of(codes), in, a.x_stride);
      sums.add(1, V::ternary_of(V::template shr<2>(codes)), in + kRowBlock, a.x_stride);
      sums.add(2, V::ternary_of(V::template shr<4>(codes)), in + 2 * kRowBlock, a.x_stride);
      sums.add(3, V::ternary_of(V::template shr<6>(codes)), in + 3 * kRowBlock, a.x_stride);
    }
  }
  return sums;
}

template <int R>
static TOPS_INLINE FloatSums<R> int8_sums(const FloatRowsArgs& a, const uint8_t* row,
                                          const float* x, int64_t first, int64_t last) {
  static_assert(kRowBlock % (kFloatChains * V::kLanes) == 0, "every chain gets a vector");
  FloatSums<R> sums;
  for (int64_t k = first; k < last; k += kFloatChains * V::kLanes) {
    __builtin_prefetch(row + k + 4 * kRowBlock);
    for (int c = 0; c < kFloatChains; ++c) {
      const int64_t at = k + c * V::kLanes;
      sums.add(c, V::to_f(V::int8_to_lanes(row + at)), x + at, a.x_stride);
    }
  }
  return sums;
}

template <int R>
static void float_rows(const FloatRowsArgs& a, int64_t i, int64_t begin, int64_t end) {
  const float* const x = a.x + i * a.x_stride;
  float* const y = a.y + i * a.y_stride;
  for (int r = 0; r < R; ++r)
    for (int64_t n = begin; n < end; ++n) y[r * a.y_stride + n] = 0.0f;
  for (int64_t first = 0; first < a.width; first += kFloatBlock) {
    const int64_t last = min64(a.width, first + kFloatBlock);
    for (int64_t n = begin; n < end; ++n) {
      const uint8_t* const row = a.rows + n * a.row_bytes;
      const FloatSums<R> sums = a.codes == RowCodes::kInt8
                                    ? int8_sums<R>(a, row, x, first, last)
                                    : two_bit_sums<R>(a, row, x, first, last);
      for (int r = 0; r < R; ++r) y[r * a.y_stride + n] += sums.sum(r);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int64_t n = begin; n < end; ++n) {
      float& out = y[r * a.y_stride + n];
      out = out * a.scale[n] + (a.bias ? a.bias[n] : 0.0f);
    }
}

static void linear_float(const FloatRowsArgs& a, int64_t begin, int64_t end) {
  int64_t i = 0;
  for (; i + V::kFloatRows <= a.m; i += V::kFloatRows) float_rows<V::kFloatRows>(a, i, begin, end);
  for (; i < a.m; ++i) float_rows<1>(a, i, begin, end);
}
