// SPDX-License-Identifier: Apache-2.0
// Convolution on a flat padded grid. Lanes are consecutive pixels, so a tap is one unaligned load
// at a fixed offset:
//   acc[o][pixel] += dot(x[pixel + offset(k)], w[o][k])   for every cell k = (input cell, tap)
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

// Room for the outputs of one tile whose output grid is not the flat domain: cells go through here,
// row segment by segment.
struct Staging {
  alignas(64) uint8_t y[4 * V::kSparseVectors * V::kLanes * 4];
  alignas(64) uint8_t r[4 * V::kSparseVectors * V::kLanes * 4];
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

// Copies the cells of flat indices [p, p + n) between the output grid and a staging buffer.
template <bool kScatter>
static void move_segments(const ConvArgs& a, uint8_t* grid, uint8_t* staged, int64_t p, int64_t n) {
  for (int64_t i = first_segment(a, p); i < a.segment_count && a.segments[i].flat < p + n; ++i) {
    const Segment& s = a.segments[i];
    const int64_t from = s.flat > p ? s.flat : p;
    const int64_t to = min64(s.flat + s.length, p + n);
    uint8_t* const g = grid + (s.cell + from - s.flat) * 4;
    uint8_t* const t = staged + (from - p) * 4;
    if (kScatter)
      __builtin_memcpy(g, t, static_cast<size_t>(to - from) * 4);
    else
      __builtin_memcpy(t, g, static_cast<size_t>(to - from) * 4);
  }
}

// Runs the epilogue of NV vectors of channels [o, o + 4), whose accumulators lie at acc[channel *
// NV + v].
template <Weights W, int NV>
static TOPS_INLINE void finish_tile(const ConvArgs& a, const Finisher& finish, const V::I* acc,
                                    int64_t o, int64_t p) {
  const int64_t planes = min64(4, a.outputs - o);
  const int64_t out_plane = a.float_out ? o : o / 4, res_plane = a.residual_float ? o : o / 4;
  uint8_t* const y = a.y + out_plane * a.plane;
  const uint8_t* const r = a.residual ? a.residual + res_plane * a.plane : nullptr;
  const float* const scale = a.epilogue.scale + o;
  Staging staging;
  constexpr int64_t kBytes = NV * V::kLanes * 4;
  if (!a.valid && r)
    for (int64_t j = 0; j < (a.residual_float ? planes : 1); ++j)
      move_segments<false>(a, const_cast<uint8_t*>(r) + j * a.plane, staging.r + j * kBytes, p,
                           NV * V::kLanes);
  for (int v = 0; v < NV; ++v) {
    const int64_t at = p + v * V::kLanes;
    Sink s;
    if (a.valid) {
      const int64_t cell = (a.origin + at) * 4;
      s = {y + cell,     a.plane, r ? r + cell : nullptr, a.plane, V::bits_at(a.valid, at),
           a.pixels - at};
      if (s.n <= 0) break;
    } else {
      s = {staging.y + v * V::kLanes * 4,
           kBytes,
           r ? staging.r + v * V::kLanes * 4 : nullptr,
           kBytes,
           V::kAll,
           V::kLanes};
    }
    V::F f[4];
    for (int j = 0; j < 4; ++j) f[j] = V::mulf(to_float<W>(acc[j * NV + v]), V::set1f(scale[j]));
    finish(f, o, planes, s);
  }
  if (!a.valid)
    for (int64_t j = 0; j < (a.float_out ? planes : 1); ++j)
      move_segments<true>(a, y + j * a.plane, staging.y + j * kBytes, p, NV * V::kLanes);
}

// 8 channels x NV vectors held by name, not in an array: GCC keeps an array that a loop indexes in
// memory.
template <Weights W, int NV, int J>
struct Block {
  V::I v0, v1, v2;
  Block<W, NV, J - 1> rest;

