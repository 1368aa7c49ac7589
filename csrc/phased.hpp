// Cells whose step is more than one product and arithmetic of single units: a reset before the product, a projection, sums that are
// normalised over all units. A step goes through phases, each over the whole group of rows:
//
//   the product of the output before with the first weights       (blocks 0 to `first` of the sums)
//   `middle`, by row                                              which says what the second product multiplies, if there is one
//   the second product                                            (one more block)
//   `finish`, by row
//
// and the way back through the same in reverse. What the input adds to the sums was projected before.
#pragma once

#include <cmath>

#include "following.hpp"
#include "recurrence.hpp"

namespace RECURRA_ISA {

using recurra::Following;
using recurra::Shape;
using recurra::Side;

constexpr Shape matrix(int blocks) { return {blocks, Side::units, Side::outputs}; }
constexpr Shape vectors(int blocks) { return {blocks, Side::units, Side::none}; }

// What a row has in a step. A block of sums or gradients has `wide` numbers, one of what is kept `kept_wide`, of which the first
// `units` count; u, h, y, c_before and du end there.
struct Line {
  long units, outputs, wide, kept_wide;
  const float *const *params, *u[recurra::MOST_BLOCKS], *h, *c_before;  // the state before; c only on the way back
  float *sums, *c, *m, *kept, *y;                                       // m: what the second product multiplies
  float *d, *dh, *dc, *dm, *du[recurra::MOST_BLOCKS];
  float* sum(int k) const { return sums + k * wide; }
  float* keep(int k) const { return kept + k * kept_wide; }
  float* gradient(int k) const { return d + k * wide; }
};

// work(unit, how many there are from there on) for n units by vectors.
template <class Work>
RECURRA_INLINE void each(long n, Work&& work) {
  for (long unit = 0; unit < n; unit += W) work(unit, n - unit);
}

RECURRA_INLINE vf slope_of_sigmoid(vf s) { return s * (all(1.0f) - s); }
RECURRA_INLINE vf slope_of_tanh(vf t) { return all(1.0f) - t * t; }

// GRU and minimal unit with the reset before the product: the blocks are the gates and the candidate, whose product is the second.
struct ResetBefore {
  static constexpr int blocks = 3, first = 2, fields = 1, keeps = 3, extra = 0, params = 1;
  static constexpr bool second = true, projects = false, adds = true;
  static constexpr Shape shapes[] = {matrix(3)};

  static void middle(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf r = sigmoid(load(x.sum(0) + k)), z = sigmoid(load(x.sum(1) + k));
      store(x.keep(0) + k, r), store(x.keep(1) + k, z), store(x.m + k, r * load_part(x.h + k, left));
    });
  }
  static void finish(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf z = load(x.keep(1) + k), n = tanh(load(x.sum(2) + k));
      store(x.keep(2) + k, n);
      store_part(x.y + k, z * load_part(x.h + k, left) + (all(1.0f) - z) * n, left);
    });
  }
  static void back_finish(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf z = load(x.keep(1) + k), n = load(x.keep(2) + k), dh = load(x.dh + k);
      vf dn = dh * (all(1.0f) - z) * slope_of_tanh(n), dz = dh * (load_part(x.h + k, left) - n) * slope_of_sigmoid(z);
      store(x.gradient(2) + k, dn), store(x.gradient(1) + k, dz), store(x.dh + k, dh * z);
      store_part(x.du[2] + k, dn, left), store_part(x.du[1] + k, dz, left);
    });
  }
  static void back_middle(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf r = load(x.keep(0) + k), h = load_part(x.h + k, left), dm = load(x.dm + k), dr = dm * h * slope_of_sigmoid(r);
      store(x.gradient(0) + k, dr), store_part(x.du[0] + k, dr, left);
      store(x.m + k, r * h), store(x.dh + k, load(x.dh + k) + dm * r);
    });
  }
};

struct MinimalGated {
  static constexpr int blocks = 2, first = 1, fields = 1, keeps = 2, extra = 0, params = 1;
  static constexpr bool second = true, projects = false, adds = true;
  static constexpr Shape shapes[] = {matrix(2)};

