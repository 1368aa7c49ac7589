// torch's tensors by the C table of the DLPack exchange (DLPack 1.2, `__dlpack_c_exchange_api__` of the type): their memory
// and sizes without a call of Python, and fresh ones, with nothing of torch at compile time.
#pragma once

#include <Python.h>

#include <cstdint>
#include <initializer_list>

namespace recurra {

// An array on the CPU that lies in order.
template <class T>
struct Array {
  T* data = nullptr;
  int dims = 0;
  const int64_t* shape = nullptr;

  bool is(std::initializer_list<int64_t> wanted) const {
    if (dims != static_cast<int>(wanted.size())) return false;
    const int64_t* size = shape;
    for (int64_t n : wanted)
      if (*size++ != n) return false;
    return true;
  }
};

// The entrance to torch: its type of tensors, of parameters, and the table. Nothing works before `open`.
class Tensors {
 public:
  // Whether there is a table of a version that is known; without one, whoever calls goes by addresses.
  static bool open(PyObject* tensor_type, PyObject* parameter_type);
  static bool is_open() { return table_ != nullptr; }

  // Whether this is a tensor, and no subclass, that `Array` can say. The array lives as long as the tensor.
  static bool view(PyObject* tensor, Array<float>& array);
  static bool view(PyObject* tensor, Array<int64_t>& array);

  // A tensor of these sizes, whose content is not set; null with an error of Python's set.
  static PyObject* fresh(std::initializer_list<int64_t> shape, float** data);

 private:
  template <class T>
  static bool view_of(PyObject* tensor, uint8_t code, Array<T>& array);

  static const struct ExchangeTable* table_;
  static PyObject *tensor_, *parameter_;
};

}  // namespace recurra
