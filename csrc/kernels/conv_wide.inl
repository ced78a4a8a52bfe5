// SPDX-License-Identifier: Apache-2.0
// Dense convolution with channels in the lanes: 2 vectors of output channels x up to kWidePixels
// pixels of one row in registers, weights as vectors, activations broadcast. No lane is spent on a
// halo or on the rest of a short row, whatever the image's width; one product needs a wide block of
// channels (2 * kLanes), u8 output, integer weights.

constexpr int64_t kWide = 2 * V::kLanes;

// Weight chunk that fits the first-level cache beside the input: [kChunk][kWide] quads.
constexpr int64_t kChunk = 24 * 1024 / (kWide * 4);
// With more pixels than this, keeping the sums between chunks costs more than reading a long panel
// from the second level.
constexpr int64_t kChunkPixels = 256;

// Packets [k0, k1) of the packed blocks of 8 channels that make up wide block b, as rows of kWide
// quads. k0 is a multiple of kGroup.
static void wide_panel(const ConvArgs& a, int64_t b, int64_t k0, int64_t k1, uint8_t* scratch) {
  const int64_t blocks = (a.outputs + kBlock - 1) / kBlock;
  for (int64_t i = 0; i < kWide / kBlock; ++i) {
    const int64_t block = b * (kWide / kBlock) + i;
    const uint8_t* const from = a.dense.panels + block * a.dense.panel_bytes;
    uint8_t* const to = scratch + i * kBlock * 4;
    if (block >= blocks) {
      for (int64_t k = 0; k < k1 - k0; ++k) __builtin_memset(to + k * kWide * 4, 0, kBlock * 4);
    } else if (a.weights == Weights::kInt8) {
      for (int64_t k = 0; k < k1 - k0; ++k)
        __builtin_memcpy(to + k * kWide * 4, from + (k0 + k) * kBlock * 4, kBlock * 4);
    } else {
      expand_panel(from + k0 * kBlock, k1 - k0, to, kWide * 4);
    }
  }
}

// Up to kWidePixels pixels: two runs of the same row or of two rows. The first n / 2 begin at x,
// the rest at x2.
struct WideTile {
  const uint8_t *x, *x2;
  int64_t packet, packet2, n;
};

// Pixels P - 1 .. 0 of a tile whose first kHalf lie in the first run; by name for the same reason
// as Block.
template <Weights W, int P, int kHalf>
struct Pixels {
  V::I a, b;
  Pixels<W, P - 1, kHalf> rest;

  TOPS_INLINE void start(V::I a0, V::I b0) {
    rest.start(a0, b0);
    a = a0, b = b0;
  }
  TOPS_INLINE void load(const V::I* from) {
    rest.load(from);
    a = from[2 * (P - 1)], b = from[2 * (P - 1) + 1];
  }
  TOPS_INLINE void step(const uint8_t* in, const uint8_t* in2, V::I wa, V::I wb) {
    rest.step(in, in2, wa, wb);
    const V::I x = V::set1(load32(P - 1 < kHalf ? in + 4 * (P - 1) : in2 + 4 * (P - 1 - kHalf)));
    a = dot<W>(a, x, wa);
    b = dot<W>(b, x, wb);
  }
  TOPS_INLINE void copy(V::I* out) const {
    rest.copy(out);
    out[2 * (P - 1)] = a;
    out[2 * (P - 1) + 1] = b;
  }
};
template <Weights W, int kHalf>
struct Pixels<W, 0, kHalf> {
  TOPS_INLINE void start(V::I, V::I) {}
  TOPS_INLINE void load(const V::I*) {}
  TOPS_INLINE void step(const uint8_t*, const uint8_t*, V::I, V::I) {}
  TOPS_INLINE void copy(V::I*) const {}
};

// The epilogue of four pixels (n of them real) and one vector of channels [o, o + kLanes); acc
// holds pixel j at [2 j].
static TOPS_INLINE void finish_pixels(const ConvArgs& a, const EpilogueOp& f, const V::I* acc,
                                      int64_t o, int64_t packet, int64_t n) {
  const int64_t planes = min64(V::kLanes / 4, (a.outputs - o + 3) / 4);
  const bool whole = n == 4 && planes == V::kLanes / 4;
  const V::F scale = V::as_f(V::load(a.epilogue.scale + o)),
             bias = V::as_f(V::load(a.epilogue.bias + o)),
             slope = f.slope ? V::as_f(V::load(f.slope + o)) : scale;
  alignas(64) uint8_t staged[V::kLanes * 4];
  V::I residual = V::set1(0);
  if (a.residual.data) {
    const uint8_t* const r = a.residual.data + (o / 4) * a.residual.channel_stride + packet * 4;
    if (!whole) {
      V::store(staged, residual);
      for (int64_t l = 0; l < planes; ++l)
        __builtin_memcpy(staged + l * 16, r + l * a.residual.channel_stride,
                         static_cast<size_t>(n) * 4);
    }
    residual = whole ? V::load_lanes(r, a.residual.channel_stride) : V::load(staged);
  }
  V::I q[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    V::F y = V::addf(V::mulf(V::to_f(acc[2 * (j < n ? j : 0)]), scale), bias);
    if (a.residual.data) y = V::addf(y, f.residual(V::pixel_of(residual, j)));
    if (f.slope) y = sloped(y, slope);
    q[j] = V::round(V::minf(f.cap, V::mulf(y, f.inv)));
  }
  const V::I packets = f.codes(V::pack_pixels(q[0], q[1], q[2], q[3], f.zero_point16));
  uint8_t* const y = a.y.data + (o / 4) * a.y.channel_stride + packet * 4;
  if (whole) {
    V::store_lanes(y, a.y.channel_stride, packets);
    return;
  }
  V::store(staged, packets);
  for (int64_t l = 0; l < planes; ++l)
    __builtin_memcpy(y + l * a.y.channel_stride, staged + l * 16, static_cast<size_t>(n) * 4);
}