  static void middle(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf f = sigmoid(load(x.sum(0) + k));
      store(x.keep(0) + k, f), store(x.m + k, f * load_part(x.h + k, left));
    });
  }
  static void finish(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf f = load(x.keep(0) + k), n = tanh(load(x.sum(1) + k));
      store(x.keep(1) + k, n);
      store_part(x.y + k, (all(1.0f) - f) * load_part(x.h + k, left) + f * n, left);
    });
  }
  static void back_finish(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf f = load(x.keep(0) + k), n = load(x.keep(1) + k), dh = load(x.dh + k), dn = dh * f * slope_of_tanh(n);
      store(x.gradient(1) + k, dn), store_part(x.du[1] + k, dn, left);
      store(x.gradient(0) + k, dh * (n - load_part(x.h + k, left))), store(x.dh + k, dh * (all(1.0f) - f));
    });
  }
  static void back_middle(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf f = load(x.keep(0) + k), h = load_part(x.h + k, left), dm = load(x.dm + k);
      vf df = (load(x.gradient(0) + k) + dm * h) * slope_of_sigmoid(f);
      store(x.gradient(0) + k, df), store_part(x.du[0] + k, df, left);
      store(x.m + k, f * h), store(x.dh + k, load(x.dh + k) + dm * f);
    });
  }
};

// The four gates of an LSTM from their sums, and the cell state after; kept in the blocks 0 to 4.
RECURRA_INLINE vf lstm_gates(const Line& x, const vf (&sum)[4], long k) {
  vf i = sigmoid(sum[0]), f = sigmoid(sum[1]), g = tanh(sum[2]), c = f * load(x.c + k) + i * g;
  store(x.keep(0) + k, i), store(x.keep(1) + k, f), store(x.keep(2) + k, g), store(x.keep(3) + k, sigmoid(sum[3]));
  return c;
}

// The gradients of those sums but the last, from that of the cell state after; and of the cell state before.
RECURRA_INLINE void back_gates(const Line& x, vf dc, vf (&d)[4], long k, long left) {
  vf i = load(x.keep(0) + k), f = load(x.keep(1) + k), g = load(x.keep(2) + k);
  d[0] = dc * g * slope_of_sigmoid(i), d[1] = dc * load_part(x.c_before + k, left) * slope_of_sigmoid(f);
  d[2] = dc * i * slope_of_tanh(g);
  store(x.dc + k, dc * f);
}

// What an LSTM puts out goes through a second matrix.
struct ProjectedLstm {
  static constexpr int blocks = 4, first = 4, fields = 2, keeps = 5, extra = 0, params = 2;
  static constexpr bool second = true, projects = true, adds = true;
  static constexpr Shape shapes[] = {matrix(4), {1, Side::outputs, Side::units}};

  static void middle(const Line& x) {
    each(x.units, [&](long k, long) {
      const vf sums[4] = {load(x.sum(0) + k), load(x.sum(1) + k), load(x.sum(2) + k), load(x.sum(3) + k)};
      vf c = lstm_gates(x, sums, k);
      store(x.c + k, c), store(x.keep(4) + k, c), store(x.m + k, load(x.keep(3) + k) * tanh(c));
    });
  }
  static void finish(const Line& x) { std::memcpy(x.y, x.sum(4), x.outputs * sizeof(float)); }
  static void back_finish(const Line& x) {
    std::memcpy(x.gradient(4), x.dh, x.wide * sizeof(float));
    std::memset(x.dh, 0, x.wide * sizeof(float));
  }
  static void back_middle(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf o = load(x.keep(3) + k), t = tanh(load(x.keep(4) + k)), dm = load(x.dm + k), d[4];
      back_gates(x, load(x.dc + k) + dm * o * slope_of_tanh(t), d, k, left);
      d[3] = dm * t * slope_of_sigmoid(o);
      for (int g = 0; g < 4; g++) store(x.gradient(g) + k, d[g]), store_part(x.du[g] + k, d[g], left);
      store(x.m + k, o * t);
    });
  }
};

// Mean 0 and variance 1 over some blocks of a row, as torch has it (variance without correction, 1e-5 added to it).
struct Norm {
  const Line& x;
  const int blocks;

