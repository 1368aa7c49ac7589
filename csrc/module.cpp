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

template <class Kernel>
const Kernel& of(Table<Kernel> table, int kind) {
  if (kind < 0 || kind >= table.size) throw std::out_of_range("no kernel of this number");
  return table.first[kind];
}

const Kernel& kernel(int kind) { return of(chosen().kernels(), kind); }

// The kernel whose products are of bfloat16, if `half`; where the processor has none, floats are as quick as anything.
const Kernel& kernel(int kind, bool half) {
  return half && chosen().halves().size ? of(chosen().halves(), kind) : kernel(kind);
}

template <class Kernel>
nb::list names(Table<Kernel> table) {
  nb::list found;
  for (int i = 0; i < table.size; i++) found.append(table.first[i].name);
  return found;
}

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
bool take_weights(Problem& p, const Kernel& kernel, nb::tuple weights) {
  Array<float> w_ih, w_hh;
  if (static_cast<int>(weights.size()) != 4 + kernel.params || !Tensors::view(nb::handle(weights[0]).ptr(), w_ih) || w_ih.dims != 2) return false;
  if (!Tensors::view(nb::handle(weights[1]).ptr(), w_hh) || w_hh.dims != 2) return false;
  p.inputs = w_ih.shape[1], p.units = w_hh.shape[1];
  const int64_t rows = kernel.gates * p.units;
  p.w_ih = w_ih.data, p.w_hh = w_hh.data;
  for (int k = 0; k < kernel.params; k++)
    if (!floats(weights[4 + k], {p.units}, p.own[k])) return false;
  return w_ih.shape[0] == rows && w_hh.shape[0] == rows && floats(weights[2], {rows}, p.b_ih) &&
         floats(weights[3], {rows}, p.b_hh);
}

// One way through the inputs. Nothing where it does not fit.
std::optional<Problem> problem(const Kernel& kernel, nb::handle xs, nb::handle lengths, nb::tuple state, nb::tuple weights,
                               bool reverse, int threads) {
  Problem p{};
  Array<float> in;
  if (!take_weights(p, kernel, weights) || !Tensors::view(xs.ptr(), in) || in.dims != 3) return {};
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

// For each way (..., saved): the outputs and the last state; and into `saved`, unless it is None, what backward needs. With
// `half` products may be of bfloat16, which nothing is saved of.
nb::object forward(int kind, nb::handle xs, nb::handle lengths, nb::tuple ways, int threads, bool half) {
  const Kernel& kernel = ::kernel(kind, half);
  return for_ways(kernel, kernel.forward, xs, lengths, ways, threads, [&](Problem& p, nb::tuple way) -> nb::object {
    nb::object saved = way[3], c;
    if (!saved.is_none() && (half || !floats(saved, {saved_floats(kernel, p)}, p.saved))) return nb::none();
    nb::object ys = fresh({p.batch, p.steps, p.units}, &p.y), h = fresh({p.batch, p.units}, &p.h_last);
    if (kernel.fields > 1) c = fresh({p.batch, p.units}, &p.c_last);
    return nb::make_tuple(ys, tuple_of(h, c));
  });
}

// For layers (state, weights) on top of each other: the outputs of the uppermost, and the last state of each.
nb::object forward_stack(int kind, nb::handle xs, nb::handle lengths, nb::tuple layers, int threads, bool half) {
  const Kernel& kernel = ::kernel(kind, half);
  std::vector<Problem> problems;
  nb::list lasts;
  nb::object ys = nb::borrow(xs);
  threads = threads_now(threads);
  std::vector<nb::object> between;  // kept until all is done
  for (nb::handle one : layers) {
    nb::tuple layer = nb::cast<nb::tuple>(one);
    std::optional<Problem> p = problem(kernel, ys, lengths, layer[0], layer[1], false, threads);
    if (!p || p->batch > MOST_STACKED_ROWS) return nb::none();
    nb::object c;
    between.push_back(ys);
    ys = fresh({p->batch, p->steps, p->units}, &p->y);
    nb::object h = fresh({p->batch, p->units}, &p->h_last);
    if (kernel.fields > 1) c = fresh({p->batch, p->units}, &p->c_last);
    lasts.append(tuple_of(h, c));
    problems.push_back(*p);
  }
  {
    nb::gil_scoped_release release;
    kernel.forward_stack(problems.data(), static_cast<int>(problems.size()));
  }
  return nb::make_tuple(ys, lasts);
}

// For each way (..., saved, outputs, gradient of the outputs, gradients of the last state): the gradients of the inputs (None
// without `wants_dx`), of the fields of the state as a tuple, and of the weights as a tuple.
nb::object backward(int kind, nb::handle xs, nb::handle lengths, nb::tuple ways, int threads, bool wants_dx) {
  const Kernel& kernel = ::kernel(kind);
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
    nb::list dweights;
    for (const nb::object& one : {dw_ih, dw_hh, db_ih, db_hh}) dweights.append(one);
    for (int k = 0; k < kernel.params; k++) dweights.append(fresh({p.units}, &p.down[k]));
    return nb::make_tuple(dxs, tuple_of(dh, dc), nb::tuple(dweights));
  });
}

