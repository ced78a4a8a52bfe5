// SPDX-License-Identifier: Apache-2.0
#include "codec/codec.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "codec/model.h"
#include "codec/rans.h"

namespace tops {
namespace {

using namespace codec;

constexpr size_t kQuad = 4;
// A block ends with the first row that completes this many quads (kBytes: bytes).
constexpr size_t kBlock = size_t{1} << 18;

// Nonzero flag of a quad. Context: the quad before it, and the same position in the three rows
// before.
struct Occupancy {
  BitModel model[16];
  void loosen() {
    for (BitModel& m : model) m.loosen();
  }
};

// Statistics, kept from tensor to tensor.
struct Models {
  Occupancy ternary_occupied, int8_occupied;
  SymbolModel quad[kQuad] = {SymbolModel(2), SymbolModel(8), SymbolModel(26),
                             SymbolModel(80)};  // of 1, 2, 3 and 4 values
  SymbolModel int8{256};
  std::vector<SymbolModel> columns[kMaxCodecColumns + 1];  // by width, made at first use

  std::vector<SymbolModel>& of_width(size_t width) {
    std::vector<SymbolModel>& c = columns[width];
    if (c.empty()) c.assign(width, SymbolModel(256));
    return c;
  }
};

// Number of a ternary quad: sum of digit(value k) * 3^k with digits 0 -> 0, +1 -> 1, -1 -> 2. The
// empty quad has number 0, and a quad of n values a number below 3^n.
int quad_number(const int8_t* w, size_t lanes) {
  static constexpr int kPower[kQuad] = {1, 3, 9, 27};
  int number = 0;
  for (size_t k = 0; k < lanes; ++k) number += (w[k] & 1) * (w[k] < 0 ? 2 : 1) * kPower[k];
  return number;
}

struct QuadTable {
  int8_t value[81][kQuad];
  int8_t codes[81];  // the four 2-bit codes, the first one lowest
};

constexpr QuadTable kQuadTable = [] {
  QuadTable t{};
  for (int n = 0; n < 81; ++n) {
    int codes = 0;
    for (int k = 0, rest = n; k < 4; ++k, rest /= 3) {
      t.value[n][k] = static_cast<int8_t>(rest % 3 == 2 ? -1 : rest % 3);
      codes |= (t.value[n][k] & 3) << (2 * k);
    }
    t.codes[n] = static_cast<int8_t>(codes);
  }
  return t;
}();

template <class Coder, class Value>
void walk_byte(Coder& coder, SymbolModel& model, Value& value) {
  if constexpr (Coder::kReads) {
    value = static_cast<int8_t>(coder.symbol(model, 0));
  } else {
    coder.symbol(model, static_cast<uint8_t>(value));
  }
}

// Memory form of a ternary quad: kCodes is one byte of four 2-bit codes.
enum class Form { kValues, kCodes };

// One quad of `lanes` values, 4 unless it is the last of its row. Read into zeros.
template <CodecKind kKind, Form kForm, class Coder, class Value>
inline __attribute__((always_inline)) bool walk_quad(Coder& coder, Models& models,
                                                     BitModel& occupancy, Value* w, size_t lanes) {
  bool occupied = false;
  if constexpr (!Coder::kReads) {
    for (size_t k = 0; k < lanes; ++k) occupied |= w[k] != 0;
  }
  occupied = coder.bit(occupancy, occupied);
  if (!occupied) return false;
  if constexpr (kKind == CodecKind::kTernary) {
    SymbolModel& model = models.quad[lanes - 1];
    if constexpr (Coder::kReads && kForm == Form::kCodes) {
      *w = kQuadTable.codes[coder.symbol(model, 0) + 1];
    } else if constexpr (Coder::kReads) {
      std::memcpy(w, kQuadTable.value[coder.symbol(model, 0) + 1], lanes);
    } else {
      coder.symbol(model, quad_number(w, lanes) - 1);
    }
  } else {
    for (size_t k = 0; k < lanes; ++k) walk_byte(coder, models.int8, w[k]);
  }
  return true;
}

template <CodecKind kKind, Form kForm, class Coder, class Value>
void walk_row(Coder& shared, Models& models, Occupancy& occupancy, uint8_t* above, Value* w,
              size_t width) {
  unsigned before = 0;
  // A copy, which nothing written to w can alias: its state stays in registers.
  Coder coder = std::move(shared);
  constexpr size_t kBytes = kForm == Form::kCodes ? 1 : kQuad;  // of a quad
  if constexpr (Coder::kReads) std::memset(w, 0, kBytes == 1 ? (width + 3) / kQuad : width);
  const auto quad = [&](size_t q, size_t lanes) __attribute__((always_inline)) {
    BitModel& model = occupancy.model[before << 3 | above[q]];
    before = walk_quad<kKind, kForm>(coder, models, model, w + q * kBytes, lanes);
    above[q] = static_cast<uint8_t>((above[q] << 1 | before) & 7);
  };
  const size_t full = width / kQuad;
  for (size_t q = 0; q < full; ++q) quad(q, kQuad);
  if (width % kQuad) quad(full, width % kQuad);
  shared = std::move(coder);
}

// Everything one payload holds, from the first tensor to the last. kForm: of ternary tensors.
template <class Coder, Form kForm = Form::kValues>
class Walk {
 public:
  using Value = std::conditional_t<Coder::kReads, int8_t, const int8_t>;

  explicit Walk(Coder coder) : coder_(std::move(coder)) {}

