// SPDX-License-Identifier: Apache-2.0
// The only file that knows Python. Every function takes addresses and sizes or NumPy arrays, never
// a torch type.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "codec/codec.h"
#include "engine/engine.h"
#include "engine/linear.h"
#include "engine/ops.h"
#include "engine/row_weights.h"
#include "engine/threads.h"
#include "isa/error.h"
#include "isa/isa.h"

namespace py = pybind11;

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

using Address = uintptr_t;
using Pair = std::pair<int64_t, int64_t>;
template <class T>
using Array = py::array_t<T, py::array::c_style>;

[[noreturn]] void bad_argument(const std::string& what) {
  throw tops::Error(tops::ErrorKind::kUnsupportedShape, what);
}

tops::Weights weights_of(const std::string& name) {
  if (name == "ternary") return tops::Weights::kTernary;
  if (name == "int8") return tops::Weights::kInt8;
  if (name == "float") return tops::Weights::kFloat;
  bad_argument("weights need to be 'ternary', 'int8' or 'float', got '" + name + "'.");
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

// Weights [N, K] of a linear layer. kind: "dense", "sparse", or, of ternary ones, "two_bit" or
// "base_three", between which "dense" chooses.
Array<uint8_t> prepack_linear(const std::string& kind, const std::string& weights, Address w,
                              int64_t n, int64_t k) {
  const void* const plain = reinterpret_cast<const void*>(w);
  const tops::Weights type = weights_of(weights);
  tops::Buffer blob;
  {
    py::gil_scoped_release release;
    if (kind == "two_bit" || kind == "base_three")
      blob = tops::pack_rows(
          kind == "two_bit" ? tops::RowCodes::kTwoBit : tops::RowCodes::kBaseThree, plain, n, k, 0);
    else if (kind == "dense" || kind == "sparse")
      blob = tops::pack_linear(kind == "sparse", type, plain, n, k);
    else
      bad_argument("a packing needs to be 'dense', 'sparse', 'two_bit' or 'base_three', got '" +
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
  const tops::TensorRef in = tensor(x, x_dtype, x_scale, x_zp),
                        out = tensor(y, y_dtype, y_scale, y_zp);
  const tops::Weights kind = weights_of(weights);
  py::gil_scoped_release release;
  tops::linear(in, m, k, kind, n, reinterpret_cast<const uint8_t*>(packed), packed_bytes,
               reinterpret_cast<const float*>(scale), reinterpret_cast<const float*>(bias), out);
}

// Checks that the arrays have the sizes that the shape says; their memory is read only during the
// call.
tops::ConvWeights layer_weights(const std::string& kind, const py::array& w,
                                const tops::WeightShape& shape, const Array<float>& scale,
                                const std::optional<Array<float>>& bias, int sparse) {
  const tops::Weights weights = weights_of(kind);
  tops::check_shape(shape, weights);
  const int64_t taps = shape.o * shape.r * shape.s, quads = (shape.i + 3) / 4;
  const char want = weights == tops::Weights::kTernary ? 'B'
                    : weights == tops::Weights::kInt8  ? 'b'
                                                       : 'f';
  const int64_t size = taps * (weights == tops::Weights::kTernary ? quads
                               : weights == tops::Weights::kInt8  ? 4 * quads
                                                                  : shape.i);
  if (w.dtype().char_() != want || w.size() != size || !(w.flags() & py::array::c_style))
    bad_argument(kind + " weights need " + std::to_string(size) + " contiguous elements of type '" +
                 want + "', got " + std::to_string(w.size()) + " of '" + w.dtype().char_() + "'.");
  if (scale.size() != shape.o || (bias && bias->size() != shape.o))
    bad_argument("scale and bias need " + std::to_string(shape.o) + " values each.");
  return {weights, w.data(), shape, scale.data(), bias ? bias->data() : nullptr, sparse};
}

Array<float> input_array(const tops::Engine& e, const py::array& x, int64_t dims[4]) {
  const tops::Node& in = e.nodes().at(0);
  const py::ssize_t rank = in.rank2 ? 2 : 4;
  if (x.ndim() != rank || x.shape(1) != in.channels)
    bad_argument("the program needs an input of rank " + std::to_string(rank) + " with " +
                 std::to_string(in.channels) + " channels, got rank " + std::to_string(x.ndim()) +
                 (x.ndim() > 1 ? " with " + std::to_string(x.shape(1)) : "") + ".");
  for (py::ssize_t i = 0; i < 4; ++i) dims[i] = i < x.ndim() ? x.shape(i) : 1;
  return Array<float>::ensure(x);
}

// One value of a plan as a plain array: NCHW, or NC for rank 2.
py::array value_array(const tops::Node& node, const tops::Grid& g, const uint8_t* data) {
  std::vector<py::ssize_t> shape = {g.n, g.channels};
  if (!node.rank2) shape.insert(shape.end(), {g.h, g.w});
  py::array out = node.is_float ? py::array(Array<float>(shape)) : py::array(Array<uint8_t>(shape));
  tops::grid_to_nchw(g, data, out.mutable_data());
  return out;
}

struct ArenaLease {
  explicit ArenaLease(std::shared_ptr<const tops::Plan> p)
      : plan(std::move(p)), arena(plan->take_arena()) {}
  ~ArenaLease() { plan->give_arena(std::move(arena)); }
  std::shared_ptr<const tops::Plan> plan;
  tops::Buffer arena;
};

py::array run(tops::Engine& e, const py::array& x) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  const int id = e.output_node();
  const tops::Grid out = e.plan(std::min<int64_t>(d[0], 1), d[2], d[3])->grid(id);
  std::vector<py::ssize_t> shape = {d[0], out.channels};
  if (!e.nodes()[static_cast<size_t>(id)].rank2) shape.insert(shape.end(), {out.h, out.w});
  Array<float> y(shape);
  {
    py::gil_scoped_release release;
    e.run(in.data(), d[0], d[2], d[3], y.mutable_data());
  }
  return y;
}

py::list run_all(tops::Engine& e, const py::array& x) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  ArenaLease lease(e.plan(d[0], d[2], d[3], true));
  {
    py::gil_scoped_release release;
    lease.plan->run(in.data(), lease.arena);
  }
  py::list out;
  for (size_t i = 0; i < e.nodes().size(); ++i)
    out.append(value_array(e.nodes()[i], lease.plan->grid(static_cast<int>(i)),
                           lease.plan->value(static_cast<int>(i), lease.arena)));
  return out;
}

py::list profile(tops::Engine& e, const py::array& x, int repeats) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  ArenaLease lease(e.plan(d[0], d[2], d[3]));
  std::vector<std::vector<tops::NodeProfile>> runs(static_cast<size_t>(std::max(1, repeats)));
  {
    py::gil_scoped_release release;
    for (auto& r : runs) lease.plan->run(in.data(), lease.arena, &r);
  }
  py::list out;
  for (size_t i = 0; i < e.nodes().size(); ++i) {
    std::vector<double> ms;
    for (const auto& r : runs) ms.push_back(r[i].ms);
    std::nth_element(ms.begin(), ms.begin() + static_cast<std::ptrdiff_t>(ms.size() / 2), ms.end());
    py::dict row;
    row["node"] = i;
    row["op"] = runs[0][i].op;
    row["ms"] = ms[ms.size() / 2];
    row["macs"] = runs[0][i].macs;
    row["density"] = runs[0][i].density;
    out.append(row);
  }
  return out;
}

