// SPDX-License-Identifier: Apache-2.0
#include "codec/codec.h"

#include <vector>

#include "bind/bind.h"

namespace tops::bind {
namespace {

// Codec: tensors are int8 [rows, width], see codec/codec.h.
Array<uint8_t> codec_encode(const std::vector<std::pair<std::string, Array<int8_t>>>& tensors) {
  std::vector<CodecShape> shapes;
  std::vector<const int8_t*> values;
  for (const auto& [kind, array] : tensors) {
    if (array.ndim() != 2)
      bad_argument("codec_encode needs arrays [rows, width], got " + std::to_string(array.ndim()) +
                   " axes.");
    shapes.push_back({codec_kind(kind), static_cast<size_t>(array.shape(0)),
                      static_cast<size_t>(array.shape(1))});
    values.push_back(array.data());
  }
  std::vector<uint8_t> payload;
  {
    py::gil_scoped_release release;
    payload = tops::codec_encode(shapes, values);
  }
  return Array<uint8_t>(static_cast<py::ssize_t>(payload.size()), payload.data());
}

// codes: ternary tensors as ternary_ops.ops.codes packs them, [rows, ceil(width / 4)].
std::vector<Array<int8_t>> codec_decode(
    const Array<uint8_t>& payload,
    const std::vector<std::tuple<std::string, size_t, size_t>>& specs, bool codes) {
  std::vector<CodecShape> shapes;
  for (const auto& [kind, rows, width] : specs) shapes.push_back({codec_kind(kind), rows, width});
  const auto size = static_cast<size_t>(payload.size());
  codec_check(shapes, size);  // before anything is allocated for them
  std::vector<Array<int8_t>> tensors;
  std::vector<int8_t*> values;
  for (const CodecShape& s : shapes) {
    const size_t bytes = codes && s.kind == CodecKind::kTernary ? (s.width + 3) / 4 : s.width;
    tensors.emplace_back(std::vector<py::ssize_t>{static_cast<py::ssize_t>(s.rows),
                                                  static_cast<py::ssize_t>(bytes)});
    values.push_back(tensors.back().mutable_data());
  }
  {
    py::gil_scoped_release release;
    tops::codec_decode(payload.data(), size, shapes, values, codes);
  }
  return tensors;
}

}  // namespace

void bind_codec(py::module_& m) {
  m.def("codec_encode", &codec_encode);
  m.def("codec_decode", &codec_decode, py::arg("payload"), py::arg("specs"),
        py::arg("codes") = false);
}

}  // namespace tops::bind