// --- what recurs after a projection ---

bool fits(const Array<float>& array, const Shape& wanted, const Following& p) {
  auto size = [&](Side side) { return side == Side::units ? p.units : p.outputs; };
  const int64_t rows = wanted.blocks * size(wanted.rows);
  return wanted.columns == Side::none ? array.is({rows}) : array.is({rows, size(wanted.columns)});
}

// The state of a follower as far as it tells the sizes.
bool take_state(Following& p, const Follower& follower, nb::tuple state) {
  Array<float> first, last;
  if (static_cast<int>(state.size()) != follower.fields || follower.fields < 1) return false;
  if (!Tensors::view(nb::handle(state[0]).ptr(), first) || first.dims != 2) return false;
  if (!Tensors::view(nb::handle(state[follower.fields - 1]).ptr(), last) || last.dims != 2) return false;
  p.batch = first.shape[0], p.outputs = first.shape[1], p.units = last.shape[1];
  p.state[0] = first.data, p.state[follower.fields - 1] = last.data;
  return last.shape[0] == p.batch && p.batch > 0 && (follower.projects || p.outputs == p.units);
}

// Where the blocks of `us` begin, one tensor after the other, each of some blocks side by side.
bool take_blocks(const Following& p, int64_t& steps, int blocks, nb::tuple us, const float** starts, int64_t* strides) {
  int found = 0;
  for (nb::handle one : us) {
    Array<float> u;
    if (!Tensors::view(one.ptr(), u) || u.dims != 3 || u.shape[0] != p.batch || (found && u.shape[1] != steps)) return false;
    const int here = p.units ? static_cast<int>(std::min<int64_t>(u.shape[2] / p.units, MOST_BLOCKS + 1)) : 0;
    if (here * p.units != u.shape[2] || here < 1 || found + here > blocks) return false;
    steps = u.shape[1];
    for (int k = 0; k < here; k++, found++) starts[found] = u.data + k * p.units, strides[found] = u.shape[2];
  }
  return found == blocks;
}

std::optional<Following> following(const Follower& follower, nb::tuple us, nb::handle lengths, nb::tuple state, nb::tuple params,
                                   int threads) {
  Following p{};
  if (!take_state(p, follower, state)) return {};
  if (!take_blocks(p, p.steps, follower.blocks, us, p.u, p.stride)) return {};
  if (p.batch * p.steps >= LARGEST / std::max<int64_t>(1, 16 * std::max(p.units, p.outputs))) return {};
  if (static_cast<int>(params.size()) != follower.params) return {};
  for (int k = 0; k < follower.params; k++) {
    Array<float> own;
    if (!Tensors::view(nb::handle(params[k]).ptr(), own) || !fits(own, follower.shapes[k], p)) return {};
    p.params[k] = own.data;
  }
  if (!lengths.is_none()) {
    Array<int64_t> ends;
    if (!Tensors::view(lengths.ptr(), ends) || !ends.is({p.batch})) return {};
    p.lengths = ends.data;
  }
  p.threads = threads_now(threads);
  return p;
}

int64_t saved_floats(const Follower& follower, const Following& p) {
  return p.batch * p.steps * follower.saved_floats(p.units);
}

// The outputs and the last state; and into `saved`, unless it is None, what backward needs.
nb::object follow(int kind, nb::tuple us, nb::handle lengths, nb::tuple state, nb::tuple params, nb::handle saved, int threads) {
  const Follower& follower = of(chosen().followers(), kind);
  std::optional<Following> p = following(follower, us, lengths, state, params, threads);
  if (!p || (!saved.is_none() && !floats(saved, {saved_floats(follower, *p)}, p->saved))) return nb::none();
  nb::object ys = fresh({p->batch, p->steps, follower.says * p->outputs}, &p->y), last[MOST_FIELDS];
  for (int f = 0; f < follower.fields; f++) last[f] = fresh({p->batch, f ? p->units : p->outputs}, &p->last[f]);
  {
    nb::gil_scoped_release release;
    follower.forward(*p);
  }
  return nb::make_tuple(ys, tuple_of(last[0], last[1]));
}

