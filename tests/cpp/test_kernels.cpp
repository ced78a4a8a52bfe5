// SPDX-License-Identifier: Apache-2.0
// Integer kernels of every instruction set of this machine against plain loops, with a guard page
// right after (and before) every buffer: a kernel that reads or writes one byte outside dies here.
// Random values, never zeros; outputs start as a pattern that a missed packet keeps.
//   test_kernels [--seed N] [--cases N]
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "conv_case.h"
#include "isa/isa.h"
#include "ops/conv.h"
#include "ops/eager.h"
#include "weights/packed_rows.h"

using namespace tops;
using namespace tops::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// The plain definition: every sum in int64, then the float32 steps in the order of
// docs/architecture.md.
float expected(const Case& c, const uint8_t* x, const std::vector<int>& w, const float* scale,
               const float* bias, int64_t n, int64_t o, int64_t oy, int64_t ox) {
  const int64_t group = o / (c.o / c.groups);
  int64_t acc = 0;
  for (int64_t ci = 0; ci < c.i; ++ci)
    for (int64_t r = 0; r < c.r; ++r)
      for (int64_t s = 0; s < c.s; ++s) {
        const int64_t y = oy * c.window.stride_h + r * c.window.dil_h - c.window.pad_h;
        const int64_t xx = ox * c.window.stride_w + s * c.window.dil_w - c.window.pad_w;
        if (y < 0 || y >= c.h || xx < 0 || xx >= c.w) continue;
        const int64_t q = x[((n * c.groups * c.i + group * c.i + ci) * c.h + y) * c.w + xx];
        acc += (q - c.zp) * w[static_cast<size_t>(((o * c.r + r) * c.s + s) * c.i + ci)];
      }
  volatile float y = static_cast<float>(acc) * scale[o];
  y = y + bias[o];
  return y;
}

int code(float y, const Case& c) {
  const float inv = 1.0f / c.y_scale;
  volatile float v = y * inv;
  const double q = std::nearbyint(static_cast<double>(v)) + c.yzp;
  return q < 0 ? 0 : q > 255 ? 255 : static_cast<int>(q);
}

struct Layer {
  Guarded x, plain, scale, bias;
  std::vector<float> slope;  // of each output channel, where a test gives them
  std::vector<int> w;
  Layer(const Case& c, Rng& g)
      : x(static_cast<size_t>(c.n * c.groups * c.i * c.h * c.w)),
        plain(static_cast<size_t>(c.o * c.r * c.s * ((c.i + 3) / 4) *
                                  (c.kind == Weights::kTernary ? 1 : 4))),
        scale(static_cast<size_t>(c.o) * 4, 4),
        bias(static_cast<size_t>(c.o) * 4, 4) {
    // Now and then the largest sums that a layer can have, of one sign or the other: where partial
    // sums are kept in 16 bits, they must still fit.
    const bool extreme = g.in(0, 7) == 0, down = g.in(0, 1);
    const int most = c.kind == Weights::kTernary ? (down ? -1 : 1) : (down ? -128 : 127);
    for (size_t k = 0; k < x.size(); ++k)
      x.data()[k] = extreme ? 255 : static_cast<uint8_t>(g.in(0, 255));
    std::memset(plain.data(), 0, plain.size());
    const int64_t quads = (c.i + 3) / 4;
    for (int64_t row = 0; row < c.o * c.r * c.s; ++row)
      for (int64_t k = 0; k < c.i; ++k) {
        const bool empty =
            (row + k / 4) % 3 == 0;  // whole quads, so that the sparse form skips something
        int v = c.kind == Weights::kTernary ? static_cast<int>(g.in(-1, 1))
                                            : static_cast<int>(g.in(-128, 127));
        if (empty) v = 0;
        if (extreme) v = most;
        w.push_back(v);
        if (c.kind == Weights::kTernary) {
          uint8_t& byte = plain.data()[row * quads + k / 4];
          byte = static_cast<uint8_t>(byte | ((v & 3) << (2 * (k % 4))));
        } else {
          plain.as<int8_t>()[row * quads * 4 + k] = static_cast<int8_t>(v);
        }
      }
    for (int64_t o = 0; o < c.o; ++o) {
      scale.as<float>()[o] = g.real(-0.02f, 0.02f);
      bias.as<float>()[o] = g.real(-3.0f, 3.0f);
    }
  }
};

bool matches(const Case& c, const Layer& l, const Guarded& y, int64_t oh, int64_t ow) {
  for (int64_t n = 0; n < c.n; ++n)
    for (int64_t o = 0; o < c.o; ++o)
      for (int64_t p = 0; p < oh * ow; ++p) {
        float e = expected(c, l.x.data(), l.w, l.scale.as<float>(), l.bias.as<float>(), n, o,
                           p / ow, p % ow);
        if (!l.slope.empty() && e < 0) e = l.slope[static_cast<size_t>(o)] * e;
        const int64_t at = (n * c.o + o) * oh * ow + p;
        if (c.float_out ? y.as<float>()[at] != e : y.data()[at] != code(e, c)) return false;
      }
  return true;
}