  void tensor(const CodecShape& shape, Value* w) {
    if (shape.rows == 0 || shape.width == 0) return;
    switch (shape.kind) {
      case CodecKind::kTernary:
        return quads<CodecKind::kTernary, kForm>(models_->ternary_occupied, shape, w);
      case CodecKind::kInt8:
        return quads<CodecKind::kInt8, Form::kValues>(models_->int8_occupied, shape, w);
      case CodecKind::kBytes:
        return bytes(shape, w);
    }
  }

  Coder& finish() {
    if (in_block_ != 0) coder_.end_block();
    in_block_ = 0;
    return coder_;
  }

 private:
  template <CodecKind kKind, Form kLaid>
  void quads(Occupancy& occupancy, const CodecShape& shape, Value* w) {
    occupancy.loosen();
    std::vector<uint8_t> above((shape.width + kQuad - 1) / kQuad);
    const size_t bytes = kLaid == Form::kCodes ? above.size() : shape.width;
    for (size_t r = 0; r < shape.rows; ++r) {
      begin_row();
      walk_row<kKind, kLaid>(coder_, *models_, occupancy, above.data(), w + r * bytes, shape.width);
      end_row(above.size());
    }
  }

  void bytes(const CodecShape& shape, Value* w) {
    std::vector<SymbolModel>& columns = models_->of_width(shape.width);
    for (size_t r = 0; r < shape.rows; ++r) {
      begin_row();
      for (size_t c = 0; c < shape.width; ++c)
        walk_byte(coder_, columns[c], w[r * shape.width + c]);
      end_row(shape.width);
    }
  }

  void begin_row() {
    if (in_block_ == 0) coder_.begin_block();
  }

  void end_row(size_t decisions) {
    in_block_ += decisions;
    if (in_block_ >= kBlock) finish();
  }

  std::unique_ptr<Models> models_ = std::make_unique<Models>();
  Coder coder_;
  size_t in_block_ = 0;
};

size_t total_values(const std::vector<CodecShape>& shapes) {
  size_t total = 0;
  for (const CodecShape& s : shapes) {
    size_t n = 0;
    if (s.kind == CodecKind::kBytes && s.width > kMaxCodecColumns)
      fail(ErrorKind::kFormatError,
           "a payload of at most " + std::to_string(kMaxCodecColumns) + " byte columns",
           std::to_string(s.width), kDamaged);
    if (__builtin_mul_overflow(s.rows, s.width, &n) || __builtin_add_overflow(total, n, &total))
      fail(ErrorKind::kFormatError, "a payload whose shapes fit in memory", "an overflow",
           kDamaged);
  }
  return total;
}

// Bytes a payload of this many values must have at least.
size_t least_size(size_t values) {
  return values <= kCodecFreeBytes
             ? 0
             : (values - kCodecFreeBytes + kCodecMaxRatio - 1) / kCodecMaxRatio;
}

void check_ternary(size_t tensor, const int8_t* w, size_t n) {
  bool valid = true;
  for (size_t i = 0; i < n; ++i) valid &= w[i] >= -1 && w[i] <= 1;
  if (valid) return;
  const size_t at = std::find_if(w, w + n, [](int8_t v) { return v < -1 || v > 1; }) - w;
  fail(ErrorKind::kBadWeights, "codes -1, 0 or 1",
       std::to_string(w[at]) + " at position " + std::to_string(at) + " of tensor " +
           std::to_string(tensor),
       "Quantize the weights first.");
}

template <Form kForm>
void decode(const uint8_t* payload, size_t size, const std::vector<CodecShape>& shapes,
            const std::vector<int8_t*>& values) {
  Walk<Reader, kForm> walk{Reader(payload, size)};
  for (size_t i = 0; i < shapes.size(); ++i) walk.tensor(shapes[i], values[i]);
  const uint8_t* next = walk.finish().next();
  const uint8_t* end = payload + size;
  const bool only_padding = std::all_of(next, end, [](uint8_t b) { return b == 0; });
  if (next != end && !(only_padding && size == least_size(total_values(shapes)))) {
    fail(ErrorKind::kFormatError,
         "a payload of the " + std::to_string(next - payload) + " bytes that are used",
         std::to_string(size) + " bytes", kDamaged);
  }
}

}  // namespace

CodecKind codec_kind(const std::string& name) {
  if (name == "ternary") return CodecKind::kTernary;
  if (name == "int8") return CodecKind::kInt8;
  if (name == "bytes") return CodecKind::kBytes;
  fail(ErrorKind::kFormatError, "a payload of kind ternary, int8 or bytes", name, kDamaged);
}

std::vector<uint8_t> codec_encode(const std::vector<CodecShape>& shapes,
                                  const std::vector<const int8_t*>& values) {
  const size_t total = total_values(shapes);
  Walk<Writer> walk{Writer()};
  for (size_t i = 0; i < shapes.size(); ++i) {
    if (shapes[i].kind == CodecKind::kTernary)
      check_ternary(i, values[i], shapes[i].rows * shapes[i].width);
    walk.tensor(shapes[i], values[i]);
  }
  std::vector<uint8_t> payload = walk.finish().bytes();
  payload.resize(std::max(payload.size(), least_size(total)));
  return payload;
}

void codec_check(const std::vector<CodecShape>& shapes, size_t size) {
  const size_t total = total_values(shapes);
  if (size < least_size(total)) {
    fail(ErrorKind::kFormatError,
         "a payload of at least " + std::to_string(least_size(total)) + " bytes for " +
             std::to_string(total) + " values",
         std::to_string(size), kDamaged);
  }
}

void codec_decode(const uint8_t* payload, size_t size, const std::vector<CodecShape>& shapes,
                  const std::vector<int8_t*>& values, bool codes) {
  codec_check(shapes, size);
  if (codes) return decode<Form::kCodes>(payload, size, shapes, values);
  decode<Form::kValues>(payload, size, shapes, values);
}

}  // namespace tops
