// SPDX-License-Identifier: Apache-2.0
// One input row times many weight rows. Ternary: 4 * kLanes bytes of codes are 16 * kLanes weights;
// code j of every byte, moved to the top of the byte, is the int8 +-64, and meets stream j of the
// inputs (elements j, j + 4, j + 8, ...). The factor 64 is taken out of the exact sum at the end;
// 255 * 64 * K < 2**31 bounds K by 131,586 (the caller checks).

template <int R>
static TOPS_INLINE void ternary_rows(const uint8_t* x, int64_t stream, const uint8_t* codes,
                                     int64_t row_bytes, int32_t* y) {
  constexpr int64_t kStep = V::kLanes * 4;
  V::I acc[R];
  for (int r = 0; r < R; ++r) acc[r] = V::set1(0);
  for (int64_t i = 0; i < row_bytes; i += kStep) {
    const V::I x0 = V::load(x + i), x1 = V::load(x + stream + i);
    const V::I x2 = V::load(x + 2 * stream + i), x3 = V::load(x + 3 * stream + i);
    const bool whole = i + kStep <= row_bytes;
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = codes + r * row_bytes + i;
      uint8_t tail[kStep];
      if (!whole) {  // never read past the row
        __builtin_memset(tail, 0, kStep);
        __builtin_memcpy(tail, p, static_cast<size_t>(row_bytes - i));
        p = tail;
      }
      const V::I c = V::load(p);
      V::I s = V::dot_ternary(acc[r], x0, V::template top_code<0>(c));
      s = V::dot_ternary(s, x1, V::template top_code<1>(c));
      s = V::dot_ternary(s, x2, V::template top_code<2>(c));
      acc[r] = V::dot_ternary(s, x3, V::template top_code<3>(c));
    }
  }
  for (int r = 0; r < R; ++r) y[r] = V::sum(acc[r]) / 64;
}

static void matvec_ternary(const uint8_t* x, int64_t stream, const uint8_t* codes,
                           int64_t row_bytes, int64_t begin, int64_t end, int32_t* acc) {
  int64_t n = begin;
  for (; n + 4 <= end; n += 4)
    ternary_rows<4>(x, stream, codes + n * row_bytes, row_bytes, acc + n);
  for (; n < end; ++n) ternary_rows<1>(x, stream, codes + n * row_bytes, row_bytes, acc + n);
}

// x and every row hold row_bytes, a multiple of 4.
static void matvec_int8(const uint8_t* x, const int8_t* w, int64_t row_bytes, int64_t begin,
                        int64_t end, int32_t* acc) {
  constexpr int64_t kStep = V::kLanes * 4;
  for (int64_t n = begin; n < end; ++n) {
    const int8_t* const row = w + n * row_bytes;
    V::I s = V::set1(0);
    int64_t i = 0;
    for (; i + kStep <= row_bytes; i += kStep) s = V::dot_int8(s, V::load(x + i), V::load(row + i));
    if (i < row_bytes)
      s = V::dot_int8(s, V::load_n(x + i, (row_bytes - i) / 4),
                      V::load_n(row + i, (row_bytes - i) / 4));
    acc[n] = V::sum(s);
  }
}
