// SPDX-License-Identifier: Apache-2.0
// Tiles of a convolution as an implicit GEMM: lanes are consecutive flat indices of one padded
// image, so a tap is one unaligned load at a fixed offset:
//   acc[o][pixel] += dot(x[pixel + offset(k)], w[o][k])   for every packet k = (input packet, tap)
// Shared by the dense and sparse loops: products, and the epilogue of a tile's sums.

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

// Room for the outputs of one tile where output packets do not lie as flat indices do: they go
// through here, row segment by segment.
struct Staging {
  alignas(64) uint8_t y[4 * V::kSparseVectors * V::kLanes * 4];
  alignas(64) uint8_t r[4 * V::kSparseVectors * V::kLanes * 4];
  alignas(64) uint8_t g[4 * V::kSparseVectors * V::kLanes * 4];
};

static int64_t first_segment(const ConvArgs& a, int64_t p) {
  int64_t lo = 0, hi = a.y.segment_count;
  while (lo < hi) {
    const int64_t mid = (lo + hi) / 2;
    if (a.y.segments[mid].flat + a.y.segments[mid].length <= p)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

// Copies the packets of flat indices [p, p + n) between the output and a staging buffer.
template <bool kScatter>
static void move_segments(const ConvArgs& a, uint8_t* output, uint8_t* staged, int64_t p,
                          int64_t n) {
  for (int64_t i = first_segment(a, p); i < a.y.segment_count && a.y.segments[i].flat < p + n;
       ++i) {
    const Segment& s = a.y.segments[i];
    const int64_t from = s.flat > p ? s.flat : p;
    const int64_t to = min64(s.flat + s.length, p + n);
    uint8_t* const g = output + (s.packet + from - s.flat) * 4;
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
  const uint8_t* const valid = a.y.valid;
  const int64_t packets = a.pixels - p;
  uint8_t* const y = a.y.data + (o / 4) * a.y.channel_stride + (a.y.origin + p) * 4;
  const uint8_t* const r =
      a.residual.data ? a.residual.data + (o / 4) * a.residual.channel_stride + (a.y.origin + p) * 4
                      : nullptr;
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

static TOPS_INLINE const uint8_t* operand_at(const OperandArgs& x, int64_t o) {
  return x.data ? x.data + (x.is_float ? o : o / 4) * x.channel_stride : nullptr;
}

// One vector of channels [o, o + channels), whose accumulators lie `apart` vectors from each other.
template <Weights W>
static TOPS_INLINE void finish_vector(const ConvArgs& a, const EpilogueOp& finish, const V::I* acc,
                                      int64_t apart, int64_t o, const OutputView& s) {
  V::F f[4];
  for (int j = 0; j < 4; ++j)
    f[j] = V::mulf(to_float<W>(acc[j * apart]), V::set1f(a.epilogue.scale[o + j]));
  finish(f, o, min64(4, a.outputs - o), s);
}

template <Weights W>
static TOPS_INLINE void finish_in_place(const ConvArgs& a, const EpilogueOp& finish,
                                        const V::I* acc, int64_t vectors, int64_t o, int64_t p) {
  uint8_t* const y = a.y.data + (a.y.is_float ? o : o / 4) * a.y.channel_stride;
  const uint8_t *const r = operand_at(a.residual, o), *const g = operand_at(a.gate, o);
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t at = p + v * V::kLanes, packet = (a.y.origin + at) * 4;
    if (at >= a.pixels) break;
    finish_vector<W>(a, finish, acc + v, vectors, o,
                     {y + packet, a.y.channel_stride, r ? r + packet : nullptr,
                      a.residual.channel_stride, g ? g + packet : nullptr, a.gate.channel_stride,
                      V::bits_at(a.y.valid, at), a.pixels - at});
  }
}

// Packets of an operand to where they are staged.
static void stage(const ConvArgs& a, const OperandArgs& x, int64_t o, uint8_t* staged,
                  int64_t vectors, int64_t p) {
  const uint8_t* const from = operand_at(x, o);
  const int64_t channels = x.is_float ? min64(4, a.outputs - o) : 1;
  for (int64_t j = 0; from && j < channels; ++j)
    move_segments<false>(a, const_cast<uint8_t*>(from) + j * x.channel_stride,
                         staged + j * vectors * V::kLanes * 4, p, vectors * V::kLanes);
}

template <Weights W>
static TOPS_INLINE void finish_staged(const ConvArgs& a, const EpilogueOp& finish, const V::I* acc,
                                      int64_t vectors, int64_t o, int64_t p) {
  Staging staging;
  const int64_t stride = vectors * V::kLanes * 4;
  stage(a, a.residual, o, staging.r, vectors, p);
  stage(a, a.gate, o, staging.g, vectors, p);
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t packet = v * V::kLanes * 4;
    finish_vector<W>(
        a, finish, acc + v, vectors, o,
        {staging.y + packet, stride, a.residual.data ? staging.r + packet : nullptr, stride,
         a.gate.data ? staging.g + packet : nullptr, stride, V::kAll, V::kLanes});
  }
  uint8_t* const y = a.y.data + (a.y.is_float ? o : o / 4) * a.y.channel_stride;
  for (int64_t j = 0; j < (a.y.is_float ? min64(4, a.outputs - o) : 1); ++j)
    move_segments<true>(a, y + j * a.y.channel_stride, staging.y + j * stride, p,
                        vectors * V::kLanes);
}

// Any output, residual and gate. One function for tiles of all sizes: inlined into each of them it
// would be most of what is compiled.
template <Weights W>
static TOPS_OUTLINE void finish_general(const ConvArgs& a, const EpilogueOp& finish,
                                        const V::I* acc, int64_t vectors, int64_t o, int64_t p) {
  if (a.y.valid)
    finish_in_place<W>(a, finish, acc, vectors, o, p);
  else
    finish_staged<W>(a, finish, acc, vectors, o, p);
}

// Runs the epilogue of NV vectors of channels [o, o + 4), whose accumulators lie at acc[channel *
// NV + v].
template <Weights W, int NV>
static TOPS_INLINE void finish_tile(const ConvArgs& a, const EpilogueOp& finish, const V::I* acc,
                                    int64_t o, int64_t p) {
  if constexpr (W != Weights::kFloat) {  // float sums make floats
    if (a.y.valid && !a.y.is_float && !a.residual.is_float && !a.gate.data)
      return finish_direct<W, NV>(a, finish, acc, o, p);
  }
  // A copy: the original, whose address nobody takes, stays in registers.
  const EpilogueOp own = finish;
  finish_general<W == Weights::kFloat ? W : Weights::kInt8>(a, own, acc, NV, o, p);
}
