// SPDX-License-Identifier: Apache-2.0
// Sparse convolution of integers with pixels in the lanes: one output channel (or two that share
// their loads) x up to kSparseVectors vectors of pixels in registers; k runs over the nonzero quads
// only. Four channels, then one epilogue.

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

// `count` overflow groups of G entries each: their products meet in 16 bits.
template <int NV, int G>
static TOPS_INLINE const Entry* sparse_groups(const uint8_t* x, const Entry* e, int64_t count,
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
  const Entry* e = a.sparse.entries + a.sparse.row_ptr[o];
  const Entry* const end = a.sparse.entries + a.sparse.row_ptr[o + 1];
  const V::I start = first<W>(a, o);
  if constexpr (narrow<W>()) {
    // One round for all but long filters: its sums are added to the start in registers.
    for (bool more = false; !more || e < end; more = true) {
      const Entry* const stop = end - e > V::kNarrowSteps ? e + V::kNarrowSteps : end;
      V::I sums[NV];
      for (int v = 0; v < NV; ++v) sums[v] = V::set1(0);
      sparse_entries<W, NV>(x, e, stop, sums);
      for (int v = 0; v < NV; ++v) out[v] = V::add_narrow(more ? out[v] : start, sums[v]);
      e = stop;
    }
  } else if constexpr (W == Weights::kInt8 && V::kNarrowSteps > 0) {
    const int32_t* const count = a.sparse.overflow_groups + o * kOverflowGroup;
    for (int v = 0; v < NV; ++v) out[v] = start;
    e = sparse_groups<NV, 4>(x, e, count[0], out);
    e = sparse_groups<NV, 3>(x, e, count[1], out);
    e = sparse_groups<NV, 2>(x, e, count[2], out);
    sparse_groups<NV, 1>(x, e, count[3], out);
  } else {
    for (int v = 0; v < NV; ++v) out[v] = start;
    sparse_entries<W, NV>(x, e, end, out);
  }
}

// `count` overflow groups of G entries of two channels each, added to the sums of both.
template <int NV, int G>
static TOPS_INLINE const PairEntry* pair_groups(const uint8_t* x, const PairEntry* e, int64_t count,
                                                V::I* acc) {
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
  const EpilogueOp finish(a);
  for (int64_t quad = begin; quad < end; ++quad) {
    const int64_t o = quad * 4;
    for (int64_t j = 0; j < 4; ++j)
      for (int v = 0; v < NV; ++v) acc[j * NV + v] = first<Weights::kInt8>(a, o + j);
    for (int64_t j = 0; j < 4 && o + j < a.outputs; j += 2) {
      const int64_t pair = (o + j) / 2;
      const int32_t* const count = a.pairs.overflow_groups + pair * kPairOverflowGroup;
      const PairEntry* e = a.pairs.entries + a.pairs.row_ptr[pair];
      e = pair_groups<NV, 2>(x, e, count[0], acc + j * NV);
      pair_groups<NV, 1>(x, e, count[1], acc + j * NV);
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
  const EpilogueOp finish(a);
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
  const int64_t most = a.pairs.entries ? V::kPairVectors : V::kSparseVectors;
  while (p < last) {
    const int64_t left = (last - p + V::kLanes - 1) / V::kLanes;
    const int64_t tiles = (left + most - 1) / most;
    const int64_t vectors =
        (left + tiles - 1) / tiles;  // even tiles rather than full ones and a rest
    if (a.pairs.entries)
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
