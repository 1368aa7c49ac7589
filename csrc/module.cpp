// The Python face: torch's tensors in and out. Whatever is not an ordinary tensor of float32 on the CPU that lies in order is
// answered with None, and the caller does otherwise.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

#include "run.hpp"
#include "tensor.hpp"

namespace nb = nanobind;
using namespace recurra;

namespace {

constexpr int64_t LARGEST = int64_t(1) << 40;  // elements of an array: above any memory, and below an overflow of its address

const InstructionSet& chosen() {
  static const InstructionSet* set = [] {
    const char* name = std::getenv("RECURRA_ISA");
    const InstructionSet* found = instruction_set(name && *name ? name : nullptr);
    return found;
  }();
  if (!set) throw std::runtime_error("RECURRA_ISA names an instruction set that this machine does not run; unset it");
  return *set;
}

Kernel kernel(int kind) { return chosen().find(static_cast<Kind>(kind)); }

template <class T = float>
nb::object fresh(std::initializer_list<int64_t> shape, T** data) {
  PyObject* made = Tensors::fresh(shape, data);
  if (!made) throw nb::python_error();
  return nb::steal(made);
}

// Whether this is a tensor of exactly this shape, and its memory.
template <class Pointer>
bool floats(nb::handle tensor, std::initializer_list<int64_t> shape, Pointer& data) {
  Array<float> array;
  if (!Tensors::view(tensor.ptr(), array) || !array.is(shape)) return false;
  data = array.data;
  return true;
}

// The same, where None stands for no array.
bool floats_or_none(nb::handle tensor, std::initializer_list<int64_t> shape, const float*& data) {
  return tensor.is_none() || floats(tensor, shape, data);
}

// The weights of a recurrence as far as they tell its sizes.
bool take_weights(Problem& p, int gates, nb::tuple weights) {
  Array<float> w_ih, w_hh;
  if (weights.size() != 4 || !Tensors::view(nb::handle(weights[0]).ptr(), w_ih) || w_ih.dims != 2) return false;
  if (!Tensors::view(nb::handle(weights[1]).ptr(), w_hh) || w_hh.dims != 2) return false;
  p.inputs = w_ih.shape[1], p.units = w_hh.shape[1];
  const int64_t rows = gates * p.units;
  p.w_ih = w_ih.data, p.w_hh = w_hh.data;
  return w_ih.shape[0] == rows && w_hh.shape[0] == rows && floats(weights[2], {rows}, p.b_ih) &&
         floats(weights[3], {rows}, p.b_hh);
}

// What forward and backward are both given.
struct Given {
  nb::handle xs, lengths;
  nb::tuple state, weights;
  bool reverse;
  int threads;
};

std::optional<Problem> problem(const Kernel& kernel, const Given& given) {
  Problem p{};
  Array<float> xs;
  if (!take_weights(p, kernel.gates, given.weights) || !Tensors::view(given.xs.ptr(), xs) || xs.dims != 3) return {};
  p.batch = xs.shape[0], p.steps = xs.shape[1], p.x = xs.data;
  const int64_t widest = std::max(p.inputs, (kernel.gates + 1) * p.units);
  if (xs.shape[2] != p.inputs || p.batch < 1 || p.batch * p.steps >= LARGEST / widest) return {};
  if (static_cast<int>(given.state.size()) != kernel.fields) return {};
  if (!floats(given.state[0], {p.batch, p.units}, p.h0)) return {};
  if (kernel.fields > 1 && !floats(given.state[1], {p.batch, p.units}, p.c0)) return {};
  if (!given.lengths.is_none()) {
    Array<int64_t> lengths;
    if (!Tensors::view(given.lengths.ptr(), lengths) || !lengths.is({p.batch})) return {};
    p.lengths = lengths.data;
  }
  p.reverse = given.reverse, p.threads = threads_now(given.threads);
  return p;
}

int64_t saved_floats(const Kernel& kernel, const Problem& p) {
  return p.batch * p.steps * kernel.saved_floats(1, 1, kernel.widest(p.units));
}

void run(void (*work)(const Problem&), const Problem& p) {
  nb::gil_scoped_release release;
  work(p);
}

// The outputs and the last state; and into `saved`, unless it is None, what backward needs.
nb::object forward(int kind, nb::handle xs, nb::handle lengths, nb::tuple state, nb::tuple weights, bool reverse, int threads,
                   nb::handle saved) {
  const Kernel kernel = ::kernel(kind);
  std::optional<Problem> found = problem(kernel, {xs, lengths, state, weights, reverse, threads});
  if (!found) return nb::none();
  Problem& p = *found;
  if (!saved.is_none() && !floats(saved, {saved_floats(kernel, p)}, p.saved)) return nb::none();
  nb::object ys = fresh({p.batch, p.steps, p.units}, &p.y), h = fresh({p.batch, p.units}, &p.h_last), c;
  if (kernel.fields > 1) c = fresh({p.batch, p.units}, &p.c_last);
  run(kernel.forward, p);
  return nb::make_tuple(ys, kernel.fields > 1 ? nb::make_tuple(h, c) : nb::make_tuple(h));
}

// The gradients of the inputs (None without `wants_dx`), of the fields of the state as a tuple, and of the weights as a tuple.
nb::object backward(int kind, nb::handle xs, nb::handle lengths, nb::tuple state, nb::tuple weights, bool reverse, int threads,
                    nb::handle ys, nb::handle saved, nb::handle dys, nb::tuple dlast, bool wants_dx) {
  const Kernel kernel = ::kernel(kind);
  std::optional<Problem> found = problem(kernel, {xs, lengths, state, weights, reverse, threads});
  if (!found) return nb::none();
  Problem& p = *found;
  if (static_cast<int>(dlast.size()) != kernel.fields) return nb::none();
  if (!floats(ys, {p.batch, p.steps, p.units}, p.y) || !floats(saved, {saved_floats(kernel, p)}, p.saved)) return nb::none();
  if (!floats_or_none(dys, {p.batch, p.steps, p.units}, p.dy)) return nb::none();
  if (!floats_or_none(dlast[0], {p.batch, p.units}, p.dh_last)) return nb::none();
  if (kernel.fields > 1 && !floats_or_none(dlast[1], {p.batch, p.units}, p.dc_last)) return nb::none();
  const int64_t rows = kernel.gates * p.units;
  nb::object dxs = nb::none(), dh = fresh({p.batch, p.units}, &p.dh0), dc;
  if (wants_dx) dxs = fresh({p.batch, p.steps, p.inputs}, &p.dx);
  if (kernel.fields > 1) dc = fresh({p.batch, p.units}, &p.dc0);
  nb::object dw_ih = fresh({rows, p.inputs}, &p.dw_ih), dw_hh = fresh({rows, p.units}, &p.dw_hh);
  nb::object db_ih = fresh({rows}, &p.db_ih), db_hh = fresh({rows}, &p.db_hh);
  run(kernel.backward, p);
  return nb::make_tuple(dxs, kernel.fields > 1 ? nb::make_tuple(dh, dc) : nb::make_tuple(dh),
                        nb::make_tuple(dw_ih, dw_hh, db_ih, db_hh));
}

// A stepper that Python holds.
struct Packed {
  std::unique_ptr<Stepper> stepper;
  int64_t inputs, units;
  int fields;

