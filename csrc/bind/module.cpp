// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/threads.h"
#include "bind/bind.h"
#include "isa/isa.h"
#include "ops/eager.h"
#include "ops/linear.h"
#include "weights/packed_rows.h"

namespace tops::bind {
namespace {

const char* error_name(tops::ErrorKind kind) {
  switch (kind) {
    case tops::ErrorKind::kUnsupportedShape:
      return "UnsupportedShape";
    case tops::ErrorKind::kUnsupportedDevice:
      return "UnsupportedDevice";
    case tops::ErrorKind::kUnsupportedModel:
      return "UnsupportedModel";
    case tops::ErrorKind::kBadWeights:
      return "BadWeights";
    case tops::ErrorKind::kFormatError:
      return "FormatError";
  }
  return "TernaryOpsError";
}

void translate(std::exception_ptr p) {
  try {
    if (p) std::rethrow_exception(p);
  } catch (const tops::Error& e) {
    py::object type = py::module_::import("ternary_ops.errors").attr(error_name(e.kind));
    PyErr_SetString(type.ptr(), e.what());
  }
}

bool is_float_dtype(const std::string& name) {
  if (name == "f32") return true;
  if (name == "u8") return false;
  bad_argument("a dtype needs to be 'u8' or 'f32', got '" + name + "'.");
}

tops::TensorRef tensor(Address data, const std::string& dtype, float scale, int zero_point) {
  return {reinterpret_cast<void*>(data), is_float_dtype(dtype), scale, zero_point};
}

Array<uint8_t> prepack(const std::string& kind, const std::string& weights, Address w, int64_t o,
                       int64_t r, int64_t s, int64_t i, int64_t groups) {
  if (kind != "dense" && kind != "sparse")
    bad_argument("a packing needs to be 'dense' or 'sparse', got '" + kind + "'.");
  std::vector<uint8_t> blob;
  {
    py::gil_scoped_release release;
    blob = tops::pack_weights(kind == "sparse", weights_of(weights),
                              reinterpret_cast<const void*>(w), {o, r, s, i, groups});
  }
  Array<uint8_t> out(static_cast<py::ssize_t>(blob.size()));
  std::memcpy(out.mutable_data(), blob.data(), blob.size());
  return out;
}

// Memory that NumPy frees; aligned to cache lines, which NumPy's own is not.
Array<uint8_t> own(tops::Buffer buffer) {
  auto* const kept = new tops::Buffer(std::move(buffer));
  const py::capsule owner(kept, [](void* p) { delete static_cast<tops::Buffer*>(p); });
  return Array<uint8_t>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

// Weights [N, K] of a linear layer. kind: "dense", "sparse", or rows alone: "int8", or, of ternary
// ones, "two_bit" or "base_three", between which "dense" chooses.
Array<uint8_t> prepack_linear(const std::string& kind, const std::string& weights, Address w,
                              int64_t n, int64_t k) {
  const void* const plain = reinterpret_cast<const void*>(w);
  const tops::Weights type = weights_of(weights);
  tops::Buffer blob;
  {
    py::gil_scoped_release release;
    if (kind == "two_bit" || kind == "base_three" || kind == "int8")
      blob = tops::pack_weight_rows(kind == "two_bit"      ? tops::RowCodes::kTwoBit
                                    : kind == "base_three" ? tops::RowCodes::kBaseThree
                                                           : tops::RowCodes::kInt8,
                                    plain, n, k, 0);
    else if (kind == "dense" || kind == "sparse")
      blob = tops::pack_linear(kind == "sparse", type, plain, n, k);
    else
      bad_argument(
          "a packing needs to be 'dense', 'sparse', 'int8', 'two_bit' or 'base_three', got '" +
          kind + "'.");
  }
  return own(std::move(blob));
}

// uint8 codes of int8 [..., I], flat: what ops.codes.pack_codes makes, for values known to be
// ternary.
Array<uint8_t> pack_codes(const Array<int8_t>& w) {
  const int64_t i = w.ndim() ? w.shape(w.ndim() - 1) : 0, rows = i ? w.size() / i : 0;
  Array<uint8_t> codes(static_cast<py::ssize_t>(rows * ((i + 3) / 4)));
  tops::pack_codes(w.data(), rows, i, codes.mutable_data());
  return codes;
}

// (O, R, S, I, groups) of a blob that prepack made; throws on any other bytes.
py::tuple packed_shape(Address packed, int64_t packed_bytes) {
  const tops::WeightShape s =
      tops::view_packed(reinterpret_cast<const uint8_t*>(packed), packed_bytes).shape;
  return py::make_tuple(s.o, s.r, s.s, s.i, s.groups);
}

void conv2d(Address x, const std::string& x_dtype, int x_zp, int64_t n, int64_t c, int64_t h,
            int64_t w, Address packed, int64_t packed_bytes, Address scale, Address bias,
            int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dil_h,
            int64_t dil_w, Address y, const std::string& y_dtype, float y_scale, int y_zp) {
  const tops::TensorRef in = tensor(x, x_dtype, 1.0f, x_zp),
                        out = tensor(y, y_dtype, y_scale, y_zp);
  py::gil_scoped_release release;
  const tops::PackedView view =
      tops::view_packed(reinterpret_cast<const uint8_t*>(packed), packed_bytes);
  tops::conv2d(in, n, c, h, w, view, reinterpret_cast<const float*>(scale),
               reinterpret_cast<const float*>(bias),
               {stride_h, stride_w, pad_h, pad_w, dil_h, dil_w}, out);
}

void linear(Address x, const std::string& x_dtype, float x_scale, int x_zp, int64_t m, int64_t k,
            const std::string& weights, int64_t n, Address packed, int64_t packed_bytes,
            Address scale, Address bias, Address y, const std::string& y_dtype, float y_scale,
            int y_zp) {
  const bool bfloat16 = x_dtype == "bf16";
  tops::TensorRef in = tensor(x, bfloat16 ? "f32" : x_dtype, x_scale, x_zp),
                  out = tensor(y, y_dtype, y_scale, y_zp);
  in.bfloat16 = bfloat16;
  const tops::Weights kind = weights_of(weights);
  py::gil_scoped_release release;
  tops::linear(in, m, k, kind, n, reinterpret_cast<const uint8_t*>(packed), packed_bytes,
               reinterpret_cast<const float*>(scale), reinterpret_cast<const float*>(bias), out);
}

const float* floats(Address p) { return reinterpret_cast<const float*>(p); }

void fake_quantize(Address x, int64_t n, float scale, int zero_point, int threads, Address y) {
  py::gil_scoped_release release;
  tops::fake_quantize(floats(x), n, scale, zero_point, threads, reinterpret_cast<float*>(y));
}

py::tuple fake_quantize_grad(Address x, Address grad, int64_t n, float scale, int zero_point,
                             int threads, Address dx) {
  tops::FakeSums s;
  {
    py::gil_scoped_release release;
    s = tops::fake_quantize_grad(floats(x), floats(grad), n, scale, zero_point, threads,
                                 reinterpret_cast<float*>(dx));
  }
  return py::make_tuple(s.rounding, s.below, s.above);
}

void sr_gate(Address x, Address gate, Address low, Address residual, Address y, int64_t planes,
             int64_t h, int64_t w, int64_t low_h, int64_t low_w, int64_t image_h, int64_t image_w,
             int64_t top, int64_t left, float offset) {
  py::gil_scoped_release release;
  tops::sr_gate({floats(x), floats(gate), floats(low), floats(residual),
                 reinterpret_cast<float*>(y), planes, h, w, low_h, low_w, image_h, image_w, top,
                 left, offset});
}

void bind_machine(py::module_& m) {
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const tops::IsaReport& r : tops::isa_report())
      if (r.reason.empty()) names.push_back(r.name);
    return names;
  });
  m.def("isa_report", [] {
    py::dict d;
    for (const tops::IsaReport& r : tops::isa_report()) d[py::str(r.name)] = r.reason;
    return d;
  });
  m.def("isa", [] { return std::string(tops::kernels().name); });
  m.def("set_isa", &tops::force_isa, py::arg("name"));
  m.def("dot_burst", [](int64_t rounds) { return tops::kernels().dot_burst(rounds); });
  m.def("float_burst", [](int64_t rounds) { return tops::kernels().float_burst(rounds); });
  m.def("read_burst",
        [](const Array<uint8_t>& a) { tops::kernels().read_burst(a.data(), a.size()); });
  m.def("num_threads", &tops::num_threads);
  m.def("set_num_threads", &tops::set_num_threads, py::arg("n"));
}

}  // namespace