  static vf first(vf v, long n) {
    for (int k = 0; n < W && k < W; k++) v[k] = k < n ? v[k] : 0.0f;
    return v;
  }
  // Of value(block, unit).
  template <class Value>
  float mean(Value&& value) const {
    vf sums = {};
    for (int b = 0; b < blocks; b++)
      each(x.units, [&](long k, long left) { sums += first(value(b, k), left); });
    float total = 0;
    for (int k = 0; k < W; k++) total += sums[k];
    return total / (blocks * x.units);
  }
  // From `a` into `normed`, which is kept, and returned what they were multiplied by.
  float forward(const float* a, float* normed) const {
    const float middle = mean([&](int b, long k) { return load(a + b * x.wide + k); });
    const float variance = mean([&](int b, long k) {
      vf apart = load(a + b * x.wide + k) - all(middle);
      return apart * apart;
    });
    const float scale = 1.0f / std::sqrt(variance + 1e-5f);
    for (int b = 0; b < blocks; b++)
      each(x.units, [&](long k, long) { store(normed + b * x.kept_wide + k, (load(a + b * x.wide + k) - all(middle)) * all(scale)); });
    return scale;
  }
  // From the gradients `d` of what was normed to those of what was given, in their place.
  void backward(float* d, const float* normed, float scale) const {
    const float middle = mean([&](int b, long k) { return load(d + b * x.wide + k); });
    const float along = mean([&](int b, long k) { return load(d + b * x.wide + k) * load(normed + b * x.kept_wide + k); });
    for (int b = 0; b < blocks; b++)
      each(x.units, [&](long k, long) {
        float* at = d + b * x.wide + k;
        store(at, all(scale) * (load(at) - all(middle) - load(normed + b * x.kept_wide + k) * all(along)));
      });
  }
};

// The LSTM of layer normalisation in both its forms. Kept: gates 0 to 3, the cell state 4, the normed sums 5 to 8, the normed cell
// state 9, the scales 10. Params: weights, gains of the sums, shifts of the sums (ByGate), gain and shift of the cell state.
template <bool ByGate>
struct NormedLstm {
  static constexpr int blocks = 4, first = 4, fields = 2, keeps = 11, extra = ByGate ? 10 : 6, params = ByGate ? 5 : 4;
  static constexpr bool second = false, projects = false, adds = false;
  static constexpr Shape shapes[] = {matrix(4), vectors(4), vectors(ByGate ? 4 : 1), vectors(1), vectors(1)};
  static constexpr int norms = ByGate ? 4 : 1, each_of = 4 / norms, of_c = params - 2;

  static void middle(const Line& x) {
    if (ByGate)
      for (int g = 0; g < 4; g++) each(x.units, [&](long k, long left) { store(x.sum(g) + k, load(x.sum(g) + k) + load_part(x.u[g] + k, left)); });
    for (int n = 0; n < norms; n++)
      x.keep(10)[n] = Norm{x, each_of}.forward(x.sum(n * each_of), x.keep(5 + n * each_of));
    each(x.units, [&](long k, long left) {
      vf sums[4];
      for (int g = 0; g < 4; g++) {
        const long own = g * x.units + k;
        vf shift = load_part(ByGate ? x.params[2] + own : x.u[g] + k, left);
        sums[g] = shift + load_part(x.params[1] + own, left) * load(x.keep(5 + g) + k);
      }
      store(x.c + k, lstm_gates(x, sums, k));
    });
    x.keep(10)[4] = Norm{x, 1}.forward(x.c, x.keep(9));
    each(x.units, [&](long k, long left) {
      vf normed = load_part(x.params[of_c] + k, left) * load(x.keep(9) + k) + load_part(x.params[of_c + 1] + k, left);
      if (ByGate) store(x.c + k, normed);
      store(x.keep(4) + k, load(x.c + k)), store_part(x.y + k, load(x.keep(3) + k) * tanh(normed), left);
    });
  }
  static void finish(const Line&) {}
  static void back_finish(const Line&) {}
  static void back_middle(const Line& x) {
    float* const of_normed = x.gradient(4 + extra - 1);  // the shift of the cell state: what it becomes is what it adds to
    each(x.units, [&](long k, long left) {
      vf chat = load(x.keep(9) + k), gain = load_part(x.params[of_c] + k, left), o = load(x.keep(3) + k), dh = load(x.dh + k);
      vf t = tanh(gain * chat + load_part(x.params[of_c + 1] + k, left)), d = dh * o * slope_of_tanh(t);
      if (ByGate) d += load(x.dc + k);
      store(of_normed + k, d), store(x.gradient(4 + extra - 2) + k, d * chat), store(x.gradient(0) + k, d * gain);
      store(x.gradient(3) + k, dh * t * slope_of_sigmoid(o)), store(x.dh + k, vf{});
    });
    Norm{x, 1}.backward(x.gradient(0), x.keep(9), x.keep(10)[4]);
    each(x.units, [&](long k, long left) {
      vf d[4], dc = load(x.gradient(0) + k);
      back_gates(x, ByGate ? dc : dc + load(x.dc + k), d, k, left);
      d[3] = load(x.gradient(3) + k);
      for (int g = 0; g < 4; g++) {
        store(x.gradient(4 + g) + k, d[g] * load(x.keep(5 + g) + k));
        ByGate ? store(x.gradient(8 + g) + k, d[g]) : store_part(x.du[g] + k, d[g], left);
        store(x.gradient(g) + k, d[g] * load_part(x.params[1] + g * x.units + k, left));
      }
    });
    for (int n = 0; n < norms; n++)
      Norm{x, each_of}.backward(x.gradient(n * each_of), x.keep(5 + n * each_of), x.keep(10)[n]);
    if (ByGate)
      for (int g = 0; g < 4; g++) std::memcpy(x.du[g], x.gradient(g), x.units * sizeof(float));
  }
};

