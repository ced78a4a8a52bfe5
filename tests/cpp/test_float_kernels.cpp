// SPDX-License-Identifier: Apache-2.0
// Float convolutions of every instruction set of this machine against sums in float64, on memory
// that ends at guard pages.
//   test_float_kernels [--seed N] [--cases N]
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "conv_case.h"
#include "isa/isa.h"
#include "ops/conv.h"
#include "ops/eager.h"

using namespace tops;
using namespace tops::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Blocks of 1, 2 or 4 outputs x 3 inputs at one tap, of values with all, 11 or 8 bits: every form
// that sparse float weights are packed in. Some values are float16's subnormals.
void draw_blocks(Rng& g, const Case& c, float* w) {
  const int64_t taps = c.r * c.s, rows = int64_t{1} << g.in(0, 2);
  const int bits = static_cast<int>(g.in(0, 2));
  std::vector<bool> kept(static_cast<size_t>(c.o * taps * c.i));
  for (size_t k = 0; k < kept.size(); ++k) kept[k] = g.in(0, 2) == 0;
  for (int64_t k = 0; k < c.o * taps * c.i; ++k) {
    const int64_t o = k / (taps * c.i) / rows * rows, rest = k % (taps * c.i);
    float v = g.real(-1, 1) * (g.in(0, 15) ? 1.0f : 1e-6f);
    if (bits == 1) v = std::nearbyint(v * 0x1p10f) * 0x1p-10f * (g.in(0, 15) ? 1.0f : 0x1p-14f);
    if (bits == 2) {
      uint32_t u;
      std::memcpy(&u, &v, 4);
      u &= 0xffff0000u;
      std::memcpy(&v, &u, 4);
    }
    w[k] = kept[static_cast<size_t>(o * taps * c.i + rest / 3 * 3)] ? v : 0.0f;
  }
}

void test_float_conv(Rng& g) {
  Case c = draw(g);
  const int64_t oh = window_out(c.h, c.r, c.window.stride_h, c.window.pad_h, c.window.dil_h);
  const int64_t ow = window_out(c.w, c.s, c.window.stride_w, c.window.pad_w, c.window.dil_w);
  Guarded x(static_cast<size_t>(c.n * c.groups * c.i * c.h * c.w) * 4, 4),
      w(static_cast<size_t>(c.o * c.r * c.s * c.i) * 4, 4);
  for (size_t k = 0; k < x.size() / 4; ++k) x.as<float>()[k] = g.real(-2, 2);
  draw_blocks(g, c, w.as<float>());
  const std::vector<float> ones(static_cast<size_t>(c.o), 1.0f);
  for (const bool sparse : {false, true})
    for (const std::string& isa : isas()) {
      force_isa(isa);
      const std::vector<uint8_t> blob =
          pack_weights(sparse, Weights::kFloat, w.data(), {c.o, c.r, c.s, c.i, c.groups});
      Guarded y(static_cast<size_t>(c.n * c.o * oh * ow) * 4, 4);
      std::memset(y.data(), 0xFF, y.size());  // NaN
      conv2d({x.data(), true, 1.0f, 0}, c.n, c.groups * c.i, c.h, c.w,
             view_packed(blob.data(), static_cast<int64_t>(blob.size())), ones.data(), nullptr,
             c.window, {y.data(), true, 0.0f, 0});
      double worst = 0;
      for (int64_t at = 0; at < c.n * c.o * oh * ow; ++at) {
        const int64_t n = at / (c.o * oh * ow), o = at / (oh * ow) % c.o, oy = at / ow % oh,
                      ox = at % ow;
        double sum = 0, size = 1e-30;
        for (int64_t ci = 0; ci < c.i; ++ci)
          for (int64_t t = 0; t < c.r * c.s; ++t) {
            const int64_t iy = oy * c.window.stride_h + t / c.s * c.window.dil_h - c.window.pad_h;
            const int64_t ix = ox * c.window.stride_w + t % c.s * c.window.dil_w - c.window.pad_w;
            if (iy < 0 || iy >= c.h || ix < 0 || ix >= c.w) continue;
            const int64_t channel = o / (c.o / c.groups) * c.i + ci;
            const double p =
                static_cast<double>(
                    x.as<float>()[((n * c.groups * c.i + channel) * c.h + iy) * c.w + ix]) *
                static_cast<double>(w.as<float>()[(o * c.r * c.s + t) * c.i + ci]);
            sum += p;
            size += std::fabs(p);
          }
        // Any order of K additions errs by at most about K * eps / 2 * sum|x w|.
        const double k = static_cast<double>(c.r * c.s * c.i + 1);
        const double err =
            std::fabs(static_cast<double>(y.as<float>()[at]) - sum) / (size * k * 1.2e-7);
        worst = err > worst || err != err ? err : worst;
      }
      check(worst <= 1.0, "float " + isa + " error " + std::to_string(worst) + " " + c.text());
    }
}

