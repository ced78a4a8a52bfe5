// SPDX-License-Identifier: Apache-2.0
// Convolution of each channel with a filter of its own. A packet holds four channels, so four taps
// of one pixel are transposed in registers: a channel's four taps become a quad, which meets its
// four weights in one product.
//   group of taps t0 .. t3:  acc[pixel][channel] += dot((x[t0], .., x[t3])[channel], w[channel])
// Vectors hold pixel j of every four, four channels each; weights/depthwise_taps.h arranges the
// taps.

struct PixelSums {
  V::I v[4];
};

static TOPS_INLINE PixelSums depthwise_sums(const ConvArgs& a, int64_t packet, const uint8_t* x) {
  const V::I start = V::load_four(a.epilogue.start + 4 * packet);
  PixelSums s = {{start, start, start, start}};
  const TapGroup* const end = a.depthwise.groups + a.depthwise.row_ptr[packet + 1];
  for (const TapGroup* g = a.depthwise.groups + a.depthwise.row_ptr[packet]; g < end; ++g) {
    V::I quads[4];
    V::transpose_taps(V::load(x + static_cast<int64_t>(g->offset[0]) * 4),
                      V::load(x + static_cast<int64_t>(g->offset[1]) * 4),
                      V::load(x + static_cast<int64_t>(g->offset[2]) * 4),
                      V::load(x + static_cast<int64_t>(g->offset[3]) * 4), quads);
    const V::I w = V::load_four(g->weight);
    for (int j = 0; j < 4; ++j) s.v[j] = V::add_narrow(s.v[j], V::product_narrow(quads[j], w));
  }
  return s;
}

// One vector of packets: the same steps as finish_direct, channels in the lanes.
static TOPS_INLINE V::I depthwise_packets(const EpilogueOp& f, const PixelSums& s, int64_t packet,
                                          const Epilogue& e, const uint8_t* residual) {
  const V::F scale = V::as_f(V::load_four(e.scale + 4 * packet)),
             bias = V::as_f(V::load_four(e.bias + 4 * packet)),
             slope = f.slope ? V::as_f(V::load_four(f.slope + 4 * packet)) : scale;
  V::I q[4];
  const V::I r = residual ? V::load(residual) : V::set1(0);
  for (int j = 0; j < 4; ++j) {
    V::F y = V::addf(V::mulf(V::to_f(s.v[j]), scale), bias);
    if (residual) y = V::addf(y, f.residual(V::pixel_of(r, j)));
    if (f.slope) y = sloped(y, slope);
    y = V::mulf(y, f.inv);
    q[j] = V::round(f.capped ? V::minf(f.cap, y) : y);
  }
  return f.codes(V::pack_pixels(q[0], q[1], q[2], q[3], f.zero_point16));
}

// One packet of all pixels [first, last): floats, or what floats or a gate go into, by the epilogue
// of other convolutions.
static void depthwise_general(const ConvArgs& a, const EpilogueOp& finish, int64_t packet,
                              int64_t first, int64_t last) {
  constexpr int64_t kTile = V::kSparseVectors * V::kLanes;
  for (int64_t tile = first; tile < last; tile += kTile) {
    const int64_t vectors = (min64(kTile, last - tile) + V::kLanes - 1) / V::kLanes;
    V::I acc[4 * V::kSparseVectors];
    for (int64_t v = 0; v < vectors; ++v) {
      PixelSums s = depthwise_sums(a, packet, a.x + (tile + v * V::kLanes) * 4);
      V::transpose_channels(s.v);
      for (int64_t j = 0; j < 4; ++j) acc[j * vectors + v] = s.v[j];
    }
    finish_general<Weights::kInt8>(a, finish, acc, vectors, 4 * packet, tile);
  }
}

// Packets [begin, end) of all pixels [first, last); first is a multiple of lanes. u8 input.
static void conv_depthwise(const ConvArgs& a, int64_t begin, int64_t end, int64_t first,
                           int64_t last) {
  constexpr int64_t kTile = V::kSparseVectors * V::kLanes;
  const EpilogueOp finish(a);
  const bool plain = !a.y.is_float && !a.residual.is_float && !a.gate.data;
  for (int64_t packet = begin; packet < end; ++packet) {
    if (!plain) {
      depthwise_general(a, finish, packet, first, last);
      continue;
    }
    uint8_t* const y = a.y.data + packet * a.y.channel_stride;
    const uint8_t* const r =
        a.residual.data ? a.residual.data + packet * a.residual.channel_stride : nullptr;
    Staging staging;
    for (int64_t tile = first; tile < last; tile += kTile) {
      const int64_t n = min64(kTile, last - tile);
      if (!a.y.valid && r) move_segments<false>(a, const_cast<uint8_t*>(r), staging.r, tile, n);
      for (int64_t i = 0; i < n; i += V::kLanes) {
        const int64_t p = tile + i, at = (a.y.origin + p) * 4;
        const PixelSums s = depthwise_sums(a, packet, a.x + p * 4);
        if (!a.y.valid) {
          V::store(staging.y + i * 4, depthwise_packets(finish, s, packet, a.epilogue,
                                                        r ? staging.r + i * 4 : nullptr));
          continue;
        }
        V::I q = depthwise_packets(finish, s, packet, a.epilogue, r ? r + at : nullptr);
        const uint32_t bits = V::bits_at(a.y.valid, p);
        if (bits != V::kAll) q = V::select(bits, q, finish.outside);
        V::store_n(y + at, q, min64(V::kLanes, a.pixels - p));
      }
      if (!a.y.valid) move_segments<true>(a, y, staging.y, tile, n);
    }
  }
}
