// SPDX-License-Identifier: Apache-2.0
// From accumulators to output cells: the one place where the integer semantics of docs/architecture.md are written.

// The same vector of pixels in up to four planes: u8 cells use the first only, float ones a plane a channel.
struct Sink {
  uint8_t* y;
  int64_t y_plane;
  const uint8_t* r;  // residual, or null
  int64_t r_plane;
  uint32_t bits;     // which pixels are inside the image
  int64_t n;         // how many cells may be written
};

static TOPS_INLINE void put(const Sink& s, uint8_t* p, V::I v, V::I halo) {
  if (s.bits != V::kAll) v = V::select(s.bits, v, halo);
  if (s.n >= V::kLanes) V::store(p, v);
  else V::store_n(p, v, s.n);
}

// y: four channels as float32, scaled; o: the first of them, a multiple of 4; planes: how many exist.
static TOPS_INLINE void finish(const Epilogue& e, V::F y[4], int64_t o, int64_t planes, bool float_out, bool float_residual,
                               uint32_t halo, const Sink& s) {
  for (int j = 0; j < 4; ++j) y[j] = V::addf(y[j], V::set1f(e.bias[o + j]));
  if (s.r) {
    if (float_residual) {
      for (int j = 0; j < 4 && j < planes; ++j) y[j] = V::addf(y[j], V::as_f(V::load(s.r + j * s.r_plane)));
    } else {
      const V::I r = V::load(s.r), low = V::set1(0xff), zp = V::set1(e.res_zero_point);
      const V::F scale = V::set1f(e.res_scale);
      y[0] = V::addf(y[0], V::mulf(V::to_f(V::sub(V::and_(r, low), zp)), scale));
      y[1] = V::addf(y[1], V::mulf(V::to_f(V::sub(V::and_(V::shr<8>(r), low), zp)), scale));
      y[2] = V::addf(y[2], V::mulf(V::to_f(V::sub(V::and_(V::shr<16>(r), low), zp)), scale));
      y[3] = V::addf(y[3], V::mulf(V::to_f(V::sub(V::shr<24>(r), zp)), scale));
    }
  }
  const V::I outside = V::set1(static_cast<int32_t>(halo));
  if (float_out) {
    const V::F lo = V::set1f(e.lo), hi = V::set1f(e.hi);
    for (int j = 0; j < 4 && j < planes; ++j)
      put(s, s.y + j * s.y_plane, V::as_i(V::minf(hi, V::maxf(lo, y[j]))), outside);
    return;
  }
  // 2**30 leaves room for the conversion; below, cvtps2dq's INT_MIN already saturates to the right code.
  const V::F inv = V::set1f(e.inv), cap = V::set1f(1073741824.0f);
  V::I q[4];
  for (int j = 0; j < 4; ++j) q[j] = V::round(V::minf(cap, V::mulf(y[j], inv)));
  V::I cells = V::pack(q[0], q[1], q[2], q[3], V::set1(static_cast<int32_t>(static_cast<uint32_t>(e.zero_point) * 0x10001u)));
  cells = V::max_u8(cells, V::set1(static_cast<int32_t>(e.qlo * 0x01010101u)));
  cells = V::min_u8(cells, V::set1(static_cast<int32_t>(e.qhi * 0x01010101u)));
  put(s, s.y, cells, outside);
}
