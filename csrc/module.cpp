// The Python face: torch's tensors in and out. Whatever is not an ordinary tensor of float32 on the CPU that lies in order is
// answered with None, and the caller does otherwise.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

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

nb::object fresh(std::initializer_list<int64_t> shape, float** data) {
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

// One way through the inputs. Nothing where it does not fit.
std::optional<Problem> problem(const Kernel& kernel, nb::handle xs, nb::handle lengths, nb::tuple state, nb::tuple weights,
                               bool reverse, int threads) {
  Problem p{};
  Array<float> in;
  if (!take_weights(p, kernel.gates, weights) || !Tensors::view(xs.ptr(), in) || in.dims != 3) return {};
  p.batch = in.shape[0], p.steps = in.shape[1], p.x = in.data;
  const int64_t widest = std::max<int64_t>({1, p.inputs, (kernel.gates + 1) * p.units});
  if (in.shape[2] != p.inputs || p.batch < 1 || p.batch * p.steps >= LARGEST / widest) return {};
  if (static_cast<int>(state.size()) != kernel.fields) return {};
  if (!floats(state[0], {p.batch, p.units}, p.h0)) return {};
  if (kernel.fields > 1 && !floats(state[1], {p.batch, p.units}, p.c0)) return {};
  if (!lengths.is_none()) {
    Array<int64_t> ends;
    if (!Tensors::view(lengths.ptr(), ends) || !ends.is({p.batch})) return {};
    p.lengths = ends.data;
  }
  p.reverse = reverse, p.threads = threads;
  return p;
}

int64_t saved_floats(const Kernel& kernel, const Problem& p) {
  return p.batch * p.steps * kernel.saved_floats(1, 1, kernel.widest(p.units));
}

nb::object tuple_of(nb::object h, nb::object c) { return c.is_valid() ? nb::make_tuple(h, c) : nb::make_tuple(h); }

// Does `work` for several ways through the same inputs, side by side. A way begins with (state, weights, reverse); `results`
// takes from it what else the problem needs and gives what is made of it, or None where something does not fit.
template <class Results>
nb::object for_ways(const Kernel& kernel, void (*work)(const Problem*, int), nb::handle xs, nb::handle lengths,
                    nb::tuple ways, int threads, Results&& results) {
  std::vector<Problem> problems;
  nb::list made;
  threads = threads_now(threads);
  for (nb::handle one : ways) {
    nb::tuple way = nb::cast<nb::tuple>(one);
    std::optional<Problem> p = problem(kernel, xs, lengths, way[0], way[1], nb::cast<bool>(way[2]), threads);
    if (!p) return nb::none();
    nb::object result = results(*p, way);
    if (result.is_none()) return result;
    problems.push_back(*p);
    made.append(result);
  }
  {
    nb::gil_scoped_release release;
    work(problems.data(), static_cast<int>(problems.size()));
  }
  return made;
}

// For each way (..., saved): the outputs and the last state; and into `saved`, unless it is None, what backward needs.
nb::object forward(int kind, nb::handle xs, nb::handle lengths, nb::tuple ways, int threads) {
  const Kernel kernel = ::kernel(kind);
  return for_ways(kernel, kernel.forward, xs, lengths, ways, threads, [&](Problem& p, nb::tuple way) -> nb::object {
    nb::object saved = way[3], c;
    if (!saved.is_none() && !floats(saved, {saved_floats(kernel, p)}, p.saved)) return nb::none();
    nb::object ys = fresh({p.batch, p.steps, p.units}, &p.y), h = fresh({p.batch, p.units}, &p.h_last);
    if (kernel.fields > 1) c = fresh({p.batch, p.units}, &p.c_last);
    return nb::make_tuple(ys, tuple_of(h, c));
  });
}

// For each way (..., saved, outputs, gradient of the outputs, gradients of the last state): the gradients of the inputs (None
// without `wants_dx`), of the fields of the state as a tuple, and of the weights as a tuple.
nb::object backward(int kind, nb::handle xs, nb::handle lengths, nb::tuple ways, int threads, bool wants_dx) {
  const Kernel kernel = ::kernel(kind);
  return for_ways(kernel, kernel.backward, xs, lengths, ways, threads, [&](Problem& p, nb::tuple way) -> nb::object {
    nb::tuple dlast = way[6];
    if (static_cast<int>(dlast.size()) != kernel.fields) return nb::none();
    if (!floats(way[3], {saved_floats(kernel, p)}, p.saved) || !floats(way[4], {p.batch, p.steps, p.units}, p.y)) return nb::none();
    if (!floats_or_none(way[5], {p.batch, p.steps, p.units}, p.dy)) return nb::none();
    if (!floats_or_none(dlast[0], {p.batch, p.units}, p.dh_last)) return nb::none();
    if (kernel.fields > 1 && !floats_or_none(dlast[1], {p.batch, p.units}, p.dc_last)) return nb::none();
    const int64_t rows = kernel.gates * p.units;
    nb::object dxs = nb::none(), dh = fresh({p.batch, p.units}, &p.dh0), dc;
    if (wants_dx) dxs = fresh({p.batch, p.steps, p.inputs}, &p.dx);
    if (kernel.fields > 1) dc = fresh({p.batch, p.units}, &p.dc0);
    nb::object dw_ih = fresh({rows, p.inputs}, &p.dw_ih), dw_hh = fresh({rows, p.units}, &p.dw_hh);
    nb::object db_ih = fresh({rows}, &p.db_ih), db_hh = fresh({rows}, &p.db_hh);
    return nb::make_tuple(dxs, tuple_of(dh, dc), nb::make_tuple(dw_ih, dw_hh, db_ih, db_hh));
  });
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

// How many units were turned over; -1 where a tensor is not one of ordinary floats that lies in order.
int64_t sweep(nb::handle weights, nb::handle order, nb::handle states, nb::handle fields, float tiny, int threads) {
  Array<float> on;
  Array<int64_t> turns;
  if (!Tensors::view(states.ptr(), on) || on.dims != 2 || !Tensors::view(order.ptr(), turns)) return -1;
  Sweep p{on.shape[0], on.shape[1], threads_now(threads), tiny, nullptr, turns.data, on.data, nullptr};
  if (!turns.is({p.units}) || !floats(weights, {p.units, p.units}, p.weights)) return -1;
  if (!floats(fields, {p.rows, p.units}, p.fields)) return -1;
  nb::gil_scoped_release release;
  return chosen().sweep(p);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // what Python still holds when it ends is no fault
  watch_for_forks();
  m.doc() = "The recurrences of csrc/, from tensors to tensors.";
  m.def("open", [](nb::handle tensor, nb::handle parameter) { return Tensors::open(tensor.ptr(), parameter.ptr()); });
  m.def("instruction_set", [] { return std::string(chosen().name); });
  m.def("saved_floats", [](int kind, int64_t units) {
    const Kernel kernel = ::kernel(kind);
    return kernel.saved_floats(1, 1, kernel.widest(units));
  });
  m.def("forward", forward, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg());
  m.def("backward", backward, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.def("sweep", sweep);
  nb::class_<Packed>(m, "Packed").def("step", &Packed::step);
  m.def("pack", pack, nb::rv_policy::take_ownership);
}