  TOPS_INLINE void start(const ConvArgs& a, int64_t o) {
    v0 = v1 = v2 = first<W>(a, o + J);
    rest.start(a, o);
  }
  TOPS_INLINE void step(const uint8_t* panel, V::I x0, V::I x1, V::I x2) {
    rest.step(panel, x0, x1, x2);
    const V::I w = V::set1(load32(panel + 4 * J));
    v0 = dot<W>(v0, x0, w);
    if (NV > 1) v1 = dot<W>(v1, x1, w);
    if (NV > 2) v2 = dot<W>(v2, x2, w);
  }
  TOPS_INLINE void copy(V::I* out) const {
    out[J * NV] = v0;
    if (NV > 1) out[J * NV + 1] = v1;
    if (NV > 2) out[J * NV + 2] = v2;
    rest.copy(out);
  }
};
template <Weights W, int NV>
struct Block<W, NV, -1> {
  TOPS_INLINE void start(const ConvArgs&, int64_t) {}
  TOPS_INLINE void step(const uint8_t*, V::I, V::I, V::I) {}
  TOPS_INLINE void copy(V::I*) const {}
};

template <Weights W, int NV>
static void dense_tile(const ConvArgs& a, const uint8_t* x, const uint8_t* panel, int64_t o,
                       int64_t p) {
  constexpr int64_t kBytes = V::kLanes * 4;
  Block<W, NV, 7> block;
  block.start(a, o);
  x += p * 4;
  for (int64_t k = 0; k < a.k; ++k, panel += 32) {
    const uint8_t* const in = x + a.offsets[k];
    const V::I x0 = V::load(in);
    block.step(panel, x0, NV > 1 ? V::load(in + kBytes) : x0,
               NV > 2 ? V::load(in + 2 * kBytes) : x0);
  }
  V::I out[8 * NV];
  block.copy(out);
  const Finisher finish(a.epilogue, a.float_out, a.residual_float, a.halo);
  finish_tile<W, NV>(a, finish, out, o, p);
  if (o + 4 < a.outputs) finish_tile<W, NV>(a, finish, out + 4 * NV, o + 4, p);
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
      dense_block<Weights::kInt8>(a, x, panel, o, first_pixel, last);
    } else {
      dense_block<Weights::kFloat>(a, x, panel, o, first_pixel, last);
    }
  }
}

// Integer sums may be taken in any order: few vectors need more than one chain to hide the latency
// of the dot product.
template <Weights W, int NV>
constexpr int chains() {
  return W == Weights::kFloat || NV > 2 ? 1 : 4;
}

template <Weights W, int NV>
static TOPS_INLINE void sparse_channel(const ConvArgs& a, const uint8_t* x, int64_t o, V::I* out) {
  constexpr int kChains = chains<W, NV>();
  V::I acc[kChains][NV];
  for (int v = 0; v < NV; ++v) acc[0][v] = first<W>(a, o);
  for (int c = 1; c < kChains; ++c)
    for (int v = 0; v < NV; ++v) acc[c][v] = V::set1(0);
  const Entry* e = a.entries + a.rows[o];
  const Entry* const end = a.entries + a.rows[o + 1];
  if (kChains > 1) {
    for (; e + kChains <= end; e += kChains)
      for (int c = 0; c < kChains; ++c) {
        const uint8_t* const in = x + static_cast<int64_t>(e[c].offset) * 4;
        const V::I w = V::set1(e[c].weight);
        for (int v = 0; v < NV; ++v)
          acc[c][v] = dot<W>(acc[c][v], V::load(in + v * V::kLanes * 4), w);
      }
  }
  for (; e < end; ++e) {
    const uint8_t* const in = x + static_cast<int64_t>(e->offset) * 4;
    const V::I w = V::set1(e->weight);
    for (int v = 0; v < NV; ++v) acc[0][v] = dot<W>(acc[0][v], V::load(in + v * V::kLanes * 4), w);
  }
  for (int v = 0; v < NV; ++v) {
    for (int c = 1; c < kChains; ++c) acc[0][v] = V::add(acc[0][v], acc[c][v]);
    out[v] = acc[0][v];
  }
}

template <Weights W, int NV>
static void sparse_tile(const ConvArgs& a, int64_t begin, int64_t end, int64_t p) {
  V::I acc[4 * NV];
  const uint8_t* const x = a.x + p * 4;
  const Finisher finish(a.epilogue, a.float_out, a.residual_float, a.halo);
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
template <>
TOPS_INLINE void sparse_tile_of<Weights::kFloat, 0>(const ConvArgs&, int64_t, int64_t, int64_t,
                                                    int64_t) {}

template <Weights W>
static void sparse_pixels(const ConvArgs& a, int64_t begin, int64_t end, int64_t p, int64_t last) {
  while (p < last) {
    const int64_t left = (last - p + V::kLanes - 1) / V::kLanes;
    const int64_t tiles = (left + V::kSparseVectors - 1) / V::kSparseVectors;
    const int64_t vectors =
        (left + tiles - 1) / tiles;  // even tiles rather than full ones and a rest
    sparse_tile_of<W, V::kSparseVectors>(a, begin, end, p, vectors);
    p += vectors * V::kLanes;
  }
}

static void conv_sparse(const ConvArgs& a, int64_t begin, int64_t end, int64_t first_pixel,
                        int64_t last) {
  if (a.weights == Weights::kTernary)
    sparse_pixels<Weights::kTernary>(a, begin, end, first_pixel, last);
  else if (a.weights == Weights::kInt8)
    sparse_pixels<Weights::kInt8>(a, begin, end, first_pixel, last);
  else
    sparse_pixels<Weights::kFloat>(a, begin, end, first_pixel, last);
}
