// SPDX-License-Identifier: Apache-2.0
// The entropy coder without Python: round trips, its bound, and that every byte string decodes or
// is refused.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "codec/codec.h"
#include "support.h"

namespace {

using tops::CodecKind;
using tops::CodecShape;
using tops::test::check;
using tops::test::Guarded;
using Bytes = std::vector<uint8_t>;
using Values = std::vector<int8_t>;

struct Tensors {
  std::vector<CodecShape> shapes;
  std::vector<Values> values;

  void add(CodecKind kind, size_t rows, size_t width, Values v) {
    shapes.push_back({kind, rows, width});
    values.push_back(std::move(v));
  }
  Bytes encode() const {
    std::vector<const int8_t*> p;
    for (const Values& v : values) p.push_back(v.data());
    return tops::codec_encode(shapes, p);
  }
};

enum class Outcome { kDecoded, kRefused, kWrongError };

// Payload and outputs at guard pages; `out` gets what was decoded.
Outcome decode(const Bytes& payload, const std::vector<CodecShape>& shapes,
               std::vector<Values>& out) {
  Guarded in(payload.size());
  std::copy(payload.begin(), payload.end(), in.as<uint8_t>());
  std::vector<std::unique_ptr<Guarded>> buffers;
  std::vector<int8_t*> p;
  for (const CodecShape& s : shapes) {
    buffers.push_back(std::make_unique<Guarded>(s.rows * s.width));
    std::memset(buffers.back()->data(), 0x55, buffers.back()->size());
    p.push_back(buffers.back()->as<int8_t>());
  }
  try {
    tops::codec_decode(in.as<uint8_t>(), payload.size(), shapes, p);
  } catch (const tops::Error& e) {
    return e.kind == tops::ErrorKind::kFormatError ? Outcome::kRefused : Outcome::kWrongError;
  }
  out.clear();
  for (size_t i = 0; i < p.size(); ++i) out.emplace_back(p[i], p[i] + buffers[i]->size());
  return Outcome::kDecoded;
}

Values random_values(std::mt19937_64& rng, CodecKind kind, size_t rows, size_t width,
                     double density) {
  std::uniform_real_distribution<double> u(0, 1);
  Values v(rows * width);
  for (size_t r = 0; r < rows; ++r) {
    bool occupied = false;
    for (size_t i = 0; i < width; ++i) {
      if (i % 4 == 0) occupied = u(rng) < density;
      int8_t& value = v[r * width + i];
      if (kind == CodecKind::kTernary)
        value = static_cast<int8_t>(occupied ? int(u(rng) * 3) - 1 : 0);
      if (kind == CodecKind::kInt8)
        value = static_cast<int8_t>(occupied ? int(u(rng) * 256) - 128 : 0);
      if (kind == CodecKind::kBytes)
        value = static_cast<int8_t>(u(rng) < density ? int(u(rng) * 256) - 128 : 3);
    }
  }
  return v;
}

Tensors random_tensors(std::mt19937_64& rng) {
  Tensors t;
  for (size_t count = rng() % 5; count-- > 0;) {
    const auto kind = static_cast<CodecKind>(rng() % 3);
    const size_t rows = rng() % 40;
    const size_t width = kind == CodecKind::kBytes ? rng() % 9 : rng() % 30;
    t.add(kind, rows, width, random_values(rng, kind, rows, width, double(rng() % 11) / 10));
  }
  return t;
}

void test_round_trip(std::mt19937_64& rng, int cases) {
  bool same = true;
  for (int i = 0; i < cases; ++i) {
    const Tensors t = random_tensors(rng);
    std::vector<Values> out;
    same &= decode(t.encode(), t.shapes, out) == Outcome::kDecoded && out == t.values;
  }
  check(same, "random tensors come back");
}

void test_blocks(std::mt19937_64& rng) {
  Tensors t;
  for (size_t width : {size_t{64}, size_t{1000003}}) {
    const size_t rows = 5000000 / width;
    t.add(CodecKind::kTernary, rows, width,
          random_values(rng, CodecKind::kTernary, rows, width, 0.7));
  }
  t.add(CodecKind::kInt8, 3, 300001, random_values(rng, CodecKind::kInt8, 3, 300001, 0.9));
  t.add(CodecKind::kBytes, 100000, 4, random_values(rng, CodecKind::kBytes, 100000, 4, 0.9));
  std::vector<Values> out;
  check(decode(t.encode(), t.shapes, out) == Outcome::kDecoded && out == t.values,
        "many blocks come back");
}

void test_bound(std::mt19937_64& rng) {
  for (double density : {0.005, 0.02, 0.1, 0.5, 1.0}) {
    const size_t rows = 4096, width = 512;
    std::uniform_real_distribution<double> u(0, 1);
    Values v(rows * width, 0);
    double counts[3] = {0, 0, 0};
    size_t kept = 0;
    for (size_t q = 0; q < v.size(); q += 4) {
      if (u(rng) >= density) continue;
      ++kept;
      do {
        for (size_t k = 0; k < 4; ++k)
          v[q + k] = static_cast<int8_t>(u(rng) < 0.3 ? 0 : u(rng) < 0.8 ? 1 : -1);
      } while (v[q] == 0 && v[q + 1] == 0 && v[q + 2] == 0 && v[q + 3] == 0);
      for (size_t k = 0; k < 4; ++k) ++counts[v[q + k] + 1];
    }
    const auto entropy = [](std::initializer_list<double> p) {
      double h = 0;
      for (double x : p) h -= x > 0 ? x * std::log2(x) : 0;
      return h;
    };
    const double d = 4.0 * double(kept) / double(v.size()), n = 4.0 * double(kept);
    const double bits =
        entropy({d, 1 - d}) / 4 + d * entropy({counts[0] / n, counts[1] / n, counts[2] / n});
    Tensors t;
    t.add(CodecKind::kTernary, rows, width, v);
    const double ratio = double(t.encode().size()) / (bits * double(v.size()) / 8);
    char what[80];
    std::snprintf(what, sizeof what, "density %.3f: payload / bound is %.4f, at most 1.03", density,
                  ratio);
    check(ratio <= 1.03, what);
  }
}

void test_every_byte_string_is_decoded_or_refused(std::mt19937_64& rng) {
  Tensors t;
  t.add(CodecKind::kTernary, 30, 18, random_values(rng, CodecKind::kTernary, 30, 18, 0.3));
  t.add(CodecKind::kInt8, 7, 9, random_values(rng, CodecKind::kInt8, 7, 9, 0.8));
  t.add(CodecKind::kBytes, 20, 4, random_values(rng, CodecKind::kBytes, 20, 4, 0.8));
  const Bytes good = t.encode();
  std::vector<Values> out;
  bool refused = true, total = true, ternary = true;
  for (size_t n = 0; n < good.size(); ++n) {
    refused &= decode(Bytes(good.begin(), good.begin() + static_cast<long>(n)), t.shapes, out) ==
               Outcome::kRefused;
  }
  check(refused, "every truncation is refused");
  Bytes longer = good;
  longer.push_back(0);
  check(decode(longer, t.shapes, out) == Outcome::kRefused, "a trailing byte is refused");
  const auto try_decode = [&](const Bytes& b) {
    const Outcome outcome = decode(b, t.shapes, out);
    total &= outcome != Outcome::kWrongError;
    if (outcome == Outcome::kDecoded) {
      for (int8_t v : out[0]) ternary &= v >= -1 && v <= 1;
    }
  };
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    Bytes b = good;
    b[bit / 8] = static_cast<uint8_t>(b[bit / 8] ^ 1u << bit % 8);
    try_decode(b);
  }
  for (int i = 0; i < 3000; ++i) {
    Bytes b(rng() % 600);
    for (uint8_t& x : b) x = static_cast<uint8_t>(rng());
    if (b.size() >= 8) b[7] &= 0x7f;  // a possible first state, to get further
    try_decode(b);
  }
  check(total, "any bytes decode or are refused with FormatError");
  check(ternary, "a decoded ternary tensor holds -1, 0 and 1 only");
}

