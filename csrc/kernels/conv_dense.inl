// SPDX-License-Identifier: Apache-2.0
// Dense convolution with pixels in the lanes: kDenseChannels output channels x up to kDenseVectors
// vectors of pixels in registers, weights broadcast, k innermost. Float sums keep the order of k,
// so no split changes a result.

// Operand of the dense loop: where 8-bit products would overflow it is widened, once for all that
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
    const uint8_t* const in = x + a.dense.offsets[k];
    const X x0 = X::input(V::load(in));
    block.step(quads, x0, NV > 1 ? X::input(V::load(in + kBytes)) : x0,
               NV > 2 ? X::input(V::load(in + 2 * kBytes)) : x0);
  }
}

template <Weights W, int NV>
static void dense_tile(const ConvArgs& a, const uint8_t* x, const uint8_t* panel, int64_t o,
                       int64_t p) {
  constexpr int kChannels = V::kDenseChannels;
  const EpilogueOp finish(a);
  x += p * 4;
  for (int64_t h = 0; h < kBlock && o + h < a.outputs; h += kChannels) {
    const uint8_t* const quads = panel + Factor<W>::kQuadBytes * h;
    V::I out[kChannels * NV];
    for (int j = 0; j < kChannels; ++j)
      for (int v = 0; v < NV; ++v) out[j * NV + v] = first<W>(a, o + h + j);
    Block<W, NV, kChannels - 1> block;
    if constexpr (narrow<W>()) {
      for (int64_t k = 0; k < a.dense.k; k += V::kNarrowSteps) {
        block.zero();
        dense_steps(block, a, x, quads, k, min64(k + V::kNarrowSteps, a.dense.k));
        block.add_narrow(out);
      }
    } else {
      block.start(out);
      dense_steps(block, a, x, quads, 0, a.dense.k);
      block.copy(out);
    }
    if (a.dense.sums_only) {
      for (int64_t j = 0; j < kChannels && o + h + j < a.outputs; ++j)
        for (int v = 0; v < NV; ++v)
          V::store(a.y.data + (o + h + j) * a.y.channel_stride + (p + v * V::kLanes) * 4,
                   out[j * NV + v]);
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
    const uint8_t* panel = a.dense.panels + b * a.dense.panel_bytes;
    const uint8_t* x = a.x + (b / a.dense.group_blocks) * a.dense.group_stride;
    const int64_t o = b * kBlock;
    if (a.weights == Weights::kTernary) {
      expand_panel(panel, a.dense.k, scratch, kBlock * 4);
      dense_block<Weights::kTernary>(a, x, scratch, o, first_pixel, last);
    } else if (a.weights == Weights::kInt8) {
      if (V::kInt8QuadBytes > 4) {
        for (int64_t k = 0; k < a.dense.k; ++k)
          V::widen_quads(panel + k * kBlock * 4, scratch + k * kBlock * V::kInt8QuadBytes);
        panel = scratch;
      }
      dense_block<Weights::kInt8>(a, x, panel, o, first_pixel, last);
    } else {
      dense_block<Weights::kFloat>(a, x, panel, o, first_pixel, last);
    }
  }
}