// The GRU of layer normalisation. Kept: gates and candidate 0 to 2, the normed sums 3 to 5, the scales 6. Params: weights, gains,
// the shift of the candidate's sum.
struct NormedGru {
  static constexpr int blocks = 3, first = 3, fields = 1, keeps = 7, extra = 4, params = 3;
  static constexpr bool second = false, projects = false, adds = false;
  static constexpr Shape shapes[] = {matrix(3), vectors(3), vectors(1)};

  static RECURRA_INLINE vf gained(const Line& x, int g, long k, long left) {
    return load_part(x.params[1] + g * x.units + k, left) * load(x.keep(3 + g) + k);
  }
  static void middle(const Line& x) {
    x.keep(6)[0] = Norm{x, 2}.forward(x.sum(0), x.keep(3));
    x.keep(6)[1] = Norm{x, 1}.forward(x.sum(2), x.keep(5));
    each(x.units, [&](long k, long left) {
      vf r = sigmoid(load_part(x.u[0] + k, left) + gained(x, 0, k, left));
      vf z = sigmoid(load_part(x.u[1] + k, left) + gained(x, 1, k, left));
      vf n = tanh(load_part(x.u[2] + k, left) + r * (gained(x, 2, k, left) + load_part(x.params[2] + k, left)));
      store(x.keep(0) + k, r), store(x.keep(1) + k, z), store(x.keep(2) + k, n);
      store_part(x.y + k, z * load_part(x.h + k, left) + (all(1.0f) - z) * n, left);
    });
  }
  static void finish(const Line&) {}
  static void back_finish(const Line&) {}
  static void back_middle(const Line& x) {
    each(x.units, [&](long k, long left) {
      vf r = load(x.keep(0) + k), z = load(x.keep(1) + k), n = load(x.keep(2) + k), dh = load(x.dh + k), d[3];
      vf dn = dh * (all(1.0f) - z) * slope_of_tanh(n), side = gained(x, 2, k, left) + load_part(x.params[2] + k, left);
      d[0] = dn * side * slope_of_sigmoid(r), d[1] = dh * (load_part(x.h + k, left) - n) * slope_of_sigmoid(z), d[2] = dn * r;
      store_part(x.du[0] + k, d[0], left), store_part(x.du[1] + k, d[1], left), store_part(x.du[2] + k, dn, left);
      for (int g = 0; g < 3; g++) {
        store(x.gradient(3 + g) + k, d[g] * load(x.keep(3 + g) + k));
        store(x.gradient(g) + k, d[g] * load_part(x.params[1] + g * x.units + k, left));
      }
      store(x.gradient(6) + k, d[2]), store(x.dh + k, dh * z);
    });
    Norm{x, 2}.backward(x.gradient(0), x.keep(3), x.keep(6)[0]);
    Norm{x, 1}.backward(x.gradient(2), x.keep(5), x.keep(6)[1]);
  }
};