template <class Call>
bool throws(tops::ErrorKind kind, Call call, const std::string& part) {
  try {
    call();
  } catch (const tops::Error& e) {
    return e.kind == kind && std::string(e.what()).find(part) != std::string::npos;
  }
  return false;
}

void test_limits() {
  Tensors zeros;
  zeros.add(CodecKind::kTernary, 1000, 20000, Values(20000000, 0));
  Bytes payload = zeros.encode();
  check(payload.size() == (20000000 - (1 << 20) + 1023) / 1024,
        "an all-zero payload is padded to the limit");
  std::vector<Values> out;
  check(decode(payload, zeros.shapes, out) == Outcome::kDecoded && out == zeros.values,
        "all zeros come back");
  payload.back() = 1;
  check(decode(payload, zeros.shapes, out) == Outcome::kRefused,
        "padding that is not zero is refused");
  payload.back() = 0;
  payload.push_back(0);
  check(decode(payload, zeros.shapes, out) == Outcome::kRefused,
        "padding beyond the limit is refused");

  const auto refuses = [](CodecShape s, size_t size) {
    return throws(tops::ErrorKind::kFormatError, [&] { tops::codec_check({s}, size); }, "payload");
  };
  check(refuses({CodecKind::kTernary, size_t{1} << 40, 4}, 1000),
        "a claim of 2^42 weights in 1000 bytes is refused");
  check(refuses({CodecKind::kInt8, size_t{1} << 40, size_t{1} << 40}, 1000),
        "a size that overflows is refused");
  check(refuses({CodecKind::kBytes, 1, 9}, 1000), "nine byte columns are refused");
  check(throws(
            tops::ErrorKind::kFormatError, [] { tops::codec_kind("float8"); }, "float8"),
        "unknown kinds are named");
}