// Layers that go by pairs of rows (ops/winograd.h), from the first or second on: odd heights,
// few and many columns, images behind each other, on memory that ends at guard pages.
void test_row_pairs(Rng& g) {
  Case c = draw(g);
  c.r = c.s = 3;
  c.groups = 1;
  c.i = g.in(14, 40), c.o = g.in(14, 40);
  c.h = g.in(3, 9), c.w = g.in(3, g.in(0, 1) ? 160 : 40);
  const Pairs pairs = g.in(0, 1) ? Pairs::kOdd : Pairs::kEven;
  const int64_t pad = g.in(0, 1);
  c.window = {1, 1, pad, pad, 1, 1};
  const int64_t oh = c.h + 2 * pad - 2, ow = c.w + 2 * pad - 2;
  const ActivationTensor in = ActivationTensor::make(c.i, true, c.n, c.h, c.w, 1),
                         out = ActivationTensor::make(c.o, true, c.n, oh, ow, g.in(0, 1));
  std::vector<float> w(static_cast<size_t>(c.o * 9 * c.i)), ones(static_cast<size_t>(c.o), 1.0f),
      image(static_cast<size_t>(c.n * c.i * c.h * c.w));
  for (float& v : w) v = g.real(-1, 1);
  for (float& v : image) v = g.real(-1, 1);
  std::vector<double> sums, sizes;
  for (int64_t at = 0; at < c.n * c.o * oh * ow; ++at) {
    const int64_t n = at / (c.o * oh * ow), o = at / (oh * ow) % c.o, oy = at / ow % oh,
                  ox = at % ow;
    double sum = 0, size = 1e-30;
    for (int64_t ci = 0; ci < c.i; ++ci)
      for (int64_t s = 0; s < 3; ++s) {
        double inputs = 0, weights = 0;
        for (int64_t r = 0; r < 3; ++r) {
          const int64_t iy = oy + r - pad, ix = ox + s - pad;
          const bool inside = iy >= 0 && iy < c.h && ix >= 0 && ix < c.w;
          const double x =
              inside ? static_cast<double>(
                           image[static_cast<size_t>(((n * c.i + ci) * c.h + iy) * c.w + ix)])
                     : 0.0;
          const double v =
              static_cast<double>(w[static_cast<size_t>((o * 9 + r * 3 + s) * c.i + ci)]);
          sum += x * v;
          inputs += std::fabs(x), weights += std::fabs(v);
        }
        size += inputs * weights;
      }
    sums.push_back(sum);
    sizes.push_back(size * static_cast<double>(9 * c.i) * 1.2e-7);
  }
  for (const std::string& isa : isas()) {
    force_isa(isa);
    const std::vector<uint8_t> blob =
        pack_weights(false, Weights::kFloat, w.data(), {c.o, 3, 3, c.i, 1});
    const PackedView packed = view_packed(blob.data(), static_cast<int64_t>(blob.size()));
    ConvSpec spec{packed, ones.data()};
    spec.window = c.window;
    spec.requantize = {-kInf, kInf, 0.0f, 0};
    spec.pairs = pairs;
    const ConvPlan plan(spec, in, out);
    Guarded x(static_cast<size_t>(in.bytes())), y(static_cast<size_t>(out.bytes() - kSlackBytes)),
        scratch(static_cast<size_t>(plan.scratch_bytes()));
    std::memset(y.data(), 0xFF, y.size());  // NaN
    tensor_from_nchw(in, {0, in.h}, image.data(), 0, x.data());
    plan.run(x.data(), y.data(), nullptr, scratch.data());
    double worst = 0;
    for (int64_t at = 0; at < c.n * c.o * oh * ow; ++at) {
      const int64_t n = at / (c.o * oh * ow), o = at / (oh * ow) % c.o;
      const double made = static_cast<double>(
          y.as<float>()[o * out.channel_stride + out.packet(n, at / ow % oh, at % ow)]);
      const double err =
          std::fabs(made - sums[static_cast<size_t>(at)]) / sizes[static_cast<size_t>(at)];
      worst = err > worst || err != err ? err : worst;
    }
    check(worst <= 1.0,
          "pairs of rows " + isa + " error " + std::to_string(worst) + " " + c.text());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Options options(argc, argv, "test_float_kernels", 120);
  Rng g{std::mt19937_64(options.seed)};
  for (int i = 0; i < options.cases; ++i) {
    test_float_conv(g);
    test_row_pairs(g);
  }
  return report("test_float_kernels");
}
