// SPDX-License-Identifier: Apache-2.0
// Pools, sums and the two edges of a network. All work on runs of packets; the engine knows the
// tensors.

template <bool kFloat>
static TOPS_INLINE V::I larger(V::I a, V::I b) {
  return kFloat ? V::as_i(V::maxf(V::as_f(b), V::as_f(a))) : V::max_u8(a, b);
}

// Largest of each column of a window: n packets of each row.
static void max_rows(const uint8_t* const* rows, int64_t count, int64_t n, bool is_float,
                     uint8_t* y) {
  for (int64_t x = 0; x < n; x += V::kLanes) {
    V::I m = V::load(rows[0] + x * 4);
    for (int64_t i = 1; i < count; ++i) {
      const V::I v = V::load(rows[i] + x * 4);
      m = is_float ? larger<true>(m, v) : larger<false>(m, v);
    }
    store_some(y + x * 4, m, min64(n - x, V::kLanes));
  }
}

static TOPS_INLINE V::I load_strided(const uint8_t* p, int64_t stride) {
  if (stride == 1) return V::load(p);
  if (stride == 2) return V::load_stride2(p);
  alignas(64) uint8_t packets[V::kLanes * 4];
  for (int64_t l = 0; l < V::kLanes; ++l) __builtin_memcpy(packets + l * 4, p + l * stride * 4, 4);
  return V::load(packets);
}

// Largest of each row of a window: y[i] = max over j < taps of x[i * stride + j * dilation].
static void max_columns(const uint8_t* x, int64_t taps, int64_t stride, int64_t dilation,
                        bool is_float, uint8_t* y, int64_t n) {
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const uint8_t* const from = x + i * stride * 4;
    V::I m = load_strided(from, stride);
    for (int64_t j = 1; j < taps; ++j) {
      const V::I v = load_strided(from + j * dilation * 4, stride);
      m = is_float ? larger<true>(m, v) : larger<false>(m, v);
    }
    store_some(y + i * 4, m, min64(n - i, V::kLanes));
  }
}

static TOPS_INLINE void split_codes(V::I packets, float scale, int32_t zero_point, V::F y[4]) {
  const V::I low = V::set1(0xff), zp = V::set1(zero_point);
  const V::F s = V::set1f(scale);
  y[0] = V::mulf(V::to_f(V::sub(V::and_(packets, low), zp)), s);
  y[1] = V::mulf(V::to_f(V::sub(V::and_(V::shr<8>(packets), low), zp)), s);
  y[2] = V::mulf(V::to_f(V::sub(V::and_(V::shr<16>(packets), low), zp)), s);
  y[3] = V::mulf(V::to_f(V::sub(V::shr<24>(packets), zp)), s);
}

// Four channels of one vector as float32; absent float planes count as 0.
static TOPS_INLINE void load_channels(const Packets& c, bool is_float, float scale,
                                      int32_t zero_point, int64_t i, int64_t n, V::F y[4]) {
  if (is_float) {
    for (int j = 0; j < 4; ++j)
      y[j] = c.channel[j] ? V::as_f(load_some(c.channel[j] + i * 4, n)) : V::set1f(0.0f);
    return;
  }
  split_codes(load_some(c.channel[0] + i * 4, n), scale, zero_point, y);
}

// Broadcast the one packet of c to all lanes.
static TOPS_INLINE void spread_channels(const Packets& c, bool is_float, float scale,
                                        int32_t zero_point, V::F y[4]) {
  if (!is_float) {
    int32_t packet;
    __builtin_memcpy(&packet, c.channel[0], 4);
    split_codes(V::set1(packet), scale, zero_point, y);
    return;
  }
  for (int j = 0; j < 4; ++j) {
    float v = 0.0f;
    if (c.channel[j]) __builtin_memcpy(&v, c.channel[j], 4);
    y[j] = V::set1f(v);
  }
}

static void add(const AddArgs& a, const Packets& x, const Packets& b, const Packets& y, int64_t n) {
  const Epilogue& e = a.epilogue;
  const EpilogueOp finish(e, a.float_out, false, false, 0);
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
    finish(s, 0, planes, {y.channel[0] + i * 4, stride, nullptr, 0, nullptr, 0, V::kAll, m});
  }
}