  // The output and the next state, of the type of `state`.
  nb::object step(nb::handle x, nb::handle state) {
    Array<float> in;
    if (!Tensors::view(x.ptr(), in) || in.dims != 2 || in.shape[1] != inputs || !PyTuple_Check(state.ptr())) return nb::none();
    if (PyTuple_GET_SIZE(state.ptr()) != fields) return nb::none();
    const int64_t batch = in.shape[0];
    const float* before[2] = {};
    for (int i = 0; i < fields; i++)
      if (!floats(PyTuple_GET_ITEM(state.ptr(), i), {batch, units}, before[i])) return nb::none();
    float *h, *c = nullptr;
    nb::object y = fresh({batch, units}, &h);
    nb::object parts = fields == 1 ? nb::make_tuple(y) : nb::make_tuple(y, fresh({batch, units}, &c));
    stepper->step(batch, in.data, before[0], before[1], h, c);
    // As `tuple.__new__(type(state), parts)`: the constructor of a named tuple is a function of Python.
    nb::object given = nb::make_tuple(parts);
    PyObject* after = PyTuple_Type.tp_new(Py_TYPE(state.ptr()), given.ptr(), nullptr);
    if (!after) throw nb::python_error();
    return nb::make_tuple(y, nb::steal(after));
  }
};

Packed* pack(int kind, nb::tuple weights, int threads) {
  const Kernel kernel = ::kernel(kind);
  Problem p{};
  p.batch = p.steps = 1, p.threads = threads;
  if (!take_weights(p, kernel.gates, weights)) throw std::runtime_error("weights that are not contiguous float32 on the CPU");
  return new Packed{kernel.stepper(p), p.inputs, p.units, kernel.fields};
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // what Python still holds when it ends is no fault
  m.doc() = "The recurrences of csrc/, from tensors to tensors.";
  m.def("open", [](nb::handle tensor, nb::handle parameter) { return Tensors::open(tensor.ptr(), parameter.ptr()); });
  m.def("instruction_set", [] { return std::string(chosen().name); });
  m.def("saved_floats", [](int kind, int64_t units) {
    const Kernel kernel = ::kernel(kind);
    return kernel.saved_floats(1, 1, kernel.widest(units));
  });
  const auto none = [](const char* name) { return nb::arg(name).none(); };
  m.def("forward", forward, nb::arg(), nb::arg(), none("lengths"), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        none("saved"));
  m.def("backward", backward, nb::arg(), nb::arg(), none("lengths"), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        none("saved"), none("dys"), nb::arg(), nb::arg());
  nb::class_<Packed>(m, "Packed").def("step", &Packed::step);
  m.def("pack", pack, nb::rv_policy::take_ownership);
}