// The part of one wide block's work that one panel serves: packets [k0, k1) of all its products.
struct WideChunk {
  const uint8_t* panel;
  int64_t o, k0, k1;
};

// The epilogue of a run of n pixels; compiled once for tiles of all sizes.
static TOPS_OUTLINE void finish_run(const ConvArgs& a, const V::I* acc, int64_t o, int64_t packet,
                                    int64_t n) {
  const EpilogueOp f(a);
  for (int64_t j = 0; j < n; j += 4) {
    finish_pixels(a, f, acc + 2 * j, o, packet + j, min64(4, n - j));
    if (o + V::kLanes < a.outputs)
      finish_pixels(a, f, acc + 2 * j + 1, o + V::kLanes, packet + j, min64(4, n - j));
  }
}

// kept: where the tile's sums wait between chunks.
template <Weights W, int P>
static void wide_tile(const ConvArgs& a, const WideChunk& c, const WideTile& t, uint8_t* kept) {
  V::I acc[2 * P];
  Pixels<W, P, P / 2> pixels;
  if (c.k0 == 0) {
    pixels.start(V::load(a.epilogue.start + c.o), V::load(a.epilogue.start + c.o + V::kLanes));
  } else {
    __builtin_memcpy(acc, kept, sizeof(acc));
    pixels.load(acc);
  }
  const uint8_t* panel = c.panel;
  for (int64_t k = c.k0; k < c.k1; ++k, panel += kWide * 4)
    pixels.step(t.x + a.dense.offsets[k], t.x2 + a.dense.offsets[k], V::load(panel),
                V::load(panel + V::kLanes * 4));
  pixels.copy(acc);
  if (c.k1 < a.dense.k) {
    __builtin_memcpy(kept, acc, sizeof(acc));
    return;
  }
  if (t.packet2 == t.packet + P / 2) {
    finish_run(a, acc, c.o, t.packet, P);
  } else {
    finish_run(a, acc, c.o, t.packet, P / 2);
    finish_run(a, acc + 2 * (P / 2), c.o, t.packet2, P - P / 2);
  }
}

template <Weights W, int P>
static TOPS_INLINE void wide_tile_of(const ConvArgs& a, const WideChunk& c, const WideTile& t,
                                     uint8_t* kept) {
  if constexpr (P > 1) {
    if (t.n != P) return wide_tile_of<W, P - 1>(a, c, t, kept);
  }
  wide_tile<W, P>(a, c, t, kept);
}

template <Weights W>
static void wide_rows(const ConvArgs& a, const WideChunk& c, int64_t first_row, int64_t last_row,
                      uint8_t* kept) {
  constexpr int64_t kMost = V::kWidePixels;
  for (int64_t i = first_row; i < last_row; ++i) {
    const Segment& s = a.y.segments[i];
    if (2 * s.length <= kMost && i + 1 < last_row && a.y.segments[i + 1].length == s.length) {
      const Segment& next = a.y.segments[++i];  // two short rows make one tile
      wide_tile_of<W, V::kWidePixels>(
          a, c, {a.x + s.flat * 4, a.x + next.flat * 4, s.packet, next.packet, 2 * s.length}, kept);
      kept += kMost * kWide * 4;
      continue;
    }
    const int64_t tiles = (s.length + kMost - 1) / kMost;
    for (int64_t t = 0; t < tiles; ++t) {  // even tiles rather than full ones and a rest
      const int64_t from = s.length * t / tiles, n = s.length * (t + 1) / tiles - from;
      const uint8_t* const x = a.x + (s.flat + from) * 4;
      wide_tile_of<W, V::kWidePixels>(
          a, c, {x, x + n / 2 * 4, s.packet + from, s.packet + from + n / 2, n}, kept);
      kept += kMost * kWide * 4;
    }
  }
}

// Wide blocks [begin, end), row segments [first, last). scratch: wide_scratch bytes.
static void conv_wide(const ConvArgs& a, int64_t begin, int64_t end, int64_t first_row,
                      int64_t last_row, uint8_t* scratch) {
  int64_t pixels = 0;
  for (int64_t i = first_row; i < last_row; ++i) pixels += a.y.segments[i].length;
  const int64_t chunk = pixels <= kChunkPixels && a.dense.k > kChunk ? kChunk : a.dense.k;
  for (int64_t b = begin; b < end; ++b)
    for (int64_t k0 = 0; k0 < a.dense.k; k0 += chunk) {
      const WideChunk c{scratch, b * kWide, k0, min64(k0 + chunk, a.dense.k)};
      uint8_t* const kept = scratch + (chunk + kGroup) * kWide * 4;
      wide_panel(a, b, c.k0, c.k1, scratch);
      if (a.weights == Weights::kTernary)
        wide_rows<Weights::kTernary>(a, c, first_row, last_row, kept);
      else
        wide_rows<Weights::kInt8>(a, c, first_row, last_row, kept);
    }
}

static int64_t wide_scratch(int64_t k) {
  // Each row is at least one tile, and a tile keeps its full size: at most one tile a pixel.
  return (k + kGroup) * kWide * 4 + kChunkPixels * V::kWidePixels * kWide * 4;
}
