// SPDX-License-Identifier: Apache-2.0
// Convolution with sparse float weights. R = 1, 2 or 4 output channels share an
// entry (one input channel at one tap), so that a vector of pixels, loaded once, meets R weights:
//   acc[r][v] += w[entry][r] * x[pixels + v * kLanes + offset(entry)]
// R channels x block_vectors<R>() vectors stay in registers. With R = 4 it is the multipliers that
// bind, with R = 1 the loads.

// As many sums as the registers hold beside the inputs and one weight.
template <int R>
constexpr int block_vectors() {
  return R == 1 ? V::kSparseVectors : R == 2 ? V::kBlockVectors2 : V::kBlockVectors4;
}

// out[r * NV + v]: the sums of `count` entries.
template <int R, int NV>
static TOPS_INLINE void block_sums(const uint8_t* x, const int32_t* offsets, const float* weights,
                                   int64_t count, V::I* out) {
  V::I sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) sums[r][v] = V::set1(0);
  for (int64_t i = 0; i < count; ++i, weights += R) {
    const uint8_t* const in = x + static_cast<int64_t>(offsets[i]) * 4;
    V::I pixels[NV];
    for (int v = 0; v < NV; ++v) pixels[v] = V::load(in + v * V::kLanes * 4);
    for (int r = 0; r < R; ++r) {
      const V::I w = V::set1(load32(weights + r));
      for (int v = 0; v < NV; ++v) sums[r][v] = V::dot_float(sums[r][v], pixels[v], w);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < NV; ++v) out[r * NV + v] = sums[r][v];
}

// The weights of a block of kBlock output channels, as float32.
struct BlockPanel {
  const int64_t* row_ptr;  // [kBlock / R + 1] first entry of each R channels
  const int32_t* offsets;
  const float* weights;
};

template <int R, int NV>
static void block_tile(const ConvArgs& a, const EpilogueOp& finish, const BlockPanel& panel,
                       int64_t o, int64_t p) {
  V::I acc[kBlock * NV];
  const uint8_t* const x = a.x + p * 4;
  for (int64_t g = 0; g < kBlock / R; ++g) {
    const int64_t at = panel.row_ptr[g] - panel.row_ptr[0];
    block_sums<R, NV>(x, panel.offsets + at, panel.weights + at * R,
                      panel.row_ptr[g + 1] - panel.row_ptr[g], acc + g * R * NV);
  }
  for (int64_t i = 0; i < kBlock && o + i < a.outputs; i += 4)
    finish_general<Weights::kFloat>(a, finish, acc + i * NV, NV, o + i, p);
}

template <int R, int NV>
static TOPS_INLINE void block_tile_of(const ConvArgs& a, const EpilogueOp& finish,
                                      const BlockPanel& panel, int64_t o, int64_t p,
                                      int64_t vectors) {
  if constexpr (NV > 1) {
    if (vectors < NV) return block_tile_of<R, NV - 1>(a, finish, panel, o, p, vectors);
  }
  block_tile<R, NV>(a, finish, panel, o, p);
}

// n values, widened to float32; returns where they are.
static const float* widen_values(const ConvArgs& a, int64_t from, int64_t n, uint8_t* scratch) {
  if (a.blocks.values == Values::kFloat32)
    return reinterpret_cast<const float*>(a.blocks.data) + from;
  const uint8_t* const half = a.blocks.data + from * 2;
  const bool brain = a.blocks.values == Values::kBfloat16;
  // Whole vectors: the packed form and the scratch have room for the last one.
  for (int64_t i = 0; i < n; i += V::kLanes)
    V::store(scratch + i * 4,
             brain ? V::widen_bfloat16(half + i * 2) : V::widen_float16(half + i * 2));
  return reinterpret_cast<const float*>(scratch);
}

template <int R>
static void block_pixels(const ConvArgs& a, int64_t begin, int64_t end, int64_t first, int64_t last,
                         uint8_t* scratch) {
  constexpr int64_t kMost = block_vectors<R>();
  const EpilogueOp finish(a);
  const int64_t total = (last - first + V::kLanes - 1) / V::kLanes;
  const int64_t tiles = (total + kMost - 1) / kMost;
  for (int64_t from = 0; from < tiles; from += a.blocks.tiles) {
    const int64_t to = min64(tiles, from + a.blocks.tiles);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t* const row_ptr = a.blocks.row_ptr + b * (kBlock / R);
      const int64_t count = row_ptr[kBlock / R] - row_ptr[0];
      const BlockPanel panel{row_ptr, a.blocks.offsets + row_ptr[0],
                             widen_values(a, row_ptr[0] * R, count * R, scratch)};
      for (int64_t t = from; t < to; ++t) {  // even tiles rather than full ones and a rest
        const int64_t at = total * t / tiles;
        block_tile_of<R, block_vectors<R>()>(a, finish, panel, b * kBlock, first + at * V::kLanes,
                                             total * (t + 1) / tiles - at);
      }
    }
  }
}

static void conv_blocks(const ConvArgs& a, int64_t begin, int64_t end, int64_t first, int64_t last,
                        uint8_t* scratch) {
  if (a.blocks.channels == 4)
    block_pixels<4>(a, begin, end, first, last, scratch);
  else if (a.blocks.channels == 2)
    block_pixels<2>(a, begin, end, first, last, scratch);
  else
    block_pixels<1>(a, begin, end, first, last, scratch);
}