// N: vectors of a panel, fewer for few units.
template <class Cell, int N>
struct Phased {
  static constexpr long whole = 0;  // the only term of a product begins where its row begins
  static constexpr int A = Cell::first + Cell::second, D = A + Cell::extra;  // blocks of sums; of gradients

  const Following& p;
  const Rows rows;
  const long B, T, H, O, panels, unit_panels, out_panels, wide, kept_wide, gradient_row;
  const int threads;

  explicit Phased(const Following& asked)
      : p(asked), rows(asked), B(p.batch), T(p.steps), H(p.units), O(p.outputs), panels(ceil_div(std::max(H, O), N * W)),
        unit_panels(ceil_div(H, N * W)), out_panels(ceil_div(O, N * W)), wide(panels * N * W), kept_wide((H + 63) / 64 * 64),
        gradient_row(D * wide + 16), threads(std::max(1, p.threads)) {}

  // As large on every machine, and for each width of a panel.
  static int64_t saved_floats(int64_t units) { return Cell::keeps * ((units + 63) / 64 * 64); }

  const float* second_weights() const { return Cell::projects ? p.params[1] : p.params[0] + Cell::first * H * O; }
  long second_rows() const { return Cell::projects ? O : H; }
  long rows_of_group(long rows) const {
    return B >= 8 && A * H * O * static_cast<long>(sizeof(float)) <= SHARED_BYTES ? rows : std::max(1L, B);
  }
  const float* h_before(long i, long s) const { return s ? p.y + (rows.row[i] * T + s - 1) * O : p.state[0] + rows.row[i] * O; }
  long at(long i, long s) const { return rows.row[i] * T + s; }

  // Products over a share of the panels, from and to the places.
  void products(bool add, long count, Places& places, const long* offsets, int terms, const float* packed, long K, Share share) const {
    for (long panel = share.begin; panel < share.end; panel++) {
      product<N>(B == 1, add, count, places.in.data(), offsets, terms, places.out.data(), N * W, packed + panel * terms * K * N * W, K);
      for (long n = 0; n < count; n++) places.out[n] += N * W;
    }
  }

  // [panel][k][N * W] of a matrix [n, K], whose rows become columns.
  void pack_across(const float* weight, long n, long K, float* packed, Share share) const {
    for (long panel = share.begin; panel < share.end; panel++)
      for (int z = 0; z < N; z++) {
        const long row = (panel * N + z) * W, count = std::max(0L, std::min<long>(W, n - row));
        pack_vector(weight + std::min(row, n - 1) * K, count, K, packed + panel * K * N * W + z * W, N * W);
      }
  }

  // --- forward ---

  // All memory is taken before the threads start: what throws must not throw in one of them.
  struct Forward {
    struct Local {
      Buffer sums, m, kept;
    };
    const long rows;  // of a group
    Buffer w, w2, c;
    Barrier barrier;
    Crews crews;
    std::vector<Local> local;    // by crew
    std::vector<Places> places;  // by thread
    explicit Forward(const Phased& q)
        : rows(q.rows_of_group(std::min(GROUP_ROWS, ceil_div(q.B, q.threads)))), w(Cell::first * q.panels * q.O * N * W),
          w2(Cell::second ? q.panels * q.H * N * W : 0), c(q.B * q.wide), barrier(q.threads), crews(q.threads, ceil_div(q.B, rows)),
          places(q.threads, Places(rows)) {
      for (int n = 0; n < std::min<long>(q.threads, crews.groups); n++)
        local.push_back({Buffer(rows * A * q.wide), Buffer(rows * q.wide), Buffer(rows * Cell::keeps * q.kept_wide)});
    }
  };

  void forward(Forward& f, int thread) const {
    const Share share(panels, thread, threads);
    for (int g = 0; g < Cell::first; g++) pack_across(p.params[0] + g * H * O, H, O, f.w.at(g * panels * O * N * W), share);
    if (Cell::second) pack_across(second_weights(), second_rows(), H, f.w2.at(), share);
    f.barrier.wait();
    f.crews.each(thread, [&](const Crew& crew, Group group, long) {
      forward_group(f, f.local[thread % f.local.size()], f.places[thread], crew, group);
    });
  }

  Line line(long s, long i, float* kept) const {
    Line x{};
    x.units = H, x.outputs = O, x.wide = wide, x.kept_wide = kept_wide, x.params = p.params, x.h = h_before(i, s);
    for (int k = 0; k < Cell::blocks; k++) x.u[k] = p.u[k] + at(i, s) * p.stride[k];
    x.kept = p.saved ? p.saved + (s * B + i) * Cell::keeps * kept_wide : kept;
    return x;
  }

