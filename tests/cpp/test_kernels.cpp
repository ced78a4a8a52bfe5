// SPDX-License-Identifier: Apache-2.0
// Every instruction set of this machine against plain loops, with a guard page right after (and
// before) every buffer: a kernel that reads or writes one byte outside dies here. Random values,
// never zeros; outputs start as a pattern that a missed packet keeps.
//   test_kernels [--seed N] [--cases N]
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/threads.h"
#include "isa/isa.h"
#include "ops/eager.h"
#include "program/program.h"
#include "weights/packed_rows.h"

using namespace tops;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok && failed <= 20) std::printf("FAILED %s\n", what.c_str());
}

// n bytes that end where an inaccessible page begins, and whose first page follows another one.
class Guarded {
 public:
  explicit Guarded(size_t n, size_t align = 1) : n_(n) {
    const size_t page = 4096, body = (n + align + page - 1) / page * page;
    map_bytes_ = body + 2 * page;
    map_ = static_cast<uint8_t*>(
        mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (map_ == MAP_FAILED) std::abort();
    mprotect(map_, page, PROT_NONE);
    mprotect(map_ + page + body, page, PROT_NONE);
    const size_t slack = align > 1 ? (n + align - 1) / align * align - n : 0;
    data_ = map_ + page + body - n - slack;
  }
  ~Guarded() { munmap(map_, map_bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint8_t* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t size() const { return n_; }

 private:
  size_t n_, map_bytes_ = 0;
  uint8_t *map_ = nullptr, *data_ = nullptr;
};

struct Case {
  int64_t n, groups, i, o, r, s, h, w;
  Window window;
  Weights kind;
  bool float_out;
  int32_t zp, yzp;
  float y_scale;
  std::string text() const {
    char b[256];
    std::snprintf(
        b, sizeof b,
        "n%ld g%ld i%ld o%ld r%ld s%ld %ldx%ld stride %ld,%ld pad %ld,%ld dil %ld,%ld kind %d f%d",
        n, groups, i, o, r, s, h, w, window.stride_h, window.stride_w, window.pad_h, window.pad_w,
        window.dil_h, window.dil_w, static_cast<int>(kind), float_out);
    return b;
  }
};

struct Rng {
  std::mt19937_64 engine;
  int64_t in(int64_t lo, int64_t hi) {
    return std::uniform_int_distribution<int64_t>(lo, hi)(engine);
  }
  float real(float lo, float hi) { return std::uniform_real_distribution<float>(lo, hi)(engine); }
};

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

Case draw(Rng& g) {
  Case c{};
  c.groups = g.in(0, 3) ? 1 : g.in(2, 4);
  c.i = g.in(0, 2) ? g.in(1, 13) : 4 * g.in(1, 5);
  c.o = c.groups * (g.in(0, 2) ? g.in(1, 11) : 8 * g.in(1, 2));
  c.r = g.in(1, 4), c.s = g.in(1, 4);
  c.window = {g.in(1, 3), g.in(1, 3), g.in(0, 3), g.in(0, 3), g.in(1, 2), g.in(1, 2)};
  if (g.in(0, 1)) c.window = {1, 1, c.r / 2, c.s / 2, 1, 1};
  c.n = g.in(1, 3);
  c.h = (c.r - 1) * c.window.dil_h + 1 + g.in(0, 12);
  c.w = (c.s - 1) * c.window.dil_w + 1 + g.in(0, 40);
  c.kind = g.in(0, 1) ? Weights::kTernary : Weights::kInt8;
  c.float_out = g.in(0, 2) == 0;
  c.zp = static_cast<int32_t>(g.in(0, 255)), c.yzp = static_cast<int32_t>(g.in(0, 255));
  c.y_scale = g.real(0.02f, 0.3f);
  return c;
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
    for (const IsaReport& isa : isa_report()) {
      if (!isa.reason.empty()) continue;
      force_isa(isa.name);
      Guarded y(static_cast<size_t>(c.n * c.o * oh * ow) * (c.float_out ? 4 : 1),
                c.float_out ? 4 : 1);
      std::memset(y.data(), 0xA5, y.size());
      set_num_threads(static_cast<int>(g.in(1, 3)));
      conv2d({l.x.data(), false, 1.0f, c.zp}, c.n, c.groups * c.i, c.h, c.w,
             view_packed(packed.data(), static_cast<int64_t>(packed.size())), l.scale.as<float>(),
             l.bias.as<float>(), c.window, {y.data(), c.float_out, c.y_scale, c.yzp});
      check(matches(c, l, y, oh, ow),
            "conv " + isa.name + (sparse ? " sparse " : " dense ") + c.text());
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
      forms.push_back(pack_rows(codes, l.plain.data(), c.o, c.i, 0));
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
    for (const IsaReport& isa : isa_report()) {
      if (!isa.reason.empty()) continue;
      force_isa(isa.name);
      for (const bool float_in : {false, true}) {
        set_num_threads(static_cast<int>(g.in(1, 3)));
        Guarded y(static_cast<size_t>(c.n * c.o) * (c.float_out ? 4 : 1), c.float_out ? 4 : 1);
        std::memset(y.data(), c.float_out ? 0xFF : 0xA5, y.size());
        linear({float_in ? floats.data() : l.x.data(), float_in, x_scale, c.zp}, c.n, c.i, c.kind,
               c.o, packed.data(), static_cast<int64_t>(packed.size()), scale.as<float>(),
               l.bias.as<float>(), {y.data(), c.float_out, c.y_scale, c.yzp});
        check(matches(c, l, y, 1, 1),
              "linear " + isa.name + (float_in ? " floats " : " ") + c.text());
      }
    }
  }
  for (int64_t bytes : {int64_t{0}, int64_t{63}, forms[0].size() - 1}) {
    bool refused = false;
    try {
      view_rows(forms[0].data(), bytes);
    } catch (const Error&) {
      refused = true;
    }
    check(refused, "rows cut off");
  }
  check(plain_of(view_rows(forms[0].data(), forms[0].size())) ==
            std::vector<uint8_t>(l.plain.data(), l.plain.data() + l.plain.size()),
        "the plain weights again " + c.text());
}

// Kernels on grids whose memory ends at a guard page: no more than the stated slack is read, and
// nothing outside is written.
void test_grid_bounds(Rng& g) {
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
  const ConvPlan plan(view_packed(blob.data(), static_cast<int64_t>(blob.size())),
                      l.scale.as<float>(), l.bias.as<float>(), c.zp, in, out, c.window, {},
                      {-kInf, kInf, c.y_scale, c.yzp}, l.slope.empty() ? nullptr : l.slope.data(),
                      by_rows ? c.s : 0);
  for (const IsaReport& isa : isa_report()) {
    if (!isa.reason.empty()) continue;
    force_isa(isa.name);
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
    std::vector<bool> pixel(static_cast<size_t>(out.plane), false);
    for (int64_t n = 0; n < out.n; ++n)
      for (int64_t p = 0; p < oh * ow; ++p)
        pixel[static_cast<size_t>(out.packet(n, p / ow, p % ow))] = true;
    for (int64_t packet = 0; packet < out.packets * out.plane; ++packet)
      if (packet % out.plane < out.n * out.image + out.halo &&
          !pixel[static_cast<size_t>(packet % out.plane)])
        halo = halo && y.data()[packet * 4] == c.yzp && y.data()[packet * 4 + 3] == c.yzp;
    check(matches(u8, l, nchw, oh, ow), "grid " + isa.name + " " + c.text());
    check(halo, "halo " + isa.name + " " + c.text());
  }
}

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
    for (const IsaReport& isa : isa_report()) {
      if (!isa.reason.empty()) continue;
      force_isa(isa.name);
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
      check(worst <= 1.0, "float " + isa.name + " error " + std::to_string(worst) + " " + c.text());
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
  for (const IsaReport& isa : isa_report()) {
    if (!isa.reason.empty()) continue;
    force_isa(isa.name);
    const std::vector<uint8_t> blob =
        pack_weights(false, Weights::kFloat, w.data(), {c.o, 3, 3, c.i, 1});
    const ConvPlan plan(view_packed(blob.data(), static_cast<int64_t>(blob.size())), ones.data(),
                        nullptr, 0, in, out, c.window, {}, {-kInf, kInf, 0.0f, 0}, nullptr, 0, {},
                        pairs);
    Guarded x(static_cast<size_t>(in.bytes())), y(static_cast<size_t>(out.bytes() - kSlackBytes)),
        scratch(static_cast<size_t>(plan.scratch_bytes()));
    std::memset(y.data(), 0xFF, y.size());  // NaN
    tensor_from_nchw(in, {0, in.h}, image.data(), 0, x.data());
    plan.run(x.data(), y.data(), nullptr, scratch.data());
    double worst = 0;
    for (int64_t at = 0; at < c.n * c.o * oh * ow; ++at) {
      const int64_t n = at / (c.o * oh * ow), o = at / (oh * ow) % c.o;
      const double made =
          static_cast<double>(y.as<float>()[o * out.plane + out.packet(n, at / ow % oh, at % ow)]);
      const double err =
          std::fabs(made - sums[static_cast<size_t>(at)]) / sizes[static_cast<size_t>(at)];
      worst = err > worst || err != err ? err : worst;
    }
    check(worst <= 1.0,
          "pairs of rows " + isa.name + " error " + std::to_string(worst) + " " + c.text());
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

constexpr int64_t kMuch = int64_t{1} << 40;  // worth several threads

void test_threads() {
  for (const int threads : {1, 2, 3, 7, 64}) {
    set_num_threads(threads);
    for (int round = 0; round < 50; ++round) {
      std::vector<int> hits(1000, 0);
      parallel_for(1000, kMuch, [&](int64_t i, int) {
        ++hits[static_cast<size_t>(i)];
        parallel_for(2, kMuch, [](int64_t, int) {});  // nested: runs here
      });
      bool once = true;
      for (const int h : hits) once = once && h == 1;
      check(once, "each task once with " + std::to_string(threads) + " threads");
    }
  }
  bool thrown = false;
  try {
    parallel_for(100, kMuch, [](int64_t i, int) {
      if (i == 50) throw Error(ErrorKind::kUnsupportedShape, "from a task");
    });
  } catch (const Error&) {
    thrown = true;
  }
  check(thrown, "an exception of a task arrives");
  std::vector<std::thread> callers;
  std::vector<int64_t> sums(16, 0);
  for (size_t t = 0; t < sums.size(); ++t)
    callers.emplace_back([&sums, t] {
      set_num_threads(3);
      for (int round = 0; round < 200; ++round) {
        std::vector<int64_t> part(64, 0);
        parallel_for(64, kMuch, [&](int64_t i, int) { part[static_cast<size_t>(i)] = i; });
        for (const int64_t p : part) sums[t] += p;
      }
    });
  for (std::thread& c : callers) c.join();
  for (const int64_t s : sums) check(s == 200 * 2016, "sixteen callers share the pool");
  set_num_threads(3);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a child that waits for threads it does not have dies here
    int64_t sum = 0;
    std::vector<int64_t> part(100, 0);
    parallel_for(100, kMuch, [&](int64_t i, int) { part[static_cast<size_t>(i)] = i; });
    for (const int64_t p : part) sum += p;
    _exit(sum == 4950 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the pool works after fork");
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t seed = 1;
  int cases = 120;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!std::strcmp(argv[i], "--seed")) seed = std::strtoull(argv[i + 1], nullptr, 10);
    if (!std::strcmp(argv[i], "--cases")) cases = std::atoi(argv[i + 1]);
  }
  std::printf("test_kernels --seed %lu --cases %d on:", static_cast<unsigned long>(seed), cases);
  for (const IsaReport& r : isa_report())
    if (r.reason.empty()) std::printf(" %s", r.name.c_str());
  std::printf("\n");
  Rng g{std::mt19937_64(seed)};
  test_errors();
  for (int i = 0; i < cases; ++i) {
    test_conv(g);
    test_linear(g);
    test_grid_bounds(g);
    test_float_conv(g);
    test_row_pairs(g);
  }
  force_isa("");
  test_threads();
  std::printf("test_kernels: %d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
