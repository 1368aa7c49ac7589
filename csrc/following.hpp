// What recurs of a cell whose products with the input were made before: as plain pointers and sizes, and the kernels for it.
#pragma once

#include <cstdint>

namespace recurra {

constexpr int MOST_BLOCKS = 6, MOST_FIELDS = 2, MOST_PARAMS = 5;

// Float32 everywhere, each array contiguous. Null where it says so.
//
//   u       the blocks that were projected: block k of row b at step t begins at u[k] + (b * steps + t) * stride[k]
//   state   [batch, outputs], and the last of several fields [batch, units]
//   y       [batch, steps, blocks of an output * outputs]
//   lengths [batch], or null for full rows
//   saved   what backward needs, of `saved_floats` floats; null in inference
struct Following {
  int64_t batch, steps, units, outputs;  // of a block of u and of most arrays; of what is put out and comes back
  int32_t threads;
  const int64_t* lengths;
  const float* u[MOST_BLOCKS];
  int64_t stride[MOST_BLOCKS];
  const float *state[MOST_FIELDS], *params[MOST_PARAMS];
  float *y, *last[MOST_FIELDS], *saved;
  // backward only: gradients that come in, each or null, and those that go out
  const float *dy, *dlast[MOST_FIELDS];
  float *du[MOST_BLOCKS], *dstate[MOST_FIELDS], *dparams[MOST_PARAMS];

  int64_t length(int64_t row) const { return lengths ? lengths[row] : steps; }
};

// The shape of a parameter: [blocks * rows], or with columns [blocks * rows, columns].
enum class Side { none, units, outputs };
struct Shape {
  int blocks;
  Side rows, columns;
};

struct Follower {
  const char* name;
  int blocks, fields, says, params;  // blocks of u; fields of the state; blocks of an output; parameters
  Shape shapes[MOST_PARAMS];
  bool projects;  // whether there may be fewer outputs than units
  void (*forward)(const Following&);
  void (*backward)(const Following&);
  int64_t (*saved_floats)(int64_t units);  // for each row and step
};

}  // namespace recurra
