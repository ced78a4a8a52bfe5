// SPDX-License-Identifier: Apache-2.0
// One input row times many weight rows. Ternary: 4 * kLanes bytes of codes are 16 * kLanes weights;
// code j of every byte, moved to the top of the byte, is the int8 +-64, and meets stream j of the
// inputs (elements j, j + 4, j + 8, ...). The factor 64 is taken out of the exact sum at the end;
// 255 * 64 * K < 2**31 bounds K by 131,586 (the caller checks).

// Four streams of inputs at one place.
struct Streams {
  V::I x0, x1, x2, x3;
  TOPS_INLINE Streams(const uint8_t* x, int64_t stream)
      : x0(V::load(x)),
        x1(V::load(x + stream)),
        x2(V::load(x + 2 * stream)),
        x3(V::load(x + 3 * stream)) {}
  TOPS_INLINE V::I dot(V::I acc, const uint8_t* codes) const {
    // Held in a register: loaded again for each of its four uses, an unaligned row would cost eight
    // cache lines.
    const V::I c = V::in_register(V::load(codes));
    // Two chains: four dependent products would take longer than the shifts and masks that feed
    // them.
    const V::I even = V::dot_ternary(acc, x0, V::template top_code<0>(c));
    const V::I odd = V::dot_ternary(V::set1(0), x1, V::template top_code<1>(c));
    return V::add(V::dot_ternary(even, x2, V::template top_code<2>(c)),
                  V::dot_ternary(odd, x3, V::template top_code<3>(c)));
  }
  // The last n bytes of a row, of which nothing beyond may be read.
  TOPS_INLINE V::I dot_tail(V::I acc, const uint8_t* codes, int64_t n) const {
    uint8_t tail[V::kLanes * 4] = {};
    __builtin_memcpy(tail, codes, static_cast<size_t>(n));
    return dot(acc, tail);
  }
};

static void matvec_ternary(const uint8_t* x, int64_t stream, const uint8_t* codes,
                           int64_t row_bytes, int64_t begin, int64_t end, int32_t* y) {
  constexpr int64_t kStep = V::kLanes * 4;
  const int64_t whole = row_bytes / kStep * kStep, rest = row_bytes - whole;
  for (int64_t n = begin; n < end; n += 4) {
    // Four rows at a time share the loads of x; past the end the last row is computed again.
    const int64_t last = end - 1;
    const int64_t n1 = min64(n + 1, last), n2 = min64(n + 2, last), n3 = min64(n + 3, last);
    const uint8_t *r0 = codes + n * row_bytes, *r1 = codes + n1 * row_bytes;
    const uint8_t *r2 = codes + n2 * row_bytes, *r3 = codes + n3 * row_bytes;
    V::I a0 = V::set1(0), a1 = a0, a2 = a0, a3 = a0;
    for (int64_t i = 0; i < whole; i += kStep) {
      const Streams s(x + i, stream);
      // Four rows read in turn do not look like a stream to the hardware: without this, two thirds
      // of the bandwidth.
      for (int64_t r = 4; r < 8; ++r) __builtin_prefetch(r0 + i + r * row_bytes);
      a0 = s.dot(a0, r0 + i);
      a1 = s.dot(a1, r1 + i);
      a2 = s.dot(a2, r2 + i);
      a3 = s.dot(a3, r3 + i);
    }
    if (rest) {
      const Streams s(x + whole, stream);
      a0 = s.dot_tail(a0, r0 + whole, rest);
      a1 = s.dot_tail(a1, r1 + whole, rest);
      a2 = s.dot_tail(a2, r2 + whole, rest);
      a3 = s.dot_tail(a3, r3 + whole, rest);
    }
    y[n] = V::sum(a0) / 64;
    y[n1] = V::sum(a1) / 64;
    y[n2] = V::sum(a2) / 64;
    y[n3] = V::sum(a3) / 64;
  }
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