void test_conv(Rng& g) {
  const Case c = draw(g);
  Layer l(c, g);
  const int64_t oh = window_out(c.h, c.r, c.window.stride_h, c.window.pad_h, c.window.dil_h);
  const int64_t ow = window_out(c.w, c.s, c.window.stride_w, c.window.pad_w, c.window.dil_w);
  for (const bool sparse : {false, true}) {
    const std::vector<uint8_t> blob =
        pack_weights(sparse, c.kind, l.plain.data(), {c.o, c.r, c.s, c.i, c.groups});
    Guarded packed(blob.size(), 8);
    std::memcpy(packed.data(), blob.data(), blob.size());
    for (const std::string& isa : isas()) {
      force_isa(isa);
      Guarded y(static_cast<size_t>(c.n * c.o * oh * ow) * (c.float_out ? 4 : 1),
                c.float_out ? 4 : 1);
      std::memset(y.data(), 0xA5, y.size());
      set_num_threads(static_cast<int>(g.in(1, 3)));
      conv2d({l.x.data(), false, 1.0f, c.zp}, c.n, c.groups * c.i, c.h, c.w,
             view_packed(packed.data(), static_cast<int64_t>(packed.size())), l.scale.as<float>(),
             l.bias.as<float>(), c.window, {y.data(), c.float_out, c.y_scale, c.yzp});
      check(matches(c, l, y, oh, ow), "conv " + isa + (sparse ? " sparse " : " dense ") + c.text());
    }
  }
}

// Every form of the weights, u8 and float input.
void test_linear(Rng& g) {
  Case c = draw(g);
  c.groups = c.r = c.s = c.h = c.w = 1;
  c.window = {};
  c.i = g.in(1, 700);
  c.o = g.in(1, 40);
  c.n = g.in(1, 19);
  Layer l(c, g);
  std::vector<Buffer> forms;
  for (const bool sparse : {false, true})
    forms.push_back(pack_linear(sparse, c.kind, l.plain.data(), c.o, c.i));
  if (c.kind == Weights::kTernary)
    for (const RowCodes codes : {RowCodes::kTwoBit, RowCodes::kBaseThree})
      forms.push_back(pack_weight_rows(codes, l.plain.data(), c.o, c.i, 0));
  // Floats that quantize to x: off by less than half a step.
  const float x_scale = g.real(0.01f, 2.0f);
  Guarded floats(l.x.size() * 4, 4);
  for (size_t k = 0; k < l.x.size(); ++k)
    floats.as<float>()[k] =
        (static_cast<float>(l.x.data()[k]) - static_cast<float>(c.zp) + g.real(-0.4f, 0.4f)) *
        x_scale;
  Guarded scale(l.scale.size(), 4);  // times x_scale, the scale of the expected values
  for (int64_t o = 0; o < c.o; ++o) scale.as<float>()[o] = l.scale.as<float>()[o] / x_scale;
  for (int64_t o = 0; o < c.o; ++o) l.scale.as<float>()[o] = scale.as<float>()[o] * x_scale;
  for (const Buffer& form : forms) {
    Guarded packed(static_cast<size_t>(form.size()), 8);
    std::memcpy(packed.data(), form.data(), packed.size());
    for (const std::string& isa : isas()) {
      force_isa(isa);
      for (const bool float_in : {false, true}) {
        set_num_threads(static_cast<int>(g.in(1, 3)));
        Guarded y(static_cast<size_t>(c.n * c.o) * (c.float_out ? 4 : 1), c.float_out ? 4 : 1);
        std::memset(y.data(), c.float_out ? 0xFF : 0xA5, y.size());
        linear({float_in ? floats.data() : l.x.data(), float_in, x_scale, c.zp}, c.n, c.i, c.kind,
               c.o, packed.data(), static_cast<int64_t>(packed.size()), scale.as<float>(),
               l.bias.as<float>(), {y.data(), c.float_out, c.y_scale, c.yzp});
        check(matches(c, l, y, 1, 1), "linear " + isa + (float_in ? " floats " : " ") + c.text());
      }
    }
  }
  for (int64_t bytes : {int64_t{0}, int64_t{63}, forms[0].size() - 1}) {
    bool refused = false;
    try {
      view_weight_rows(forms[0].data(), bytes);
    } catch (const Error&) {
      refused = true;
    }
    check(refused, "rows cut off");
  }
  check(unpack_weight_rows(view_weight_rows(forms[0].data(), forms[0].size())) ==
            std::vector<uint8_t>(l.plain.data(), l.plain.data() + l.plain.size()),
        "the plain weights again " + c.text());
}

