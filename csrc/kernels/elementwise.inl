// SPDX-License-Identifier: Apache-2.0
// Pools, sums and the two edges of a network. All work on runs of cells; the engine knows the
// grids.

static void max_pool(const PoolArgs& a, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const uint8_t* const x = a.x + c * a.in_plane;
    uint8_t* const y = a.y + c * a.plane;
    for (int64_t i = 0; i < a.segment_count; ++i) {
      const Segment& s = a.segments[i];
      for (int64_t p = 0; p < s.length; p += V::kLanes) {
        const uint8_t* const in = x + (s.flat + p) * 4;
        V::I m = V::load(in + a.offsets[0]);
        for (int64_t t = 1; t < a.taps; ++t) {
          const V::I v = V::load(in + a.offsets[t]);
          m = a.is_float ? V::as_i(V::maxf(V::as_f(v), V::as_f(m))) : V::max_u8(m, v);
        }
        uint8_t* const out = y + (s.cell + p) * 4;
        if (s.length - p >= V::kLanes)
          V::store(out, m);
        else
          V::store_n(out, m, s.length - p);
      }
    }
  }
}

static TOPS_INLINE void split_codes(V::I cells, float scale, int32_t zero_point, V::F y[4]) {
  const V::I low = V::set1(0xff), zp = V::set1(zero_point);
  const V::F s = V::set1f(scale);
  y[0] = V::mulf(V::to_f(V::sub(V::and_(cells, low), zp)), s);
  y[1] = V::mulf(V::to_f(V::sub(V::and_(V::shr<8>(cells), low), zp)), s);
  y[2] = V::mulf(V::to_f(V::sub(V::and_(V::shr<16>(cells), low), zp)), s);
  y[3] = V::mulf(V::to_f(V::sub(V::shr<24>(cells), zp)), s);
}

// Four channels of one vector as float32; absent float planes count as 0.
static TOPS_INLINE void load_channels(const Cells& c, bool is_float, float scale,
                                      int32_t zero_point, int64_t i, int64_t n, V::F y[4]) {
  if (is_float) {
    for (int j = 0; j < 4; ++j)
      y[j] = c.channel[j] ? V::as_f(V::load_n(c.channel[j] + i * 4, n)) : V::set1f(0.0f);
    return;
  }
  split_codes(V::load_n(c.channel[0] + i * 4, n), scale, zero_point, y);
}

// The same for every lane: the one cell of c.
static TOPS_INLINE void spread_channels(const Cells& c, bool is_float, float scale,
                                        int32_t zero_point, V::F y[4]) {
  if (!is_float) {
    int32_t cell;
    __builtin_memcpy(&cell, c.channel[0], 4);
    split_codes(V::set1(cell), scale, zero_point, y);
    return;
  }
  for (int j = 0; j < 4; ++j) {
    float v = 0.0f;
    if (c.channel[j]) __builtin_memcpy(&v, c.channel[j], 4);
    y[j] = V::set1f(v);
  }
}

static void add(const AddArgs& a, const Cells& x, const Cells& b, const Cells& y, int64_t n) {
  const Epilogue& e = a.epilogue;
  const Finisher finish(e, a.float_out, false, 0);
  V::F t[4];
  if (a.b_spread) spread_channels(b, a.b_float, e.res_scale, e.res_zero_point, t);
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    V::F s[4];
    load_channels(x, a.a_float, a.a_scale, a.a_zero_point, i, m, s);
    if (a.has_b) {
      if (!a.b_spread) load_channels(b, a.b_float, e.res_scale, e.res_zero_point, i, m, t);
      for (int j = 0; j < 4; ++j) s[j] = a.multiply ? V::mulf(s[j], t[j]) : V::addf(s[j], t[j]);
    }
    int64_t planes = 0;
    while (planes < 4 && y.channel[planes]) ++planes;
    const int64_t stride = planes > 1 ? y.channel[1] - y.channel[0] : 0;
    finish(s, 0, planes, {y.channel[0] + i * 4, stride, nullptr, 0, V::kAll, m});
  }
}

static void lookup(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* y) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes)
    V::store(y + i * 4, V::lookup(V::load(x + i * 4), table));
  if (i < n) V::store_n(y + i * 4, V::lookup(V::load_n(x + i * 4, n - i), table), n - i);
}

static void quantize(const float* const x[4], int64_t n, float inv, int32_t zero_point,
                     uint8_t* cells) {
  const V::F scale = V::set1f(inv), cap = V::set1f(1073741824.0f);
  const V::I zp = V::set1(static_cast<int32_t>(static_cast<uint32_t>(zero_point) * 0x10001u));
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    V::I q[4];
    for (int j = 0; j < 4; ++j) {
      const V::F v = x[j] ? V::as_f(V::load_n(x[j] + i, m)) : V::set1f(0.0f);
      q[j] = V::round(V::minf(cap, V::mulf(v, scale)));
    }
    V::store_n(cells + i * 4, V::pack(q[0], q[1], q[2], q[3], zp), m);
  }
}

static void dequantize(const uint8_t* cells, int64_t n, float scale, int32_t zero_point,
                       float* const y[4]) {
  const Cells c = {{const_cast<uint8_t*>(cells), nullptr, nullptr, nullptr}};
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    V::F v[4];
    load_channels(c, false, scale, zero_point, i, m, v);
    for (int j = 0; j < 4; ++j)
      if (y[j]) V::store_n(y[j] + i, V::as_i(v[j]), m);
  }
}

static void gather(const uint8_t* x, int64_t stride, int64_t n, uint8_t* y) {
  int64_t i = 0;
  if (stride == 1) {
    __builtin_memcpy(y, x, static_cast<size_t>(n) * 4);
    return;
  }
  if (stride == 2)
    for (; i + V::kLanes <= n; i += V::kLanes) V::store(y + i * 4, V::load_stride2(x + i * 8));
  for (; i < n; ++i) __builtin_memcpy(y + i * 4, x + i * stride * 4, 4);
}

static const KernelTable kTable = {
    TOPS_ISA_NAME, V::kLanes,   V::kSparseVectors, conv_dense,  conv_wide,
    wide_scratch,  conv_sparse, matvec_ternary,    matvec_int8, max_pool,
    lookup,        add,         quantize,          dequantize,  gather,
    dot_burst,     read_burst};
