// SPDX-License-Identifier: Apache-2.0
// Entropy coder of weight files: all tensors of a file in one byte stream. docs/formats.md is the
// normative description.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tops {

enum class CodecKind {
  kTernary,  // values -1, 0, 1 in quads: 4 consecutive values of a row
  kInt8,     // the same walk with values -128..127
  kBytes,    // rows of `width` bytes, each column with statistics of its own: floats, raw data
};

// `rows` rows of `width` bytes. A convolution's row is the input channels of one tap of one filter.
struct CodecShape {
  CodecKind kind;
  size_t rows;
  size_t width;
};

constexpr size_t kMaxCodecColumns = 8;  // of kind kBytes
constexpr size_t kCodecFreeBytes =
    size_t{1} << 20;  // a payload of n bytes holds at most 2^20 + 1024 n values
constexpr size_t kCodecMaxRatio = 1024;

CodecKind codec_kind(const std::string& name);  // "ternary", "int8", "bytes"

// Throws BadWeights, naming the tensor and position of the first value that is not -1, 0 or 1 where
// kind is kTernary.
std::vector<uint8_t> codec_encode(const std::vector<CodecShape>& shapes,
                                  const std::vector<const int8_t*>& values);

// Throws FormatError when `size` bytes may not hold such shapes; to be called before allocating for
// them.
void codec_check(const std::vector<CodecShape>& shapes, size_t size);

// Every byte string either decodes or throws FormatError. The values always are valid for their
// kind. codes: ternary tensors become rows of ceil(width / 4) bytes of four 2-bit codes, lowest
// first: a quarter of the memory.
void codec_decode(const uint8_t* payload, size_t size, const std::vector<CodecShape>& shapes,
                  const std::vector<int8_t*>& values, bool codes = false);

}  // namespace tops