// Kernels on tensors whose memory ends at a guard page: no more than the stated slack is read, and
// nothing outside is written.
void test_tensor_bounds(Rng& g) {
  Case c = draw(g);
  Layer l(c, g);
  const int64_t oh = window_out(c.h, c.r, c.window.stride_h, c.window.pad_h, c.window.dil_h);
  const int64_t ow = window_out(c.w, c.s, c.window.stride_w, c.window.pad_w, c.window.dil_w);
  const ActivationTensor in = ActivationTensor::make(c.groups * c.i, false, c.n, c.h, c.w,
                                                     g.in(0, 3)),
                         out = ActivationTensor::make(c.o, false, c.n, oh, ow, g.in(0, 2));
  WeightShape shape{c.o, c.r, c.s, c.i, c.groups};
  const bool by_rows = c.groups == 1 && c.window.dil_w == 1 && g.in(0, 1);
  std::vector<uint8_t> rows;
  if (by_rows) rows = pack_filter_rows(c.kind, l.plain.data(), shape, &shape);
  const std::vector<uint8_t> blob =
      pack_weights(g.in(0, 1), c.kind, by_rows ? rows.data() : l.plain.data(), shape);
  if (g.in(0, 1))
    for (int64_t o = 0; o < c.o; ++o) l.slope.push_back(g.real(-0.5f, 1.5f));
  const PackedView packed = view_packed(blob.data(), static_cast<int64_t>(blob.size()));
  ConvSpec spec{packed, l.scale.as<float>(), l.bias.as<float>()};
  spec.slope = l.slope.empty() ? nullptr : l.slope.data();
  spec.x_zero_point = c.zp;
  spec.window = c.window;
  spec.requantize = {-kInf, kInf, c.y_scale, c.yzp};
  spec.row_filter = by_rows ? c.s : 0;
  const ConvPlan plan(spec, in, out);
  for (const std::string& isa : isas()) {
    force_isa(isa);
    set_num_threads(1);
    Guarded x(static_cast<size_t>(in.bytes())), y(static_cast<size_t>(out.bytes() - kSlackBytes)),
        scratch(static_cast<size_t>(plan.scratch_bytes()));
    tensor_from_nchw(in, {0, in.h}, l.x.data(), static_cast<uint32_t>(c.zp) * 0x01010101u,
                     x.data());
    plan.run(x.data(), y.data(), nullptr, scratch.data());
    Guarded nchw(static_cast<size_t>(c.n * c.o * oh * ow));
    tensor_to_nchw(out, {0, out.h}, y.data(), nchw.data());
    Case u8 = c;
    u8.float_out = false;
    bool halo = true;
    std::vector<bool> pixel(static_cast<size_t>(out.channel_stride), false);
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t p = 0; p < oh * ow; ++p)
        pixel[static_cast<size_t>(out.packet(n, p / ow, p % ow))] = true;
    for (int64_t packet = 0; packet < out.packets * out.channel_stride; ++packet)
      if (packet % out.channel_stride < out.n * out.image + out.halo &&
          !pixel[static_cast<size_t>(packet % out.channel_stride)])
        halo = halo && y.data()[packet * 4] == c.yzp && y.data()[packet * 4 + 3] == c.yzp;
    check(matches(u8, l, nchw, oh, ow), "tensor " + isa + " " + c.text());
    check(halo, "halo " + isa + " " + c.text());
  }
}

void test_errors() {
  auto kind_of = [](auto&& body) -> int {
    try {
      body();
    } catch (const Error& e) {
      return static_cast<int>(e.kind);
    }
    return -1;
  };
  const uint8_t bad[1] = {0x02};
  check(kind_of([&] { pack_weights(false, Weights::kTernary, bad, {1, 1, 1, 1, 1}); }) ==
            static_cast<int>(ErrorKind::kBadWeights),
        "code 10");
  check(kind_of([] { force_isa("nonsense"); }) == static_cast<int>(ErrorKind::kUnsupportedDevice),
        "isa name");
  check(kind_of([] { check_shape({1, 1, 1, int64_t{1} << 40, 1}, Weights::kTernary); }) ==
            static_cast<int>(ErrorKind::kUnsupportedShape),
        "K");
  check(kind_of([] { checked_mul(int64_t{1} << 62, 8); }) ==
            static_cast<int>(ErrorKind::kUnsupportedShape),
        "overflow");
  const uint8_t one[1] = {0x01};
  std::vector<uint8_t> blob = pack_weights(true, Weights::kTernary, one, {1, 1, 1, 1, 1});
  for (size_t n = 0; n < blob.size(); ++n) {
    std::vector<uint8_t> cut(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(n));
    cut.reserve(64);
    check(kind_of([&] { view_packed(cut.data(), static_cast<int64_t>(n)); }) >= 0,
          "truncated blob");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv, "test_kernels", 120);
  Rng g{std::mt19937_64(options.seed)};
  test_errors();
  for (int i = 0; i < options.cases; ++i) {
    test_conv(g);
    test_linear(g);
    test_tensor_bounds(g);
  }
  return report("test_kernels");
}
