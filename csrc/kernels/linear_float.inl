// SPDX-License-Identifier: Apache-2.0
// Float input rows times integer weight rows (weights/packed_rows.h): weights are read as they are
// stored and become floats in registers. Sums run in kFloatChains parts and blocks of kFloatBlock
// weights, the same for any number of input rows: a row's result does not depend on its company.
// D: the type X of inputs, and how kWeights of them, a vector, meet as many weights.

constexpr int kFloatChains = 4;
constexpr int64_t kFloatBlock = 1024;  // weights; their inputs stay in the first-level cache
// Of weight rows that stay in the second-level cache while all input rows pass.
constexpr int64_t kFloatBytes = 128 * 1024;

template <class D, int R>
struct FloatSums {
  V::I v[R][kFloatChains];
  TOPS_INLINE FloatSums() {
    for (int i = 0; i < R; ++i)
      for (int c = 0; c < kFloatChains; ++c) v[i][c] = V::as_i(V::set1f(0.0f));
  }
  TOPS_INLINE void add(int chain, V::I w, const typename D::X* x, int64_t stride) {
    for (int i = 0; i < R; ++i) v[i][chain] = D::dot(v[i][chain], V::load(x + i * stride), w);
  }
  TOPS_INLINE float sum(int i) const {
    return V::sumf(V::addf(V::addf(V::as_f(v[i][0]), V::as_f(v[i][1])),
                           V::addf(V::as_f(v[i][2]), V::as_f(v[i][3]))));
  }
};

// Weights [first, last) of a row, whole blocks of it.
template <class D, int R>
static TOPS_INLINE FloatSums<D, R> two_bit_sums(const FloatLinearArgs& a, const uint8_t* row,
                                                const typename D::X* x, int64_t first,
                                                int64_t last) {
  static_assert(kFloatBlock % (4 * kRowBlock) == 0, "blocks of rows are not cut");
  FloatSums<D, R> sums;
  for (int64_t b = first / 4; b < last / 4; b += kRowBlock) {
    __builtin_prefetch(row + b + 4 * kRowBlock);
    for (int64_t i = 0; i < kRowBlock; i += D::kWeights) {
      const V::I codes = D::widen(row + b + i);
      const typename D::X* const in = x + 4 * b + i;
      sums.add(0, D::ternary(codes), in, a.x_stride);
      sums.add(1, D::ternary(V::template shr<2>(codes)), in + kRowBlock, a.x_stride);
      sums.add(2, D::ternary(V::template shr<4>(codes)), in + 2 * kRowBlock, a.x_stride);
      sums.add(3, D::ternary(V::template shr<6>(codes)), in + 3 * kRowBlock, a.x_stride);
    }
  }
  return sums;
}

template <class D, int R>
static TOPS_INLINE FloatSums<D, R> int8_sums(const FloatLinearArgs& a, const uint8_t* row,
                                             const typename D::X* x, int64_t first, int64_t last) {
  // A row's length is a multiple of kRowBlock: wide vectors cannot fill all chains.
  constexpr int kChains = kRowBlock < kFloatChains * D::kWeights
                              ? static_cast<int>(kRowBlock / D::kWeights)
                              : kFloatChains;
  static_assert(kRowBlock % (kChains * D::kWeights) == 0, "no vector is cut");
  FloatSums<D, R> sums;
  for (int64_t k = first; k < last; k += kChains * D::kWeights) {
    __builtin_prefetch(row + k + 4 * kRowBlock);
    for (int c = 0; c < kChains; ++c) {
      const int64_t at = k + c * D::kWeights;
      sums.add(c, D::int8(row + at), x + at, a.x_stride);
    }
  }
  return sums;
}

template <class D, int R>
static void float_rows(const FloatLinearArgs& a, int64_t i, int64_t begin, int64_t end) {
  const typename D::X* const x = static_cast<const typename D::X*>(a.x) + i * a.x_stride;
  float* const y = a.y + i * a.y_stride;
  for (int r = 0; r < R; ++r)
    for (int64_t n = begin; n < end; ++n) y[r * a.y_stride + n] = 0.0f;
  const auto add_block = [&](int64_t n, int64_t first) {
    const int64_t last = a.width - first < kFloatBlock ? a.width : first + kFloatBlock;
    const uint8_t* const row = a.weight_rows + n * a.row_bytes;
    const FloatSums<D, R> sums = a.codes == RowCodes::kInt8
                                     ? int8_sums<D, R>(a, row, x, first, last)
                                     : two_bit_sums<D, R>(a, row, x, first, last);
    for (int r = 0; r < R; ++r) y[r * a.y_stride + n] += sums.sum(r);
  };
  // One input row is small, and weights come fastest in the order of memory.
  const int64_t span = R == 1 ? a.width : kFloatBlock;
  for (int64_t at = 0; at < a.width; at += span)
    for (int64_t n = begin; n < end; ++n)
      for (int64_t first = at; first < at + span && first < a.width; first += kFloatBlock)
        add_block(n, first);
  for (int r = 0; r < R; ++r)
    for (int64_t n = begin; n < end; ++n) {
      float& out = y[r * a.y_stride + n];
      out = out * a.scale[n] + (a.bias ? a.bias[n] : 0.0f);
    }
}

template <class D>
static void linear_float(const FloatLinearArgs& a, int64_t begin, int64_t end) {
  const int64_t fit = kFloatBytes / a.row_bytes, step = fit < 1 ? 1 : fit;
  for (int64_t n = begin; n < end; n += step) {
    const int64_t until = end - n < step ? end : n + step;
    int64_t i = 0;
    for (; i + V::kFloatRows <= a.m; i += V::kFloatRows)
      float_rows<D, V::kFloatRows>(a, i, n, until);
    for (; i < a.m; ++i) float_rows<D, 1>(a, i, n, until);
  }
}

struct Float32Dots {
  using X = float;
  static constexpr int kWeights = V::kLanes;
  static TOPS_INLINE V::I dot(V::I acc, V::I x, V::I w) { return V::dot_float(acc, x, w); }
  static TOPS_INLINE V::I widen(const uint8_t* codes) { return V::bytes_to_lanes(codes); }
  static TOPS_INLINE V::I ternary(V::I codes) { return V::as_i(V::ternary_of(codes)); }
  static TOPS_INLINE V::I int8(const uint8_t* p) { return V::as_i(V::to_f(V::int8_to_lanes(p))); }
};
