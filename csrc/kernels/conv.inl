// SPDX-License-Identifier: Apache-2.0
// Convolution on a flat padded grid. Lanes are consecutive pixels, so a tap is one unaligned load
// at a fixed offset:
//   acc[o][pixel] += dot(x[pixel + offset(k)], w[o][k])   for every packet k = (input packet, tap)
// dense:  8 output channels x kDenseVectors vectors in registers, weights broadcast, k innermost
// sparse: one output channel x up to kSparseVectors vectors, k runs over its occupied quads only;
// four channels, then one epilogue Work is split over outputs only, and float sums keep the order
// of k, so no split changes a result.

template <Weights W>
static TOPS_INLINE V::I dot(V::I acc, V::I x, V::I w) {
  if (W == Weights::kTernary) return V::dot_ternary(acc, x, w);
  if (W == Weights::kInt8) return V::dot_int8(acc, x, w);
  return V::dot_float(acc, x, w);
}

// Ternary sums that are kept in half the bits for a while.
template <Weights W>
constexpr bool narrow() {
  return W == Weights::kTernary && V::kNarrowSteps > 0;
}

// One product of the pixel loops, into the sums that they keep.
template <Weights W>
static TOPS_INLINE V::I step_dot(V::I acc, V::I x, V::I w) {
  if constexpr (narrow<W>()) return V::dot_narrow(acc, x, w);
  return dot<W>(acc, x, w);
}

template <Weights W>
static TOPS_INLINE V::F to_float(V::I acc) {
  return W == Weights::kFloat ? V::as_f(acc) : V::to_f(acc);
}

template <Weights W>
static TOPS_INLINE V::I first(const ConvArgs& a, int64_t o) {
  return V::set1(W == Weights::kFloat ? 0 : a.epilogue.start[o]);
}

