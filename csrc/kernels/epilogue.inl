// SPDX-License-Identifier: Apache-2.0
// From accumulators to output packets: the one place where the integer semantics of
// docs/architecture.md are written.

// Destination of a vector of pixels: one packet of four u8 channels, or up to four float channels
// a stride apart.
struct OutputView {
  uint8_t* y;
  int64_t y_stride;
  const uint8_t* r;  // residual, or null
  int64_t r_stride;
  const uint8_t* g;  // gate, or null
  int64_t g_stride;
  uint32_t bits;  // which pixels are inside the image
  int64_t n;      // how many packets may be written
};

static TOPS_INLINE void store_masked(const OutputView& s, uint8_t* p, V::I v, V::I halo) {
  if (s.bits != V::kAll) v = V::select(s.bits, v, halo);
  store_some(p, v, s.n);
}

// PReLU.
static TOPS_INLINE V::F sloped(V::F x, V::F slope) {
  const V::F zero = V::set1f(0.0f);
  return V::addf(V::maxf(zero, x), V::mulf(slope, V::minf(zero, x)));
}

// The epilogue's constants as vectors. Made once a tile: stores through uint8_t* may alias the
// arguments, so the compiler would otherwise load and broadcast them again for every vector.
struct EpilogueOp {
  V::F inv, cap, lo, hi, res_scale, gate_scale;
  V::I zero_point16, qlo, qhi, outside, res_zero_point, gate_zero_point, low;
  const float *bias, *slope;
  bool float_out, float_residual, float_gate, capped, clamped;

  TOPS_INLINE explicit EpilogueOp(const ConvArgs& a)
      : EpilogueOp(a.epilogue, a.y.is_float, a.residual.is_float, a.gate.is_float, a.y.halo) {}

  TOPS_INLINE EpilogueOp(const Epilogue& e, bool float_output, bool float_res, bool gate_float,
                         uint32_t halo)
      : inv(V::set1f(e.inv)),
        cap(V::set1f(1073741824.0f)),  // leaves room for the conversion; below, cvtps2dq's INT_MIN
                                       // saturates to the right code
        lo(V::set1f(e.lo)),
        hi(V::set1f(e.hi)),
        res_scale(V::set1f(e.res_scale)),
        gate_scale(V::set1f(e.gate_scale)),
        zero_point16(V::set1(static_cast<int32_t>(static_cast<uint32_t>(e.zero_point) * 0x10001u))),
        qlo(V::set1(static_cast<int32_t>(e.qlo * 0x01010101u))),
        qhi(V::set1(static_cast<int32_t>(e.qhi * 0x01010101u))),
        outside(V::set1(static_cast<int32_t>(halo))),
        res_zero_point(V::set1(e.res_zero_point)),
        gate_zero_point(V::set1(e.gate_zero_point)),
        low(V::set1(0xff)),
        bias(e.bias),
        slope(e.slope),
        float_out(float_output),
        float_residual(float_res),
        float_gate(gate_float),
        capped(e.capped),
        clamped(e.qlo > 0 || e.qhi < 255) {}

  TOPS_INLINE V::F residual(V::I code) const {
    return V::mulf(V::to_f(V::sub(code, res_zero_point)), res_scale);
  }

  TOPS_INLINE V::F gate(V::I code) const {
    return V::mulf(V::to_f(V::sub(code, gate_zero_point)), gate_scale);
  }

  // The gate's values, each times the sigmoid of a sum.
  TOPS_INLINE void open_gate(V::F y[4], int64_t planes, const OutputView& s) const {
    for (int j = 0; j < 4; ++j) y[j] = sigmoid(y[j]);
    if (float_gate) {
      for (int j = 0; j < 4 && j < planes; ++j)
        y[j] = V::mulf(y[j], V::as_f(V::load(s.g + j * s.g_stride)));
      return;
    }
    const V::I g = V::load(s.g);
    y[0] = V::mulf(y[0], gate(V::and_(g, low)));
    y[1] = V::mulf(y[1], gate(V::and_(V::shr<8>(g), low)));
    y[2] = V::mulf(y[2], gate(V::and_(V::shr<16>(g), low)));
    y[3] = V::mulf(y[3], gate(V::shr<24>(g)));
  }

  // Rounding is monotone: clamping the codes is clamping the activation.
  TOPS_INLINE V::I codes(V::I packed) const {
    return clamped ? V::min_u8(V::max_u8(packed, qlo), qhi) : packed;
  }

  // Adds one vector of u8 packets of the residual to its four channels.
  TOPS_INLINE void add_residual(V::F y[4], V::I r) const {
    y[0] = V::addf(y[0], residual(V::and_(r, low)));
    y[1] = V::addf(y[1], residual(V::and_(V::shr<8>(r), low)));
    y[2] = V::addf(y[2], residual(V::and_(V::shr<16>(r), low)));
    y[3] = V::addf(y[3], residual(V::shr<24>(r)));
  }

  // o: the first of the four channels.
  TOPS_INLINE void prelu(V::F y[4], int64_t o) const {
    for (int j = 0; j < 4; ++j) y[j] = sloped(y[j], V::set1f(slope[o + j]));
  }

  TOPS_INLINE V::I to_packets(V::F y[4]) const {
    for (int j = 0; j < 4; ++j) y[j] = V::mulf(y[j], inv);
    if (capped)
      for (int j = 0; j < 4; ++j) y[j] = V::minf(cap, y[j]);
    return codes(
        V::pack(V::round(y[0]), V::round(y[1]), V::round(y[2]), V::round(y[3]), zero_point16));
  }

  // y: four channels as float32, scaled; o: the first of them, a multiple of 4; planes: how many
  // exist.
  TOPS_INLINE void operator()(V::F y[4], int64_t o, int64_t planes, const OutputView& s) const {
    for (int j = 0; j < 4; ++j) y[j] = V::addf(y[j], V::set1f(bias[o + j]));
    if (s.g) open_gate(y, planes, s);
    if (s.r) {
      if (float_residual) {
        for (int j = 0; j < 4 && j < planes; ++j)
          y[j] = V::addf(y[j], V::as_f(V::load(s.r + j * s.r_stride)));
      } else {
        add_residual(y, V::load(s.r));
      }
    }
    if (slope) prelu(y, o);
    if (float_out) {
      for (int j = 0; j < 4 && j < planes; ++j)
        store_masked(s, s.y + j * s.y_stride, V::as_i(V::minf(hi, V::maxf(lo, y[j]))), outside);
      return;
    }
    store_masked(s, s.y, to_packets(y), outside);
  }
};