tops::Window window(const Pair& stride, const Pair& padding, const Pair& dilation) {
  return {stride.first,   stride.second,  padding.first,
          padding.second, dilation.first, dilation.second};
}

void bind_engine(py::module_& m) {
  using tops::Engine;
  using MaybeBias = std::optional<Array<float>>;
  py::class_<Engine>(m, "Engine")
      .def(py::init<>())
      .def("input", &Engine::input, py::arg("channels"), py::arg("rank"))
      .def("quantize", &Engine::quantize, py::arg("x"), py::arg("scale"), py::arg("zero_point"))
      .def("dequantize", &Engine::dequantize, py::arg("x"))
      .def("conv2d",
           [](Engine& e, int x, int residual, const std::string& kind, const py::array& w,
              int64_t o, int64_t r, int64_t s, int64_t i, const Array<float>& scale,
              const MaybeBias& bias, const Pair& stride, const Pair& padding, const Pair& dilation,
              int64_t groups, float lo, float hi, float y_scale, int y_zp, int sparse) {
             return e.conv2d(x, residual,
                             layer_weights(kind, w, {o, r, s, i, groups}, scale, bias, sparse),
                             window(stride, padding, dilation), {lo, hi, y_scale, y_zp});
           })
      .def("linear",
           [](Engine& e, int x, int residual, const std::string& kind, const py::array& w,
              int64_t n, int64_t k, const Array<float>& scale, const MaybeBias& bias, float lo,
              float hi, float y_scale, int y_zp, int sparse) {
             return e.linear(x, residual,
                             layer_weights(kind, w, {n, 1, 1, k, 1}, scale, bias, sparse),
                             {lo, hi, y_scale, y_zp});
           })
      .def("max_pool2d",
           [](Engine& e, int x, const Pair& kernel, const Pair& stride, const Pair& padding,
              const Pair& dilation, bool ceil) {
             return e.max_pool2d(x, kernel.first, kernel.second, window(stride, padding, dilation),
                                 ceil);
           })
      .def("avg_pool2d",
           [](Engine& e, int x, const Pair& kernel, const Pair& stride, const Pair& padding,
              bool ceil, bool include_pad, int64_t divisor, float y_scale, int y_zp) {
             constexpr float inf = std::numeric_limits<float>::infinity();
             return e.avg_pool2d(x, kernel.first, kernel.second, window(stride, padding, {1, 1}),
                                 ceil, include_pad, divisor, {-inf, inf, y_scale, y_zp});
           })
      .def("adaptive_avg_pool2d",
           [](Engine& e, int x, int64_t oh, int64_t ow, float y_scale, int y_zp) {
             constexpr float inf = std::numeric_limits<float>::infinity();
             return e.adaptive_avg_pool2d(x, oh, ow, {-inf, inf, y_scale, y_zp});
           })
      .def("add",
           [](Engine& e, int a, int b, float lo, float hi, float y_scale, int y_zp) {
             if (b < 0) bad_argument("add needs two values.");
             return e.add(a, b, {lo, hi, y_scale, y_zp});
           })
      .def("clamp", [](Engine& e, int x, float lo, float hi, float y_scale,
                       int y_zp) { return e.add(x, -1, {lo, hi, y_scale, y_zp}); })
      .def("flatten", &Engine::flatten)
      .def("activation", &Engine::activation)
      .def("mul", &Engine::mul)
      .def("concat", &Engine::concat)
      .def("slice", &Engine::slice)
      .def("pixel_shuffle", &Engine::pixel_shuffle)
      .def("pixel_unshuffle", &Engine::pixel_unshuffle)
      .def("channel_shuffle", &Engine::channel_shuffle)
      .def("resize", &Engine::resize)
      .def("unflatten", &Engine::unflatten)
      .def("softmax", &Engine::softmax)
      .def("layer_norm", &Engine::layer_norm)
      .def("output", &Engine::output)
      .def("run", &run)
      .def("run_all", &run_all)
      .def("profile", &profile, py::arg("x"), py::arg("repeats") = 20)
      .def("peak_bytes", &Engine::peak_bytes);
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

// Codec: tensors are int8 [rows, width], see codec/codec.h.
Array<uint8_t> codec_encode(const std::vector<std::pair<std::string, Array<int8_t>>>& tensors) {
  std::vector<tops::CodecShape> shapes;
  std::vector<const int8_t*> values;
  for (const auto& [kind, array] : tensors) {
    if (array.ndim() != 2)
      bad_argument("codec_encode needs arrays [rows, width], got " + std::to_string(array.ndim()) +
                   " axes.");
    shapes.push_back({tops::codec_kind(kind), static_cast<size_t>(array.shape(0)),
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
  std::vector<tops::CodecShape> shapes;
  for (const auto& [kind, rows, width] : specs)
    shapes.push_back({tops::codec_kind(kind), rows, width});
  const auto size = static_cast<size_t>(payload.size());
  tops::codec_check(shapes, size);  // before anything is allocated for them
  std::vector<Array<int8_t>> tensors;
  std::vector<int8_t*> values;
  for (const tops::CodecShape& s : shapes) {
    const size_t bytes = codes && s.kind == tops::CodecKind::kTernary ? (s.width + 3) / 4 : s.width;
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

void bind_codec(py::module_& m) {
  m.def("codec_encode", &codec_encode);
  m.def("codec_decode", &codec_decode, py::arg("payload"), py::arg("specs"),
        py::arg("codes") = false);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("version") = TOPS_VERSION;
  py::register_exception_translator(&translate);
  bind_machine(m);
  m.def("prepack", &prepack);
  m.def("prepack_linear", &prepack_linear);
  m.def("pack_codes", &pack_codes);
  m.def("prefer_sparse", [](const std::string& kind, double occupied, int64_t r, int64_t s) {
    return tops::prefer_sparse(weights_of(kind), occupied, r, s);
  });
  m.def("linear_sparse_pays", [](const std::string& kind, double occupied) {
    return tops::sparse_pays(weights_of(kind), occupied);
  });
  m.def("packed_shape", &packed_shape);
  m.def("conv2d", &conv2d);
  m.def("linear", &linear);
  bind_engine(m);
  bind_codec(m);
}