static TOPS_INLINE int32_t load32(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

static TOPS_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// Room for the outputs of one tile whose output grid is not the flat domain: packets go through
// here, row segment by segment.
struct Staging {
  alignas(64) uint8_t y[4 * V::kSparseVectors * V::kLanes * 4];
  alignas(64) uint8_t r[4 * V::kSparseVectors * V::kLanes * 4];
  alignas(64) uint8_t g[4 * V::kSparseVectors * V::kLanes * 4];
};

static int64_t first_segment(const ConvArgs& a, int64_t p) {
  int64_t lo = 0, hi = a.segment_count;
  while (lo < hi) {
    const int64_t mid = (lo + hi) / 2;
    if (a.segments[mid].flat + a.segments[mid].length <= p)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

// Copies the packets of flat indices [p, p + n) between the output grid and a staging buffer.
template <bool kScatter>
static void move_segments(const ConvArgs& a, uint8_t* grid, uint8_t* staged, int64_t p, int64_t n) {
  for (int64_t i = first_segment(a, p); i < a.segment_count && a.segments[i].flat < p + n; ++i) {
    const Segment& s = a.segments[i];
    const int64_t from = s.flat > p ? s.flat : p;
    const int64_t to = min64(s.flat + s.length, p + n);
    uint8_t* const g = grid + (s.packet + from - s.flat) * 4;
    uint8_t* const t = staged + (from - p) * 4;
    if (kScatter)
      __builtin_memcpy(g, t, static_cast<size_t>(to - from) * 4);
    else
      __builtin_memcpy(t, g, static_cast<size_t>(to - from) * 4);
  }
}

// The epilogue where it is run most: u8 packets, written where they belong, everything that does
// not change from vector to vector in registers.
template <Weights W, int NV>
static TOPS_INLINE void finish_direct(const ConvArgs& a, const EpilogueOp& finish, const V::I* acc,
                                      int64_t o, int64_t p) {
  const float *const scale = a.epilogue.scale + o, *const bias = a.epilogue.bias + o;
  const V::F s0 = V::set1f(scale[0]), s1 = V::set1f(scale[1]), s2 = V::set1f(scale[2]),
             s3 = V::set1f(scale[3]);
  const V::F b0 = V::set1f(bias[0]), b1 = V::set1f(bias[1]), b2 = V::set1f(bias[2]),
             b3 = V::set1f(bias[3]);
  const V::I outside = finish.outside;
  const uint8_t* const valid = a.valid;
  const int64_t plane = (o / 4) * a.plane, packets = a.pixels - p;
  uint8_t* const y = a.y + plane + (a.origin + p) * 4;
  const uint8_t* const r =
      a.residual ? a.residual + (o / 4) * a.residual_plane + (a.origin + p) * 4 : nullptr;
  for (int v = 0; v < NV; ++v) {
    const int64_t at = v * V::kLanes;
    if (at >= packets) break;
    V::F f[4] = {V::addf(V::mulf(to_float<W>(acc[v]), s0), b0),
                 V::addf(V::mulf(to_float<W>(acc[NV + v]), s1), b1),
                 V::addf(V::mulf(to_float<W>(acc[2 * NV + v]), s2), b2),
                 V::addf(V::mulf(to_float<W>(acc[3 * NV + v]), s3), b3)};
    if (r) finish.add_residual(f, V::load(r + at * 4));
    if (finish.slope) finish.prelu(f, o);
    V::I q = finish.to_packets(f);
    const uint32_t bits = V::bits_at(valid, p + at);
    if (bits != V::kAll) q = V::select(bits, q, outside);
    if (packets - at >= V::kLanes)
      V::store(y + at * 4, q);
    else
      V::store_n(y + at * 4, q, packets - at);
  }
}

// Runs the epilogue of NV vectors of channels [o, o + 4), whose accumulators lie at acc[channel *
// NV + v].
template <Weights W, int NV>
static TOPS_INLINE void finish_tile(const ConvArgs& a, const EpilogueOp& finish, const V::I* acc,
                                    int64_t o, int64_t p) {
  if (a.valid && !a.float_out && !a.residual_float && !a.gate)
    return finish_direct<W, NV>(a, finish, acc, o, p);
  const int64_t planes = min64(4, a.outputs - o);
  const int64_t out_plane = a.float_out ? o : o / 4, res_plane = a.residual_float ? o : o / 4;
  uint8_t* const y = a.y + out_plane * a.plane;
  const uint8_t* const r = a.residual ? a.residual + res_plane * a.residual_plane : nullptr;
  const bool float_gate = a.epilogue.gate_float;
  const uint8_t* const g = a.gate ? a.gate + (float_gate ? o : o / 4) * a.gate_plane : nullptr;
  const float* const scale = a.epilogue.scale + o;
  Staging staging;
  constexpr int64_t kBytes = NV * V::kLanes * 4;
  if (!a.valid && r)
    for (int64_t j = 0; j < (a.residual_float ? planes : 1); ++j)
      move_segments<false>(a, const_cast<uint8_t*>(r) + j * a.residual_plane,
                           staging.r + j * kBytes, p, NV * V::kLanes);
  if (!a.valid && g)
    for (int64_t j = 0; j < (float_gate ? planes : 1); ++j)
      move_segments<false>(a, const_cast<uint8_t*>(g) + j * a.gate_plane, staging.g + j * kBytes, p,
                           NV * V::kLanes);
  for (int v = 0; v < NV; ++v) {
    const int64_t at = p + v * V::kLanes;
    OutputView s;
    if (a.valid) {
      const int64_t packet = (a.origin + at) * 4;
      s.y = y + packet;
      s.y_plane = a.plane;
      s.r = r ? r + packet : nullptr;
      s.r_plane = a.residual_plane;
      s.g = g ? g + packet : nullptr;
      s.g_plane = a.gate_plane;
      s.bits = V::bits_at(a.valid, at);
      s.n = a.pixels - at;
      if (s.n <= 0) break;
    } else {
      const int64_t packet = v * V::kLanes * 4;
      s.y = staging.y + packet;
      s.r = r ? staging.r + packet : nullptr;
      s.g = g ? staging.g + packet : nullptr;
      s.y_plane = s.r_plane = s.g_plane = kBytes;
      s.bits = V::kAll;
      s.n = V::kLanes;
    }
    V::F f[4];
    for (int j = 0; j < 4; ++j) f[j] = V::mulf(to_float<W>(acc[j * NV + v]), V::set1f(scale[j]));
    finish(f, o, planes, s);
  }
  if (!a.valid)
    for (int64_t j = 0; j < (a.float_out ? planes : 1); ++j)
      move_segments<true>(a, y + j * a.plane, staging.y + j * kBytes, p, NV * V::kLanes);
}

// What the dense loop multiplies: 8-bit products that would not fit are widened, once for all that
// share an input or a weight.
template <Weights W>
struct Factor {
  V::I v;
  static constexpr int64_t kQuadBytes = 4;
  static TOPS_INLINE Factor input(V::I x) { return {x}; }
  static TOPS_INLINE Factor weight(const uint8_t* quad) { return {V::set1(load32(quad))}; }
  static TOPS_INLINE V::I dot(V::I acc, Factor x, Factor w) { return step_dot<W>(acc, x.v, w.v); }
};
template <>
struct Factor<Weights::kInt8> {
  V::Wide v;
  static constexpr int64_t kQuadBytes = V::kInt8QuadBytes;
  static TOPS_INLINE Factor input(V::I x) { return {V::wide_input(x)}; }
  static TOPS_INLINE Factor weight(const uint8_t* quad) { return {V::wide_weight(quad)}; }
  static TOPS_INLINE V::I dot(V::I acc, Factor x, Factor w) { return V::dot_wide(acc, x.v, w.v); }
};

// Channels 0 .. J x NV vectors held by name, not in an array: GCC keeps an array that a loop
// indexes in memory.
template <Weights W, int NV, int J>
struct Block {
  using X = Factor<W>;
  V::I v0, v1, v2;
  Block<W, NV, J - 1> rest;

  TOPS_INLINE void start(const V::I* from) {
    v0 = from[J * NV];
    if (NV > 1) v1 = from[J * NV + 1];
    if (NV > 2) v2 = from[J * NV + 2];
    rest.start(from);
  }
  TOPS_INLINE void zero() {
    v0 = v1 = v2 = V::set1(0);
    rest.zero();
  }
  TOPS_INLINE void step(const uint8_t* quads, const X& x0, const X& x1, const X& x2) {
    rest.step(quads, x0, x1, x2);
    const X w = X::weight(quads + X::kQuadBytes * J);
    v0 = X::dot(v0, x0, w);
    if (NV > 1) v1 = X::dot(v1, x1, w);
    if (NV > 2) v2 = X::dot(v2, x2, w);
  }
  TOPS_INLINE void copy(V::I* out) const {
    rest.copy(out);
    out[J * NV] = v0;
    if (NV > 1) out[J * NV + 1] = v1;
    if (NV > 2) out[J * NV + 2] = v2;
  }
  TOPS_INLINE void add_narrow(V::I* out) const {
    rest.add_narrow(out);
    out[J * NV] = V::add_narrow(out[J * NV], v0);
    if (NV > 1) out[J * NV + 1] = V::add_narrow(out[J * NV + 1], v1);
    if (NV > 2) out[J * NV + 2] = V::add_narrow(out[J * NV + 2], v2);
  }
};
template <Weights W, int NV>
struct Block<W, NV, -1> {
  using X = Factor<W>;
  TOPS_INLINE void start(const V::I*) {}
  TOPS_INLINE void zero() {}
  TOPS_INLINE void step(const uint8_t*, const X&, const X&, const X&) {}
  TOPS_INLINE void copy(V::I*) const {}
  TOPS_INLINE void add_narrow(V::I*) const {}
};

// Rows of k [k0, k1): one step of a block each.
template <Weights W, int NV, int J>
static TOPS_INLINE void dense_steps(Block<W, NV, J>& block, const ConvArgs& a, const uint8_t* x,
                                    const uint8_t* quads, int64_t k0, int64_t k1) {
  using X = Factor<W>;
  constexpr int64_t kBytes = V::kLanes * 4, kRow = X::kQuadBytes * kBlock;
  quads += k0 * kRow;
  for (int64_t k = k0; k < k1; ++k, quads += kRow) {
    const uint8_t* const in = x + a.offsets[k];
    const X x0 = X::input(V::load(in));
    block.step(quads, x0, NV > 1 ? X::input(V::load(in + kBytes)) : x0,
               NV > 2 ? X::input(V::load(in + 2 * kBytes)) : x0);
  }
}

template <Weights W, int NV>
static void dense_tile(const ConvArgs& a, const uint8_t* x, const uint8_t* panel, int64_t o,
                       int64_t p) {
  constexpr int kChannels = V::kDenseChannels;
  const EpilogueOp finish(a.epilogue, a.float_out, a.residual_float, a.halo);
  x += p * 4;
  for (int64_t h = 0; h < kBlock && o + h < a.outputs; h += kChannels) {
    const uint8_t* const quads = panel + Factor<W>::kQuadBytes * h;
    V::I out[kChannels * NV];
    for (int j = 0; j < kChannels; ++j)
      for (int v = 0; v < NV; ++v) out[j * NV + v] = first<W>(a, o + h + j);
    Block<W, NV, kChannels - 1> block;
    if constexpr (narrow<W>()) {
      for (int64_t k = 0; k < a.k; k += V::kNarrowSteps) {
        block.zero();
        dense_steps(block, a, x, quads, k, min64(k + V::kNarrowSteps, a.k));
        block.add_narrow(out);
      }
    } else {
      block.start(out);
      dense_steps(block, a, x, quads, 0, a.k);
      block.copy(out);
    }
    if (W == Weights::kFloat && a.sums) {
      for (int64_t j = 0; j < kChannels && o + h + j < a.outputs; ++j)
        for (int v = 0; v < NV; ++v)
          V::store(a.y + (o + h + j) * a.plane + (p + v * V::kLanes) * 4, out[j * NV + v]);
      continue;
    }
    for (int64_t j = 0; j < kChannels && o + h + j < a.outputs; j += 4)
      finish_tile<W, NV>(a, finish, out + j * NV, o + h + j, p);
  }
}

template <Weights W>
static void dense_block(const ConvArgs& a, const uint8_t* x, const uint8_t* panel, int64_t o,
                        int64_t p, int64_t last) {
  while (p < last) {
    const int64_t vectors = (last - p + V::kLanes - 1) / V::kLanes;
    if (V::kDenseVectors >= 3 && vectors >= 3 && vectors != 4) {
      dense_tile<W, V::kDenseVectors >= 3 ? 3 : 1>(a, x, panel, o, p);
      p += 3 * V::kLanes;
    } else if (V::kDenseVectors >= 2 && vectors >= 2) {
      dense_tile<W, V::kDenseVectors >= 2 ? 2 : 1>(a, x, panel, o, p);
      p += 2 * V::kLanes;
    } else {
      dense_tile<W, 1>(a, x, panel, o, p);
      p += V::kLanes;
    }
  }
}

// Rows [0, k) of 8 quads from the codes of one block, `stride` bytes apart; writes whole groups of
// kGroup rows.
static void expand_panel(const uint8_t* codes, int64_t k, uint8_t* to, int64_t stride) {
  for (int64_t i = 0; i < k; i += kGroup, codes += kGroup * kBlock)
    V::expand_group(codes, to + i * stride, stride);
}

static void conv_dense(const ConvArgs& a, int64_t begin, int64_t end, int64_t first_pixel,
                       int64_t last, uint8_t* scratch) {
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* panel = a.panels + b * a.panel_bytes;
    const uint8_t* x = a.x + (b / a.group_blocks) * a.group_stride;
    const int64_t o = b * kBlock;
    if (a.weights == Weights::kTernary) {
      expand_panel(panel, a.k, scratch, kBlock * 4);
      dense_block<Weights::kTernary>(a, x, scratch, o, first_pixel, last);
    } else if (a.weights == Weights::kInt8) {
      if (V::kInt8QuadBytes > 4) {
        for (int64_t k = 0; k < a.k; ++k)
          V::widen_quads(panel + k * kBlock * 4, scratch + k * kBlock * V::kInt8QuadBytes);
        panel = scratch;
      }
      dense_block<Weights::kInt8>(a, x, panel, o, first_pixel, last);
    } else {
      dense_block<Weights::kFloat>(a, x, panel, o, first_pixel, last);
    }
  }
}

// Integer sums may be taken in any order: few vectors may need more than one chain to hide the
// latency of the dot product.
template <Weights W, int NV>
constexpr int chains() {
  return NV > 2 ? 1 : V::kChains;
}

// Adds entries [e, end) to the NV sums acc.
template <Weights W, int NV>
static TOPS_INLINE void sparse_entries(const uint8_t* x, const Entry* e, const Entry* end,
                                       V::I* acc) {
  constexpr int kChains = chains<W, NV>();
  V::I sums[kChains][NV];
  for (int v = 0; v < NV; ++v) sums[0][v] = acc[v];
  for (int c = 1; c < kChains; ++c)
    for (int v = 0; v < NV; ++v) sums[c][v] = V::set1(0);
  if (kChains > 1) {
    for (; e + kChains <= end; e += kChains)
      for (int c = 0; c < kChains; ++c) {
        const uint8_t* const in = x + static_cast<int64_t>(e[c].offset) * 4;
        const V::I w = V::set1(e[c].weight);
        for (int v = 0; v < NV; ++v)
          sums[c][v] = step_dot<W>(sums[c][v], V::load(in + v * V::kLanes * 4), w);
      }
  }
  for (; e < end; ++e) {
    const uint8_t* const in = x + static_cast<int64_t>(e->offset) * 4;
    const V::I w = V::set1(e->weight);
    for (int v = 0; v < NV; ++v)
      sums[0][v] = step_dot<W>(sums[0][v], V::load(in + v * V::kLanes * 4), w);
  }
  for (int v = 0; v < NV; ++v) {
    for (int c = 1; c < kChains; ++c) sums[0][v] = V::add(sums[0][v], sums[c][v]);
    acc[v] = sums[0][v];
  }
}

// `count` bundles of G entries each: their products meet in 16 bits.
template <int NV, int G>
static TOPS_INLINE const Entry* sparse_bundles(const uint8_t* x, const Entry* e, int64_t count,
                                               V::I* acc) {
  V::I sums[NV];
  for (int v = 0; v < NV; ++v) sums[v] = acc[v];
  for (const Entry* const end = e + count * G; e < end; e += G) {
    const uint8_t* in[G];
    V::I w[G];
    for (int i = 0; i < G; ++i) {
      in[i] = x + static_cast<int64_t>(e[i].offset) * 4;
      w[i] = V::set1(e[i].weight);
    }
    for (int v = 0; v < NV; ++v) {
      V::I narrow = V::product_narrow(V::load(in[0] + v * V::kLanes * 4), w[0]);
      for (int i = 1; i < G; ++i)
        narrow = V::dot_narrow(narrow, V::load(in[i] + v * V::kLanes * 4), w[i]);
      sums[v] = V::add_narrow(sums[v], narrow);
    }
  }
  for (int v = 0; v < NV; ++v) acc[v] = sums[v];
  return e;
}

template <Weights W, int NV>
static TOPS_INLINE void sparse_channel(const ConvArgs& a, const uint8_t* x, int64_t o, V::I* out) {
  const Entry* e = a.entries + a.rows[o];
  const Entry* const end = a.entries + a.rows[o + 1];
  const V::I start = first<W>(a, o);
  if constexpr (narrow<W>()) {
    // One round for all but long filters: what it sums meets the start in registers.
    for (bool more = false; !more || e < end; more = true) {
      const Entry* const stop = end - e > V::kNarrowSteps ? e + V::kNarrowSteps : end;
      V::I sums[NV];
      for (int v = 0; v < NV; ++v) sums[v] = V::set1(0);
      sparse_entries<W, NV>(x, e, stop, sums);
      for (int v = 0; v < NV; ++v) out[v] = V::add_narrow(more ? out[v] : start, sums[v]);
      e = stop;
    }
  } else if constexpr (W == Weights::kInt8 && V::kNarrowSteps > 0) {
    const int32_t* const count = a.bundles + o * kMostBundle;
    for (int v = 0; v < NV; ++v) out[v] = start;
    e = sparse_bundles<NV, 4>(x, e, count[0], out);
    e = sparse_bundles<NV, 3>(x, e, count[1], out);
    e = sparse_bundles<NV, 2>(x, e, count[2], out);
    sparse_bundles<NV, 1>(x, e, count[3], out);
  } else {
    for (int v = 0; v < NV; ++v) out[v] = start;
    sparse_entries<W, NV>(x, e, end, out);
  }
}

// `count` bundles of G entries of two channels each, added to the sums of both.
template <int NV, int G>
static TOPS_INLINE const PairEntry* pair_bundles(const uint8_t* x, const PairEntry* e,
                                                 int64_t count, V::I* acc) {
  V::I a[NV], b[NV];
  for (int v = 0; v < NV; ++v) a[v] = acc[v], b[v] = acc[NV + v];
  for (const PairEntry* const end = e + count * G; e < end; e += G) {
    const uint8_t* in[G];
    V::I wa[G], wb[G];
    for (int i = 0; i < G; ++i) {
      in[i] = x + static_cast<int64_t>(e[i].offset) * 4;
      wa[i] = V::set1(e[i].weight[0]), wb[i] = V::set1(e[i].weight[1]);
    }
    for (int v = 0; v < NV; ++v) {
      const V::I x0 = V::load(in[0] + v * V::kLanes * 4);
      V::I sa = V::product_narrow(x0, wa[0]), sb = V::product_narrow(x0, wb[0]);
      for (int i = 1; i < G; ++i) {
        const V::I xi = V::load(in[i] + v * V::kLanes * 4);
        sa = V::dot_narrow(sa, xi, wa[i]), sb = V::dot_narrow(sb, xi, wb[i]);
      }
      a[v] = V::add_narrow(a[v], sa), b[v] = V::add_narrow(b[v], sb);
    }
  }
  for (int v = 0; v < NV; ++v) acc[v] = a[v], acc[NV + v] = b[v];
  return e;
}

template <int NV>
static void pair_tile(const ConvArgs& a, int64_t begin, int64_t end, int64_t p) {
  V::I acc[4 * NV];
  const uint8_t* const x = a.x + p * 4;
  const EpilogueOp finish(a.epilogue, a.float_out, a.residual_float, a.halo);
  for (int64_t quad = begin; quad < end; ++quad) {
    const int64_t o = quad * 4;
    for (int64_t j = 0; j < 4; ++j)
      for (int v = 0; v < NV; ++v) acc[j * NV + v] = first<Weights::kInt8>(a, o + j);
    for (int64_t j = 0; j < 4 && o + j < a.outputs; j += 2) {
      const int64_t pair = (o + j) / 2;
      const int32_t* const count = a.pair_bundles + pair * kMostPairBundle;
      const PairEntry* e = a.pairs + a.pair_rows[pair];
      e = pair_bundles<NV, 2>(x, e, count[0], acc + j * NV);
      pair_bundles<NV, 1>(x, e, count[1], acc + j * NV);
    }
    finish_tile<Weights::kInt8, NV>(a, finish, acc, o, p);
  }
}

template <int NV>
static void pair_tile_of(const ConvArgs& a, int64_t begin, int64_t end, int64_t p,
                         int64_t vectors) {
  if constexpr (NV > 1) {
    if (vectors < NV) return pair_tile_of<NV - 1>(a, begin, end, p, vectors);
  }
  pair_tile<NV>(a, begin, end, p);
}

template <Weights W, int NV>
static void sparse_tile(const ConvArgs& a, int64_t begin, int64_t end, int64_t p) {
  V::I acc[4 * NV];
  const uint8_t* const x = a.x + p * 4;
  const EpilogueOp finish(a.epilogue, a.float_out, a.residual_float, a.halo);
  for (int64_t quad = begin; quad < end; ++quad) {
    const int64_t o = quad * 4;
    for (int64_t j = 0; j < 4; ++j) {
      if (o + j < a.outputs) {
        sparse_channel<W, NV>(a, x, o + j, acc + j * NV);
      } else {
        for (int v = 0; v < NV; ++v) acc[j * NV + v] = V::set1(0);
      }
    }
    finish_tile<W, NV>(a, finish, acc, o, p);
  }
}

template <Weights W, int NV>
static TOPS_INLINE void sparse_tile_of(const ConvArgs& a, int64_t begin, int64_t end, int64_t p,
                                       int64_t vectors) {
  if (vectors == NV)
    sparse_tile<W, NV>(a, begin, end, p);
  else
    sparse_tile_of<W, NV - 1>(a, begin, end, p, vectors);
}
template <>
TOPS_INLINE void sparse_tile_of<Weights::kTernary, 0>(const ConvArgs&, int64_t, int64_t, int64_t,
                                                      int64_t) {}
template <>
TOPS_INLINE void sparse_tile_of<Weights::kInt8, 0>(const ConvArgs&, int64_t, int64_t, int64_t,
                                                   int64_t) {}

template <Weights W>
static void sparse_pixels(const ConvArgs& a, int64_t begin, int64_t end, int64_t p, int64_t last) {
  const int64_t most = a.pairs ? V::kPairVectors : V::kSparseVectors;
  while (p < last) {
    const int64_t left = (last - p + V::kLanes - 1) / V::kLanes;
    const int64_t tiles = (left + most - 1) / most;
    const int64_t vectors =
        (left + tiles - 1) / tiles;  // even tiles rather than full ones and a rest
    if (a.pairs)
      pair_tile_of<V::kPairVectors>(a, begin, end, p, vectors);
    else
      sparse_tile_of<W, V::kSparseVectors>(a, begin, end, p, vectors);
    p += vectors * V::kLanes;
  }
}

static void conv_sparse(const ConvArgs& a, int64_t begin, int64_t end, int64_t first_pixel,
                        int64_t last) {
  if (a.weights == Weights::kTernary)
    sparse_pixels<Weights::kTernary>(a, begin, end, first_pixel, last);
  else
    sparse_pixels<Weights::kInt8>(a, begin, end, first_pixel, last);
}