static void lookup(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* y) {
  int64_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes)
    V::store(y + i * 4, V::lookup(V::load(x + i * 4), table));
  if (i < n) V::store_n(y + i * 4, V::lookup(V::load_n(x + i * 4, n - i), table), n - i);
}

static void quantize(const float* const x[4], int64_t n, float inv, int32_t zero_point,
                     uint8_t* packets) {
  const V::F scale = V::set1f(inv), cap = V::set1f(1073741824.0f);
  const V::I zp = V::set1(static_cast<int32_t>(static_cast<uint32_t>(zero_point) * 0x10001u));
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    V::I q[4];
    for (int j = 0; j < 4; ++j) {
      const V::F v = x[j] ? V::as_f(load_some(x[j] + i, m)) : V::set1f(0.0f);
      q[j] = V::round(V::minf(cap, V::mulf(v, scale)));
    }
    store_some(packets + i * 4, V::pack(q[0], q[1], q[2], q[3], zp), m);
  }
}

static void quantize_fine(const float* const x[4], int64_t n, float inv, int32_t zero_point,
                          uint8_t* packets, uint8_t* rest) {
  // So far beyond the codes nothing changes, and what is left is exact.
  const V::F scale = V::set1f(inv), most = V::set1f(1024.0f), least = V::set1f(-1024.0f);
  const V::F parts = V::set1f(kFineParts);
  const V::I zp = V::set1(static_cast<int32_t>(static_cast<uint32_t>(zero_point) * 0x10001u));
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    V::I q[4], left[4];
    for (int j = 0; j < 4; ++j) {
      V::F v = x[j] ? V::as_f(load_some(x[j] + i, m)) : V::set1f(0.0f);
      v = V::maxf(least, V::minf(most, V::mulf(v, scale)));
      q[j] = V::round(v);
      left[j] = V::round(V::mulf(V::subf(v, V::to_f(q[j])), parts));
    }
    store_some(packets + i * 4, V::pack(q[0], q[1], q[2], q[3], zp), m);
    store_some(rest + i * 4, V::pack(left[0], left[1], left[2], left[3], zp), m);
  }
}

static void dequantize(const uint8_t* packets, int64_t n, float scale, int32_t zero_point,
                       float* const y[4]) {
  const Packets c = {{const_cast<uint8_t*>(packets), nullptr, nullptr, nullptr}};
  for (int64_t i = 0; i < n; i += V::kLanes) {
    const int64_t m = n - i < V::kLanes ? n - i : V::kLanes;
    V::F v[4];
    load_channels(c, false, scale, zero_point, i, m, v);
    for (int j = 0; j < 4; ++j)
      if (y[j]) store_some(y[j] + i, V::as_i(v[j]), m);
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

static const KernelTable kTable = {TOPS_ISA_NAME,
                                   V::kSparseBelow,
                                   V::kLanes,
                                   V::kSparseVectors,
                                   V::kSignedInput,
                                   conv_dense,
                                   conv_wide,
                                   wide_scratch,
                                   V::kWideSpeed,
                                   conv_sparse,
                                   conv_blocks,
                                   conv_depthwise,
                                   winograd_rows,
                                   winograd_finish,
                                   linear,
                                   linear_float<Float32Dots>,
                                   linear_epilogue,
                                   quantize_row,
                                   max_rows,
                                   max_columns,
                                   lookup,
                                   map_floats,
                                   bilinear_floats,
                                   bilinear_packets,
                                   blend_rows,
                                   gate_row,
                                   layer_norm,
                                   softmax_rows,
                                   attention_shares,
                                   attention_mix,
                                   interleave,
                                   add,
                                   quantize,
                                   quantize_fine,
                                   dequantize,
                                   gather,
                                   channel_sums,
                                   fake_quantize,
                                   fake_quantize_grad,
                                   dot_burst,
                                   float_burst,
                                   read_burst};
