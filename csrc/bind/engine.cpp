// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <tuple>
#include <vector>

#include "base/threads.h"
#include "bind/bind.h"
#include "program/program.h"

namespace tops::bind {
namespace {

bool is_list(const py::handle& v) {
  return py::isinstance<py::list>(v) || py::isinstance<py::tuple>(v);
}

// An attribute of a list or tuple: numbers, of which some may be None.
Attributes::Numbers numbers_of(const std::string& name, const py::sequence& list) {
  Attributes::Numbers numbers;
  for (const py::handle& item : list) {
    if (item.is_none())
      numbers.emplace_back();
    else if (PyNumber_Check(item.ptr()))
      numbers.emplace_back(py::cast<double>(py::float_(py::reinterpret_borrow<py::object>(item))));
    else
      bad_argument("expected attribute '" + name + "' as a list of numbers, got another list.");
  }
  return numbers;
}

// An attribute of a list or tuple of these, or of numbers.
Attributes::Value list_of(const std::string& name, const py::sequence& list) {
  if (list.empty() || !is_list(list[0])) return numbers_of(name, list);
  Attributes::Lists lists;
  for (const py::handle& item : list) {
    if (!is_list(item))
      bad_argument("expected attribute '" + name + "' as lists of numbers, got another list.");
    lists.push_back(numbers_of(name, py::reinterpret_borrow<py::sequence>(item)));
  }
  return lists;
}

Attributes::Value attribute_of(const std::string& name, const py::handle& v) {
  if (py::isinstance<py::bool_>(v)) return v.cast<bool>();
  if (py::isinstance<py::str>(v)) return v.cast<std::string>();
  if (py::isinstance<py::array>(v)) {
    const auto a = py::reinterpret_borrow<py::array>(v);
    if (!(a.flags() & py::array::c_style))
      bad_argument("expected attribute '" + name + "' as a contiguous array, got one with gaps.");
    return ArrayView{a.dtype().char_(), a.data(), {a.shape(), a.shape() + a.ndim()}};
  }
  if (PyIndex_Check(v.ptr())) {
    int overflow = 0;
    const int64_t i = PyLong_AsLongLongAndOverflow(py::int_(v.cast<py::object>()).ptr(), &overflow);
    if (overflow)
      bad_argument("expected attribute '" + name + "' in 64 bits, got a larger integer.");
    return i;
  }
  if (is_list(v)) return list_of(name, py::reinterpret_borrow<py::sequence>(v));
  if (PyNumber_Check(v.ptr())) return py::cast<double>(py::float_(v.cast<py::object>()));
  bad_argument("expected attribute '" + name + "' as a bool, a number, a string, numbers or an " +
               "array, got " + py::str(py::type::of(v)).cast<std::string>() + ".");
}

// Attributes that are None are absent. Arrays are read only during the call.
int add(Program& e, const std::string& op, const std::vector<int>& inputs, const py::dict& given) {
  Attributes attributes(op);
  for (const auto& [key, v] : given) {
    const auto name = key.cast<std::string>();
    if (!v.is_none()) attributes.set(name, attribute_of(name, v));
  }
  return e.add(attributes, inputs);
}

Array<float> input_array(const Program& e, const py::array& x, int64_t dims[4]) {
  const ValueType& in = e.nodes().at(0).type();
  const py::ssize_t channels = in.rank == 3 ? 2 : 1;
  if (x.ndim() != in.rank || x.shape(channels) != in.channels)
    bad_argument("expected an input of rank " + std::to_string(in.rank) + " with " +
                 std::to_string(in.channels) + " channels, got rank " + std::to_string(x.ndim()) +
                 (x.ndim() > channels ? " with " + std::to_string(x.shape(channels)) : "") + ".");
  for (py::ssize_t i = 0; i < 4; ++i) dims[i] = i < x.ndim() ? x.shape(i) : 1;
  if (in.rank == 3) std::tie(dims[2], dims[3]) = std::pair(int64_t{1}, dims[1]);
  dims[1] = in.channels;
  return Array<float>::ensure(x);
}

// Of n images as the caller's array has it: [N, C], [N, L, C] or [N, C, H, W].
std::vector<py::ssize_t> shape_of(int rank, int64_t n, const ActivationTensor& g) {
  if (rank == 2) return {n, g.channels};
  if (rank == 3) return {n, g.h * g.w, g.channels};
  return {n, g.channels, g.h, g.w};
}

// One value of a plan as a plain array.
py::array value_array(const ValueType& type, const ActivationTensor& g, const uint8_t* data) {
  const std::vector<py::ssize_t> shape = shape_of(type.rank, g.n, g);
  py::array out = type.is_float ? py::array(Array<float>(shape)) : py::array(Array<uint8_t>(shape));
  if (type.rank == 3)
    tensor_to_nhwc(g, data, out.mutable_data());
  else
    tensor_to_nchw(g, {0, g.h}, data, out.mutable_data());
  return out;
}

struct ArenaLease {
  explicit ArenaLease(std::shared_ptr<const MemoryPlan> p)
      : plan(std::move(p)), arena(plan->take_arena()) {}
  ~ArenaLease() { plan->give_arena(std::move(arena)); }
  std::shared_ptr<const MemoryPlan> plan;
  Buffer arena;
};

// For an input of input_array's dims.
Array<float> output_array(Program& e, const int64_t d[4]) {
  const int id = e.output_node();
  const ActivationTensor out = e.plan(std::min<int64_t>(d[0], 1), d[2], d[3])->grid(id);
  return Array<float>(shape_of(e.nodes()[static_cast<size_t>(id)].type().rank, d[0], out));
}

py::array run(Program& e, const py::array& x) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  Array<float> y = output_array(e, d);
  {
    py::gil_scoped_release release;
    e.run(in.data(), d[0], d[2], d[3], y.mutable_data());
  }
  return y;
}

// (output, sums [N, channels of all integer values], squares, first channel of each value and of
// none).
py::tuple statistics(Program& e, const py::array& x) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  Array<float> y = output_array(e, d);
  const std::vector<int64_t> offset = e.totals_offsets(d[0], d[2], d[3]);
  const std::vector<py::ssize_t> shape{d[0], offset.back()};
  Array<int64_t> sums(shape), squares(shape);
  std::fill_n(sums.mutable_data(), sums.size(), 0);
  std::fill_n(squares.mutable_data(), squares.size(), 0);
  {
    py::gil_scoped_release release;
    const ChannelTotals totals{sums.mutable_data(), squares.mutable_data(), offset.back(), offset};
    e.run(in.data(), d[0], d[2], d[3], y.mutable_data(), &totals);
  }
  return py::make_tuple(y, sums, squares, offset);
}

