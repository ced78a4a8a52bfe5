// SPDX-License-Identifier: Apache-2.0
// F(2, 3) down the columns (Winograd 1980): two rows of a 3 x 3 convolution from four products of
// three taps each, where the direct kernel takes six. Rows lie apart, so that neither side moves
// lanes:
//   d0 - d2, d1 + d2, d2 - d1, d1 - d3    from four input rows d
//   m0 + m1 + m2, (m1 - m2) - m3          to two output rows, m: products with transformed weights

// Four rows of one input channel to n packets of each of four arrays, `apart` bytes from one to the
// next.
static void winograd_rows(const uint8_t* const d[4], int64_t n, uint8_t* to, int64_t apart) {
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const V::F d0 = V::as_f(V::load(d[0] + i * 4)), d1 = V::as_f(V::load(d[1] + i * 4)),
               d2 = V::as_f(V::load(d[2] + i * 4)), d3 = V::as_f(V::load(d[3] + i * 4));
    uint8_t* const at = to + i * 4;
    V::store(at, V::as_i(V::subf(d0, d2)));
    V::store(at + apart, V::as_i(V::addf(d1, d2)));
    V::store(at + 2 * apart, V::as_i(V::subf(d2, d1)));
    V::store(at + 3 * apart, V::as_i(V::subf(d1, d3)));
  }
}

// Products of all channels, [4][O][pixels] float32, `apart` and `channel_stride` bytes from one to
// the next, to the outputs of two rows: those that `a` and `b` describe (b null: of one), by their
// epilogue.
static void winograd_finish(const ConvArgs& a, const ConvArgs* b, const uint8_t* m,
                            int64_t channel_stride, int64_t apart) {
  const EpilogueOp finish(a);
  for (int64_t o = 0; o < a.outputs; o += 4)
    for (int64_t p = 0; p < a.pixels; p += V::kLanes) {
      V::I first[4], second[4];
      for (int j = 0; j < 4; ++j) {
        const uint8_t* const at = m + min64(o + j, a.outputs - 1) * channel_stride + p * 4;
        const V::F m0 = V::as_f(V::load(at)), m1 = V::as_f(V::load(at + apart)),
                   m2 = V::as_f(V::load(at + 2 * apart)), m3 = V::as_f(V::load(at + 3 * apart));
        first[j] = V::as_i(V::addf(V::addf(m0, m1), m2));
        second[j] = V::as_i(V::subf(V::subf(m1, m2), m3));
      }
      finish_in_place<Weights::kFloat>(a, finish, first, 1, o, p);
      if (b) finish_in_place<Weights::kFloat>(*b, finish, second, 1, o, p);
    }
}
