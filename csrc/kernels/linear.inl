// SPDX-License-Identifier: Apache-2.0
// Input rows times weight rows (weights/packed_rows.h): vectors run along k, one sum a pair of
// rows. Ternary weights are read as w + 1, unsigned, and meet signed inputs: what a mask leaves of
// a byte of codes is such a number, times 1 or 4. The caller takes the ones out again.

// Codes of one vector of packed bytes; take<j>() is number j of every byte.
struct TwoBitCodes {
  static constexpr int kNumbers = 4;
  V::I bytes, low;
  TOPS_INLINE explicit TwoBitCodes(const uint8_t* p)
      : bytes(V::load(p)), low(V::set1(0x03030303)) {}
  template <int j>
  TOPS_INLINE V::I take() {
    return V::and_(j ? V::template shr<2 * j>(bytes) : bytes, low);
  }
};

// Five digits to the base 3, the byte being ceil(number * 256 / 243): the integer part of three
// 256ths of it is the first digit, and the fraction the byte of the other four.
struct BaseThreeCodes {
  static constexpr int kNumbers = 5;
  V::I bytes, low, one, zero;
  TOPS_INLINE explicit BaseThreeCodes(const uint8_t* p)
      : bytes(V::load(p)), low(V::set1(0x03030303)), one(V::set1(0x01010101)), zero(V::set1(0)) {}
  template <int j>
  TOPS_INLINE V::I take() {
    if (j) bytes = V::add_bytes(bytes, V::add_bytes(bytes, bytes));
    // Averages round up, which the one makes up for: the two leading bits are those of 3 / 4 of the
    // byte.
    const V::I less = V::less_bytes(bytes, one);
    const V::I digit = V::average_bytes(less, V::average_bytes(less, zero));
    return V::and_(V::template shr<6>(digit), low);
  }
};

// Numbers j and later of a vector of codes, with R input rows.
template <class Codes, int R, int J>
struct RowProducts {
  static TOPS_INLINE void add(Codes& codes, V::I* acc, const uint8_t* x, int64_t stride) {
    const V::I w = codes.template take<J>();
    for (int i = 0; i < R; ++i) acc[i] = V::dot_narrow_at(acc[i], w, x + i * stride);
    RowProducts<Codes, R, J + 1>::add(codes, acc, x + kRowBlock, stride);
  }
};
template <int R>
struct RowProducts<TwoBitCodes, R, TwoBitCodes::kNumbers> {
  static TOPS_INLINE void add(TwoBitCodes&, V::I*, const uint8_t*, int64_t) {}
};
template <int R>
struct RowProducts<BaseThreeCodes, R, BaseThreeCodes::kNumbers> {
  static TOPS_INLINE void add(BaseThreeCodes&, V::I*, const uint8_t*, int64_t) {}
};

constexpr int64_t kRowsAhead = 2;

// R input rows, blocks [first, last) of k: few enough that 16-bit sums hold (kNarrowSteps products
// of at most 2 * 2 * 128), and that R rows of x stay in the first-level cache.
template <class Codes, int R>
static TOPS_INLINE void code_block(const LinearArgs& a, const uint8_t* x, int64_t n, int64_t first,
                                   int64_t last, int32_t* y, int64_t y_stride) {
  constexpr int64_t kBytes = V::kLanes * 4;
  V::I acc[R];
  for (int i = 0; i < R; ++i) acc[i] = V::set1(0);
  const uint8_t* const row = a.weight_rows + n * a.row_bytes;
  for (int64_t b = first; b < last; ++b) {
    // Pieces of rows are no stream that the hardware would prefetch.
    __builtin_prefetch(row + b * kRowBlock + kRowsAhead * a.row_bytes);
    for (int64_t i = 0; i < kRowBlock; i += kBytes) {
      Codes codes(row + b * kRowBlock + i);
      RowProducts<Codes, R, 0>::add(codes, acc, x + b * kRowBlock * Codes::kNumbers + i,
                                    a.x_stride);
    }
  }
  for (int i = 0; i < R; ++i) y[i * y_stride] += V::sum(V::add_narrow(V::set1(0), acc[i]));
}

