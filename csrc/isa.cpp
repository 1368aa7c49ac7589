// One instruction set: compiled once for each, with RECURRA_ISA, RECURRA_WIDTH and RECURRA_ROWS set.
#include "recurrence.hpp"

namespace RECURRA_ISA {

template <class Cell>
void forward(const Problem& p) {
  recurra::prefer_large_pages(p.y, p.batch * p.steps * p.units * sizeof(float));
  if (p.saved)
    recurra::prefer_large_pages(p.saved, Recurrence<Cell>::saved_floats(p.batch, p.steps, p.units) * sizeof(float));
  Recurrence<Cell> recurrence(p);
  typename Recurrence<Cell>::Forward work(recurrence);
  recurra::on_threads(recurrence.threads, [&](int thread) { recurrence.forward(work, thread); });
}

template <class Cell, int Panel>
void backward_by(const Problem& p) {
  recurra::prefer_large_pages(p.dx, p.batch * p.steps * p.inputs * sizeof(float));
  Recurrence<Cell, Panel> recurrence(p);
  typename Recurrence<Cell, Panel>::Backward work(recurrence);
  recurra::on_threads(recurrence.threads, [&](int thread) { recurrence.backward(work, thread); });
}

template <class Cell>
void backward(const Problem& p) {
  return p.units <= 2 * W ? backward_by<Cell, 2>(p) : backward_by<Cell, 4>(p);
}

template <class Cell>
std::unique_ptr<recurra::Stepper> stepper(const Problem& p) {
  return std::make_unique<Step<Cell>>(p);
}

template <class Cell>
constexpr recurra::Kernel kernel() {
  return {Cell::gates, Cell::fields, forward<Cell>, backward<Cell>, Recurrence<Cell>::saved_floats, stepper<Cell>};
}

recurra::Kernel find(recurra::Kind kind) {
  switch (kind) {
    case recurra::Kind::elman_tanh: return kernel<Elman<Tanh>>();
    case recurra::Kind::elman_relu: return kernel<Elman<Relu>>();
    case recurra::Kind::lstm: return kernel<Lstm>();
    case recurra::Kind::gru: return kernel<Gru>();
  }
  return {};
}

}  // namespace RECURRA_ISA