// The gradients of `us`, of the state and of the parameters, each a tuple; `saved` and `ys` as `follow` gave them, the gradients
// that come in each a tensor or None.
nb::object follow_back(int kind, nb::tuple us, nb::handle lengths, nb::tuple state, nb::tuple params, nb::handle saved,
                       nb::handle ys, nb::handle dys, nb::tuple dlast, int threads) {
  const Follower& follower = of(chosen().followers(), kind);
  std::optional<Following> p = following(follower, us, lengths, state, params, threads);
  if (!p || static_cast<int>(dlast.size()) != follower.fields) return nb::none();
  const std::initializer_list<int64_t> outputs = {p->batch, p->steps, follower.says * p->outputs};
  if (!floats(saved, {saved_floats(follower, *p)}, p->saved) || !floats(ys, outputs, p->y)) return nb::none();
  if (!floats_or_none(dys, outputs, p->dy)) return nb::none();
  nb::list dus, dparams;
  nb::object dstate[MOST_FIELDS];
  for (int f = 0; f < follower.fields; f++) {
    const int64_t size = f ? p->units : p->outputs;
    if (!floats_or_none(dlast[f], {p->batch, size}, p->dlast[f])) return nb::none();
    dstate[f] = fresh({p->batch, size}, &p->dstate[f]);
  }
  int block = 0;
  for (nb::handle one : us) {
    float* data;
    const int64_t row = p->stride[block];
    dus.append(fresh({p->batch, p->steps, row}, &data));
    for (int64_t at = 0; at < row; at += p->units) p->du[block++] = data + at;
    (void)one;
  }
  for (int k = 0; k < follower.params; k++) {
    const Shape& shape = follower.shapes[k];
    const int64_t rows = shape.blocks * (shape.rows == Side::units ? p->units : p->outputs);
    dparams.append(shape.columns == Side::none
                       ? fresh({rows}, &p->dparams[k])
                       : fresh({rows, shape.columns == Side::units ? p->units : p->outputs}, &p->dparams[k]));
  }
  {
    nb::gil_scoped_release release;
    follower.backward(*p);
  }
  return nb::make_tuple(nb::tuple(dus), tuple_of(dstate[0], dstate[1]), nb::tuple(dparams));
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

Packed* pack(int kind, nb::tuple weights, int threads, bool half) {
  const Kernel& kernel = ::kernel(kind, half);
  Problem p{};
  p.batch = p.steps = 1, p.threads = threads;
  if (!take_weights(p, kernel, weights)) throw std::runtime_error("weights that are not contiguous float32 on the CPU");
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
  m.def("gates", [](int kind) { return kernel(kind).gates; });
  m.def("fields", [](int kind) { return kernel(kind).fields; });
  m.def("params", [](int kind) { return kernel(kind).params; });
  m.def("says", [](int kind) { return of(chosen().followers(), kind).says; });
  m.def("stacked_rows", [] { return MOST_STACKED_ROWS; });
  m.def("multiplies_halves", [] { return chosen().halves().size > 0; });
  m.def("multiplies_tiles", [] { return chosen().halves().size > 0 && has_tiles(); });
  m.def("instruction_set", [] { return std::string(chosen().name); });
  m.def("saved_floats", [](int kind, int64_t units) {
    const Kernel& kernel = ::kernel(kind);
    return kernel.saved_floats(1, 1, kernel.widest(units));
  });
  m.def("forward", forward, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.def("forward_stack", forward_stack, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.def("backward", backward, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.def("sweep", sweep);
  m.def("kernels", [] { return names(chosen().kernels()); });
  m.def("followers", [] { return names(chosen().followers()); });
  m.def("followers_saved_floats", [](int kind, int64_t units) { return of(chosen().followers(), kind).saved_floats(units); });
  m.def("follow", follow, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
  m.def("follow_back", follow_back, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg().none(), nb::arg(), nb::arg());
  nb::class_<Packed>(m, "Packed").def("step", &Packed::step);
  m.def("pack", pack, nb::rv_policy::take_ownership);
}
