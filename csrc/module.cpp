// The Python face: pointers and sizes in, nothing kept.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "run.hpp"

namespace nb = nanobind;
using namespace recurra;

namespace {

const InstructionSet& chosen() {
  static const InstructionSet* set = [] {
    const char* name = std::getenv("RECURRA_ISA");
    const InstructionSet* found = instruction_set(name && *name ? name : nullptr);
    return found;
  }();
  if (!set) throw std::runtime_error("RECURRA_ISA names an instruction set that this machine does not run; unset it");
  return *set;
}

template <class T>
T* pointer(uint64_t address) { return reinterpret_cast<T*>(address); }

Problem problem(nb::tuple sizes, nb::tuple given) {
  Problem p{};
  p.batch = nb::cast<int64_t>(sizes[0]), p.steps = nb::cast<int64_t>(sizes[1]);
  p.inputs = nb::cast<int64_t>(sizes[2]), p.units = nb::cast<int64_t>(sizes[3]);
  p.reverse = nb::cast<int>(sizes[4]), p.threads = threads_now(nb::cast<int>(sizes[5]));
  auto at = [&](int i) { return nb::cast<uint64_t>(given[i]); };
  p.lengths = pointer<const int64_t>(at(0));
  p.x = pointer<const float>(at(1)), p.h0 = pointer<const float>(at(2)), p.c0 = pointer<const float>(at(3));
  p.w_ih = pointer<const float>(at(4)), p.w_hh = pointer<const float>(at(5));
  p.b_ih = pointer<const float>(at(6)), p.b_hh = pointer<const float>(at(7));
  p.y = pointer<float>(at(8)), p.saved = pointer<float>(at(9));
  return p;
}

// A stepper that Python holds.
struct Packed {
  std::unique_ptr<Stepper> stepper;
  void step(int64_t batch, uint64_t x, uint64_t h, uint64_t c, uint64_t h_out, uint64_t c_out) {
    stepper->step(batch, pointer<const float>(x), pointer<const float>(h), pointer<const float>(c), pointer<float>(h_out),
                  pointer<float>(c_out));
  }
};

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // what Python still holds when it ends is no fault
  m.doc() = "The recurrences of csrc/, by addresses of contiguous float32 arrays.";
  m.def("instruction_set", [] { return std::string(chosen().name); });
  m.def("saved_floats", [](int kind, int64_t batch, int64_t steps, int64_t units) {
    return chosen().find(static_cast<Kind>(kind)).saved_floats(batch, steps, units);
  });
  nb::class_<Packed>(m, "Packed").def("step", &Packed::step);
  m.def("pack", [](int kind, nb::tuple sizes, nb::tuple weights) {
    Problem p{};
    p.batch = p.steps = 1, p.inputs = nb::cast<int64_t>(sizes[0]), p.units = nb::cast<int64_t>(sizes[1]);
    p.threads = nb::cast<int>(sizes[2]);
    auto at = [&](int i) { return pointer<const float>(nb::cast<uint64_t>(weights[i])); };
    p.w_ih = at(0), p.w_hh = at(1), p.b_ih = at(2), p.b_hh = at(3);
    return new Packed{chosen().find(static_cast<Kind>(kind)).stepper(p)};
  }, nb::rv_policy::take_ownership);
  m.def("forward", [](int kind, nb::tuple sizes, nb::tuple given, nb::tuple last) {
    Problem p = problem(sizes, given);
    p.h_last = pointer<float>(nb::cast<uint64_t>(last[0])), p.c_last = pointer<float>(nb::cast<uint64_t>(last[1]));
    auto run = chosen().find(static_cast<Kind>(kind)).forward;
    nb::gil_scoped_release release;
    run(p);
  });
  m.def("backward", [](int kind, nb::tuple sizes, nb::tuple given, nb::tuple gradients, nb::tuple results) {
    Problem p = problem(sizes, given);
    auto in = [&](int i) { return pointer<const float>(nb::cast<uint64_t>(gradients[i])); };
    auto out = [&](int i) { return pointer<float>(nb::cast<uint64_t>(results[i])); };
    p.dy = in(0), p.dh_last = in(1), p.dc_last = in(2);
    p.dx = out(0), p.dh0 = out(1), p.dc0 = out(2), p.dw_ih = out(3), p.dw_hh = out(4), p.db_ih = out(5), p.db_hh = out(6);
    auto run = chosen().find(static_cast<Kind>(kind)).backward;
    nb::gil_scoped_release release;
    run(p);
  });
}