template <class Codes, int R>
static void code_rows(const LinearArgs& a, const uint8_t* x, int64_t begin, int64_t end,
                      int32_t* y) {
  constexpr int64_t kBlocks = 64 / (Codes::kNumbers * 2);
  static_assert(V::kNarrowSteps == 0 ||
                    kBlocks * Codes::kNumbers * kRowBlock / (V::kLanes * 4) <= V::kNarrowSteps,
                "16-bit sums would overflow");
  for (int i = 0; i < R; ++i)
    for (int64_t n = begin; n < end; ++n) y[i * a.y_stride + n] = 0;
  const int64_t blocks = a.row_bytes / kRowBlock;
  for (int64_t b = 0; b < blocks; b += kBlocks)
    for (int64_t n = begin; n < end; ++n)
      code_block<Codes, R>(a, x, n, b, min64(b + kBlocks, blocks), y + n, a.y_stride);
}

// One input row: codes 1 and 3 of a byte are multiplied where they stand, by 4, so that one shift
// serves four products; 4 * (sums of codes 0 and 2) + (sums of codes 1 and 3) is 4 times the
// result.
static void two_bit_row(const LinearArgs& a, const uint8_t* x, int64_t begin, int64_t end,
                        int32_t* y) {
  constexpr int64_t kBytes = V::kLanes * 4;
  // Two products a vector, each 4 times as large as kNarrowSteps allows for.
  constexpr int64_t kRun = V::kNarrowSteps ? V::kNarrowSteps / 8 * kBytes : 32 * kRowBlock;
  const V::I low = V::set1(0x03030303), high = V::set1(0x0c0c0c0c);
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* const row = a.weight_rows + n * a.row_bytes;
    V::I ones = V::set1(0), fours = ones;
    const uint8_t* in = x;
    for (int64_t run = 0; run < a.row_bytes; run += kRun) {
      V::I by_one = V::set1(0), by_four = by_one;
      const int64_t last = min64(a.row_bytes, run + kRun);
      for (int64_t b = run; b < last; b += kRowBlock, in += 4 * kRowBlock)
        for (int64_t i = 0; i < kRowBlock; i += kBytes) {
          const V::I codes = V::in_register(V::load(row + b + i)), rest = V::shr<4>(codes);
          by_one = V::dot_narrow_at(by_one, V::and_(codes, low), in + i);
          by_four = V::dot_narrow_at(by_four, V::and_(codes, high), in + i + kRowBlock);
          by_one = V::dot_narrow_at(by_one, V::and_(rest, low), in + i + 2 * kRowBlock);
          by_four = V::dot_narrow_at(by_four, V::and_(rest, high), in + i + 3 * kRowBlock);
        }
      ones = V::add_narrow(ones, by_one);
      fours = V::add_narrow(fours, by_four);
    }
    const V::I twice = V::add(ones, ones);
    y[n] = V::sum(V::add(V::add(twice, twice), fours)) / 4;
  }
}

static void int8_row(const LinearArgs& a, const uint8_t* x, int64_t begin, int64_t end,
                     int32_t* y) {
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* const row = a.weight_rows + n * a.row_bytes;
    V::I acc = V::set1(0);
    for (int64_t k = 0; k < a.row_bytes; k += V::kLanes * 4)
      acc = V::dot_int8(acc, V::load(x + k), V::load(row + k));
    y[n] = V::sum(acc);
  }
}