void test_invalid_codes_are_named() {
  for (int8_t bad : {int8_t{2}, int8_t{-2}, int8_t{-128}, int8_t{127}}) {
    Tensors t;
    t.add(CodecKind::kTernary, 1, 4, {0, 1, -1, 0});
    Values v(40, 1);
    v[23] = bad;
    t.add(CodecKind::kTernary, 5, 8, v);
    check(throws(
              tops::ErrorKind::kBadWeights, [&] { t.encode(); }, "position 23 of tensor 1"),
          "value " + std::to_string(bad) + " is refused and located");
  }
}

// The stream is part of the file format: these bytes must not change, on any machine. Long enough
// for two blocks, every period of the symbol tables, and halved counts.
void test_stream_is_frozen() {
  uint32_t x = 1;
  const auto next = [&x] { return (x = x * 1664525u + 1013904223u) >> 16; };
  Tensors t;
  Values ternary(9000 * 139), int8(50 * 11), bytes(100 * 4);
  for (int8_t& v : ternary) v = static_cast<int8_t>(next() % 5 == 0 ? (next() % 3 ? 1 : -1) : 0);
  for (int8_t& v : int8) v = static_cast<int8_t>(next() % 2 ? next() % 256 : 0);
  for (int8_t& v : bytes) v = static_cast<int8_t>(next() % 17);
  t.add(CodecKind::kTernary, 9000, 139, ternary);
  t.add(CodecKind::kInt8, 50, 11, int8);
  t.add(CodecKind::kBytes, 100, 4, bytes);
  const Bytes payload = t.encode();
  uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (uint8_t b : payload) hash = (hash ^ b) * 1099511628211ull;
  char what[80];
  std::snprintf(what, sizeof what, "stream of %zu bytes, FNV-1a %016llx", payload.size(),
                static_cast<unsigned long long>(hash));
  check(payload.size() == 142504 && hash == 0x4fdad408c4169ddbull, what);
}

}  // namespace

int main(int argc, char** argv) {
  const tops::test::Options options(argc, argv, "test_codec", 300);
  std::mt19937_64 rng(options.seed);
  test_round_trip(rng, options.cases);
  test_blocks(rng);
  test_bound(rng);
  test_every_byte_string_is_decoded_or_refused(rng);
  test_limits();
  test_invalid_codes_are_named();
  test_stream_is_frozen();
  return tops::test::report("test_codec");
}