  void forward_group(Forward& f, typename Forward::Local& local, Places& places, const Crew& crew, Group group) const {
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n), row = rows.row[i];
      std::fill(f.c.at(i * wide), f.c.at((i + 1) * wide), 0.0f);
      if (Cell::fields > 1) std::memcpy(f.c.at(i * wide), p.state[1] + row * H, H * sizeof(float));
      std::memset(p.y + (row * T + rows.length[i]) * O, 0, (T - rows.length[i]) * O * sizeof(float));
    }
    for (long s = 0; s < T; s++) {
      const long count = group.count(rows.running[s]);
      auto by_row = [&](auto&& work) {
        for (long n = crew.rank; n < count; n += crew.size) {
          Line x = line(s, group.place(n), local.kept.at(n * Cell::keeps * kept_wide));
          x.sums = local.sums.at(n * A * wide), x.m = local.m.at(n * wide), x.c = f.c.at(group.place(n) * wide);
          x.y = p.y + at(group.place(n), s) * O;
          work(x);
        }
      };
      auto multiplied = [&](int k, const float* packed, long K) {
        const Share mine = crew.share(panels);
        for (long n = 0; n < count; n++) places.out[n] = local.sums.at((n * A + k) * wide + mine.begin * N * W);
        products(Cell::adds && k < Cell::blocks, count, places, &whole, 1, packed, K, mine);
      };
      if (Cell::adds) {
        by_row([&](const Line& x) { begin(x); });
        crew.wait();
      }
      for (long n = 0; n < count; n++) places.in[n] = h_before(group.place(n), s);
      for (int k = 0; k < Cell::first; k++) multiplied(k, f.w.at(k * panels * O * N * W), O);
      crew.wait();
      by_row(Cell::middle);
      crew.wait();
      if (!Cell::second) continue;
      for (long n = 0; n < count; n++) places.in[n] = local.m.at(n * wide);
      multiplied(Cell::first, f.w2.at(), H);
      crew.wait();
      by_row(Cell::finish);
      crew.wait();
    }
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n);
      std::memcpy(p.last[0] + rows.row[i] * O, h_before(i, rows.length[i]), O * sizeof(float));
      if (Cell::fields > 1) std::memcpy(p.last[1] + rows.row[i] * H, f.c.at(i * wide), H * sizeof(float));
    }
  }

  // The sums begin with what was projected.
  void begin(const Line& x) const {
    for (int k = 0; k < Cell::blocks; k++) {
      std::memcpy(x.sum(k), x.u[k], H * sizeof(float));
      std::fill(x.sum(k) + H, x.sum(k + 1), 0.0f);
    }
  }

  // --- backward ---

  // By crew: of a chunk of steps, a row for each step and place, the gradients and what the weights were multiplied by.
  struct Chunk {
    Buffer d, h, m, dm;
    std::vector<long> start;
    long total = 0;
  };
  // By group: sums over its rows, added up in the order of the groups at the end.
  struct Sums {
    Buffer dw, dw2, dextra;
  };
  struct Backward {
    const long rows, steps;
    Buffer w, w2, dh, dc;
    Barrier barrier;
    Crews crews;
    std::vector<Chunk> chunks;
    std::vector<Sums> sums;
    std::vector<Places> places;
    explicit Backward(const Phased& q)
        : rows(q.rows_of_group(std::max(ceil_div(q.B, MOST_GROUPS), std::clamp(ceil_div(q.B, 4), GROUP_ROWS / 4, GROUP_ROWS)))),
          steps(std::max(1L, BACK_ROWS / rows)), w(q.panels * Cell::first * q.H * N * W),
          w2(Cell::second ? q.panels * q.second_rows() * N * W : 0), dh(q.B * q.wide), dc(q.B * q.wide), barrier(q.threads),
          crews(q.threads, ceil_div(q.B, rows)), places(q.threads, Places(rows)) {
      for (int crew = 0; crew < std::min<long>(q.threads, crews.groups); crew++) {
        chunks.push_back({Buffer(steps * rows * q.gradient_row), Buffer(steps * rows * q.wide), Buffer(steps * rows * q.wide),
                          Buffer(rows * q.wide), std::vector<long>(steps + 1)});
        chunks.back().m.zero(steps * rows * q.wide);
      }
      for (long group = 0; group < crews.groups; group++)
        sums.push_back({Buffer(Cell::first * q.H * q.wide), Buffer(Cell::second ? q.second_rows() * q.wide : 0),
                        Buffer(Cell::extra * q.wide)});
    }
  };

  void backward(Backward& b, int thread) const {
    const Share share(panels, thread, threads);
    pack_plain<N>(p.params[0], Cell::first * H, O, b.w.at(), Share(out_panels, thread, threads));
    if (Cell::second) pack_plain<N>(second_weights(), second_rows(), H, b.w2.at(), Share(unit_panels, thread, threads));
    b.barrier.wait();
    b.crews.each(thread, [&](const Crew& crew, Group group, long number) {
      back_group(b, b.chunks[thread % b.chunks.size()], b.sums[number], b.places[thread], crew, group);
    });
    b.barrier.wait();
    give(b, thread);
  }

  void back_group(Backward& b, Chunk& chunk, Sums& sums, Places& places, const Crew& crew, Group group) const {
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n), row = rows.row[i];
      take(p.dlast[0], row, O, b.dh.at(i * wide));
      take(Cell::fields > 1 ? p.dlast[1] : nullptr, row, H, b.dc.at(i * wide));
      for (long t = rows.length[i]; t < T; t++)
        for (int k = 0; k < Cell::blocks; k++) std::memset(p.du[k] + (row * T + t) * p.stride[k], 0, H * sizeof(float));
    }
    if (crew.rank == 0) sums.dw.zero(Cell::first * H * wide), sums.dw2.zero(Cell::second ? second_rows() * wide : 0), sums.dextra.zero(Cell::extra * wide);
    crew.wait();
    for (long s1 = T; s1 > 0;) {
      const long s0 = std::max(0L, s1 - b.steps);
      if (crew.rank == 0) {
        chunk.total = 0;
        for (long s = s0; s < s1; s++) chunk.start[s - s0] = chunk.total, chunk.total += group.count(rows.running[s]);
      }
      crew.wait();
      for (long s = s1 - 1; s >= s0; s--) back_step(b, chunk, places, crew, group, s, chunk.start[s - s0]);
      back_weights(chunk, sums, crew);
      crew.wait();
      s1 = s0;
    }
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n);
      std::memcpy(p.dstate[0] + rows.row[i] * O, b.dh.at(i * wide), O * sizeof(float));
      if (Cell::fields > 1) std::memcpy(p.dstate[1] + rows.row[i] * H, b.dc.at(i * wide), H * sizeof(float));
    }
  }

  void take(const float* from, long row, long n, float* to) const {
    if (from) std::memcpy(to, from + row * n, n * sizeof(float));
    std::fill(to + (from ? n : 0), to + wide, 0.0f);
  }

  void back_step(Backward& b, Chunk& chunk, Places& places, const Crew& crew, Group group, long s, long start) const {
    const long count = group.count(rows.running[s]);
    auto by_row = [&](auto&& work) {
      for (long n = crew.rank; n < count; n += crew.size) {
        const long i = group.place(n);
        Line x = line(s, i, nullptr);
        x.d = chunk.d.at((start + n) * gradient_row), x.m = chunk.m.at((start + n) * wide), x.dm = chunk.dm.at(n * wide);
        x.dh = b.dh.at(i * wide), x.dc = b.dc.at(i * wide), x.c_before = c_before(i, s);
        for (int k = 0; k < Cell::blocks; k++) x.du[k] = p.du[k] + at(i, s) * p.stride[k];
        work(x, n);
      }
    };
    by_row([&](const Line& x, long n) {
      if (p.dy)
        each(O, [&](long k, long left) { store(x.dh + k, load(x.dh + k) + load_part(p.dy + at(group.place(n), s) * O + k, left)); });
      float* h = chunk.h.at((start + n) * wide);
      std::memcpy(h, x.h, O * sizeof(float)), std::fill(h + O, h + wide, 0.0f);
      Cell::back_finish(x);
    });
    crew.wait();
    if (Cell::second) {
      const Share mine = crew.share(unit_panels);
      for (long n = 0; n < count; n++) {
        places.in[n] = chunk.d.at((start + n) * gradient_row + Cell::first * wide);
        places.out[n] = chunk.dm.at(n * wide + mine.begin * N * W);
      }
      products(false, count, places, &whole, 1, b.w2.at(), second_rows(), mine);
      crew.wait();
    }
    by_row([&](const Line& x, long) { Cell::back_middle(x); });
    crew.wait();
    const Share mine = crew.share(out_panels);
    long offsets[Cell::first];
    for (int k = 0; k < Cell::first; k++) offsets[k] = k * wide;
    for (long n = 0; n < count; n++) {
      places.in[n] = chunk.d.at((start + n) * gradient_row);
      places.out[n] = b.dh.at(group.place(n) * wide + mine.begin * N * W);
    }
    products(true, count, places, offsets, Cell::first, b.w.at(), H, mine);
    crew.wait();
  }

  const float* c_before(long i, long s) const {
    if (Cell::fields < 2) return nullptr;
    return s ? p.saved + ((s - 1) * B + i) * Cell::keeps * kept_wide + 4 * kept_wide : p.state[1] + rows.row[i] * H;
  }

  void back_weights(Chunk& chunk, Sums& sums, const Crew& crew) const {
    for (int k = 0; k < Cell::first; k++)
      outer<N>(chunk.d.at(k * wide), gradient_row, chunk.h.at(), wide, chunk.total, sums.dw.at(k * H * wide), crew.share(H));
    if (Cell::second)
      outer<N>(chunk.d.at(Cell::first * wide), gradient_row, chunk.m.at(), wide, chunk.total, sums.dw2.at(), crew.share(second_rows()));
    const Share vectors = crew.share(Cell::extra * wide / W);
    for (long v = vectors.begin; v < vectors.end; v++) {
      vf sum = {};
      for (long r = 0; r < chunk.total; r++) sum += load(chunk.d.at(r * gradient_row + A * wide + v * W));
      store(sums.dextra.at(v * W), load(sums.dextra.at(v * W)) + sum);
    }
  }

  void give(Backward& b, int thread) const {
    const Share mine(Cell::first * H, thread, threads), others(second_rows(), thread, threads);
    for (long row = mine.begin; row < mine.end; row++) add_up(b, &Sums::dw, row * wide, O, p.dparams[0] + row * O);
    float* second = Cell::projects ? p.dparams[1] : p.dparams[0] + Cell::first * H * O;
    for (long row = others.begin; Cell::second && row < others.end; row++) add_up(b, &Sums::dw2, row * wide, H, second + row * H);
    if (thread != 0) return;
    int block = 0;
    for (int k = 1 + Cell::projects; k < Cell::params; k++)
      for (int of = 0; of < Cell::shapes[k].blocks; of++, block++) add_up(b, &Sums::dextra, block * wide, H, p.dparams[k] + of * H);
  }

  static void add_up(Backward& b, Buffer Sums::*part, long at, long n, float* to) {
    std::memcpy(to, (b.sums[0].*part).at(at), n * sizeof(float));
    for (size_t group = 1; group < b.sums.size(); group++) {
      const float* more = (b.sums[group].*part).at(at);
      for (long k = 0; k < n; k++) to[k] += more[k];
    }
  }
};

template <class Cell, int N>
void phased_by(const Following& p, bool back) {
  using Q = Phased<Cell, N>;
  const Q q(p);
  if (back) {
    typename Q::Backward work(q);
    recurra::on_threads(q.threads, [&](int thread) { q.backward(work, thread); });
  } else {
    typename Q::Forward work(q);
    recurra::on_threads(q.threads, [&](int thread) { q.forward(work, thread); });
  }
}

template <class Cell, bool Back>
void phased(const Following& p) {
  std::max(p.units, p.outputs) <= 2 * W ? phased_by<Cell, 2>(p, Back) : phased_by<Cell, 4>(p, Back);
}

template <class Cell>
recurra::Follower phased(const char* name) {
  recurra::Follower made{name, Cell::blocks, Cell::fields, 1, Cell::params, {}, Cell::projects,
                         phased<Cell, false>, phased<Cell, true>, Phased<Cell, 4>::saved_floats};
  std::copy_n(Cell::shapes, Cell::params, made.shapes);
  return made;
}

}  // namespace RECURRA_ISA