// Inputs are widened once for all weight rows, as many as stay in the first-level cache.
template <int R>
static void int8_rows(const LinearArgs& a, const uint8_t* x, int64_t begin, int64_t end,
                      int32_t* y) {
  constexpr int64_t kBytes = V::kLanes * 4, kVectors = 2048 / kBytes;
  V::Wide wide[kVectors * R];
  for (int i = 0; i < R; ++i)
    for (int64_t n = begin; n < end; ++n) y[i * a.y_stride + n] = 0;
  for (int64_t k = 0; k < a.row_bytes; k += kVectors * kBytes) {
    const int64_t vectors = min64(kVectors, (a.row_bytes - k) / kBytes);
    for (int64_t v = 0; v < vectors; ++v)
      for (int i = 0; i < R; ++i)
        wide[v * R + i] = V::wide_input(V::load(x + i * a.x_stride + k + v * kBytes));
    for (int64_t n = begin; n < end; ++n) {
      const uint8_t* const row = a.weight_rows + n * a.row_bytes + k;
      V::I acc[R];
      for (int i = 0; i < R; ++i) acc[i] = V::set1(0);
      for (int64_t v = 0; v < vectors; ++v) {
        __builtin_prefetch(row + v * kBytes + kRowsAhead * a.row_bytes);
        const V::Wide w = V::wide_weights(V::load(row + v * kBytes));
        for (int i = 0; i < R; ++i) acc[i] = V::dot_wide(acc[i], wide[v * R + i], w);
      }
      for (int i = 0; i < R; ++i) y[i * a.y_stride + n] += V::sum(acc[i]);
    }
  }
}

template <int R>
static void some_rows(const LinearArgs& a, const uint8_t* x, int64_t begin, int64_t end,
                      int32_t* y) {
  if (a.codes == RowCodes::kInt8 && R == 1)
    int8_row(a, x, begin, end, y);
  else if (a.codes == RowCodes::kInt8)
    int8_rows<R>(a, x, begin, end, y);
  else if (a.codes == RowCodes::kBaseThree)
    code_rows<BaseThreeCodes, R>(a, x, begin, end, y);
  else if (R == 1)
    two_bit_row(a, x, begin, end, y);
  else
    code_rows<TwoBitCodes, R>(a, x, begin, end, y);
}

static void linear(const LinearArgs& a, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < a.m;) {
    const uint8_t* const x = a.x + i * a.x_stride;
    int32_t* const y = a.y + i * a.y_stride;
    const int64_t left = a.m - i;
    if (left >= 8)
      some_rows<8>(a, x, begin, end, y), i += 8;
    else if (left >= 4)
      some_rows<4>(a, x, begin, end, y), i += 4;
    else if (left >= 2)
      some_rows<2>(a, x, begin, end, y), i += 2;
    else
      some_rows<1>(a, x, begin, end, y), i += 1;
  }
}

static void linear_epilogue(const LinearEpilogue& f, int64_t n, float* y) {
  const V::I shift = V::set1(f.shift), x_sum = V::set1(f.x_sum);
  const V::F x_scale = V::set1f(f.x_scale);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = min64(n - i, V::kLanes);
    const V::I sum =
        V::sub(V::add(load_some(y + i, m), V::mul(shift, load_some(f.sums + i, m))), x_sum);
    const V::F scale = V::mulf(V::as_f(load_some(f.scale + i, m)), x_scale);
    const V::F bias = f.bias ? V::as_f(load_some(f.bias + i, m)) : V::set1f(0.0f);
    store_some(y + i, V::as_i(V::addf(V::mulf(V::to_f(sum), scale), bias)), m);
  }
}

static void quantize_row(const float* x, int64_t n, float inv, int32_t zero_point, uint8_t* q) {
  const V::F scale = V::set1f(inv), cap = V::set1f(1073741824.0f);
  const V::I zp = V::set1(static_cast<int32_t>(static_cast<uint32_t>(zero_point) * 0x10001u));
  alignas(64) float rest[4 * V::kLanes] = {};
  for (int64_t i = 0; i < n; i += 4 * V::kLanes) {
    const bool whole = n - i >= 4 * V::kLanes;
    if (!whole) __builtin_memcpy(rest, x + i, static_cast<size_t>(n - i) * 4);
    const float* const from = whole ? x + i : rest;
    V::I v[4];
    for (int j = 0; j < 4; ++j)
      v[j] = V::round(V::minf(cap, V::mulf(V::as_f(V::load(from + j * V::kLanes)), scale)));
    const V::I bytes = V::pack_row(v[0], v[1], v[2], v[3], zp);
    if (whole) {
      V::store(q + i, bytes);
    } else {
      alignas(64) uint8_t tail[4 * V::kLanes];
      V::store(tail, bytes);
      __builtin_memcpy(q + i, tail, static_cast<size_t>(n - i));
    }
  }
}