Weights weights_of(const std::string& name) {
  if (name == "ternary") return Weights::kTernary;
  if (name == "int8") return Weights::kInt8;
  if (name == "float") return Weights::kFloat;
  bad_argument("weights need to be 'ternary', 'int8' or 'float', got '" + name + "'.");
}

}  // namespace tops::bind

PYBIND11_MODULE(_core, m) {
  using namespace tops::bind;
  m.attr("version") = TOPS_VERSION;
  py::register_exception_translator(&translate);
  bind_machine(m);
  m.def("prepack", &prepack);
  m.def("prepack_linear", &prepack_linear);
  m.def("pack_codes", &pack_codes);
  m.def("rows_fit", [](const std::string& kind, int64_t k) {
    return tops::weight_rows_fit(weights_of(kind), k);
  });
  m.def("prefer_sparse", [](const std::string& kind, double occupied, int64_t r, int64_t s) {
    return tops::prefer_sparse(weights_of(kind), occupied, r, s);
  });
  m.def("linear_sparse_pays", [](const std::string& kind, double occupied) {
    return tops::sparse_pays(weights_of(kind), occupied);
  });
  m.def("packed_shape", &packed_shape);
  m.def("conv2d", &conv2d);
  m.def("linear", &linear);
  m.def("sr_gate", &sr_gate);
  m.def("fake_quantize", &fake_quantize);
  m.def("fake_quantize_grad", &fake_quantize_grad);
  bind_engine(m);
  bind_codec(m);
  bind_precision(m);
}