py::list run_all(Program& e, const py::array& x) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  ArenaLease lease(e.plan(d[0], d[2], d[3], true));
  {
    py::gil_scoped_release release;
    lease.plan->run(in.data(), nullptr, lease.arena);
  }
  py::list out;
  for (size_t i = 0; i < e.nodes().size(); ++i)
    out.append(value_array(e.nodes()[i].type(), lease.plan->grid(static_cast<int>(i)),
                           lease.plan->value(static_cast<int>(i), lease.arena)));
  return out;
}

py::list profile(Program& e, const py::array& x, int repeats) {
  int64_t d[4];
  const Array<float> in = input_array(e, x, d);
  ArenaLease lease(e.plan(d[0], d[2], d[3]));
  std::vector<std::vector<NodeProfile>> runs(static_cast<size_t>(std::max(1, repeats)));
  {
    py::gil_scoped_release release;
    for (auto& r : runs) lease.plan->run(in.data(), nullptr, lease.arena, &r);
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

// Row schedule for an image of this size: output rows per band (0: the whole image), tasks (value,
// first row, end, rows dropped before, rows kept then), and of each value its memory (-1: the
// caller's own), its rows, its padding rows above and below, and the rows its memory holds.
py::dict schedule(Program& e, int64_t h, int64_t w) {
  const std::shared_ptr<const MemoryPlan> plan = e.plan(1, h, w);
  py::list tasks, values;
  for (const RowTask& t : plan->tasks())
    tasks.append(py::make_tuple(t.id, t.rows.begin, t.rows.end, t.drop, t.keep));
  for (size_t i = 0; i < e.nodes().size(); ++i) {
    const int id = static_cast<int>(i);
    const ActivationTensor& g = plan->grid(id);
    values.append(py::make_tuple(plan->memory(id), g.h, g.margin, plan->rows(id)));
  }
  py::dict out;
  out["band"] = plan->band();
  out["tasks"] = tasks;
  out["values"] = values;
  return out;
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<Program>(m, "Engine")
      .def(py::init<>())
      .def("add", &add, py::arg("op"), py::arg("inputs"), py::arg("attrs"))
      .def("output", &Program::output)
      .def("run", &run)
      .def("run_all", &run_all)
      .def("statistics", &statistics)
      .def("profile", &profile, py::arg("x"), py::arg("repeats") = 20)
      .def("peak_bytes", &Program::peak_bytes)
      .def(
          "debug", [](Program& e, int64_t band, bool poison) { e.debug({band, poison}); },
          py::arg("band") = 0, py::arg("poison") = false)
      .def("schedule", &schedule)
      .def("band", [](Program& e, int64_t h, int64_t w) { return e.plan(1, h, w)->band(); });
}

}  // namespace tops::bind
