#include "tensor.hpp"

#include <cstdlib>
#include <iterator>
#include <new>

namespace recurra {

// The layout that DLPack prescribes (https://dmlc.github.io/dlpack), as far as it is used.
struct Version {
  uint32_t major, minor;
};

struct Described {
  void* data;
  int32_t device_type, device_id, dims;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct Managed {
  Version version;
  void* context;
  void (*release)(Managed*);
  uint64_t flags;
  Described tensor;
};

struct ExchangeTable {
  Version version;
  ExchangeTable* previous;
  int (*allocate)(Described* like, Managed** out, void* context, void (*fail)(void*, const char*, const char*));
  int (*from_object)(void* object, Managed** out);
  int (*to_object)(Managed* tensor, void** out);
  int (*describe)(void* object, Described* out);
  int (*stream)(int32_t device_type, int32_t device_id, void** out);
};

namespace {

constexpr uint32_t KNOWN = 1;  // the major version
constexpr int32_t CPU = 1;
constexpr uint8_t INTEGER = 0, FLOAT = 2;

constexpr int MOST_DIMS = 3;

// A tensor of ours and its memory in one block: torch's own allocation takes three times as long.
struct alignas(64) Owned {
  Managed managed;
  int64_t shape[MOST_DIMS], strides[MOST_DIMS];
  float* data() { return reinterpret_cast<float*>(this + 1); }
};

void release(Managed* managed) { std::free(managed->context); }

}  // namespace

const ExchangeTable* Tensors::table_ = nullptr;
PyObject *Tensors::tensor_ = nullptr, *Tensors::parameter_ = nullptr;

bool Tensors::open(PyObject* tensor_type, PyObject* parameter_type) {
  PyObject* capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
  auto* table = capsule ? static_cast<ExchangeTable*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api")) : nullptr;
  PyErr_Clear();
  Py_XDECREF(capsule);  // the table outlives it
  if (!table || table->version.major != KNOWN || !table->describe) return false;
  table_ = table, tensor_ = Py_NewRef(tensor_type), parameter_ = Py_NewRef(parameter_type);
  return true;
}

template <class T>
bool Tensors::view_of(PyObject* tensor, uint8_t code, Array<T>& array) {
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  Described d;
  if (type != tensor_ && type != parameter_) return false;
  if (table_->describe(tensor, &d) != 0) return PyErr_Clear(), false;
  if (d.device_type != CPU || d.code != code || d.bits != 8 * sizeof(T) || d.lanes != 1) return false;
  int64_t step = 1;
  for (int i = d.dims - 1; i >= 0 && step > 0; i--) {  // without elements any order is in order
    if (d.strides && d.shape[i] > 1 && d.strides[i] != step) return false;
    step *= d.shape[i];
  }
  if (!d.data && step > 0) return false;  // elements without memory
  array = {reinterpret_cast<T*>(static_cast<char*>(d.data) + d.byte_offset), d.dims, d.shape};
  return true;
}

bool Tensors::view(PyObject* tensor, Array<float>& array) { return view_of(tensor, FLOAT, array); }
bool Tensors::view(PyObject* tensor, Array<int64_t>& array) { return view_of(tensor, INTEGER, array); }

PyObject* Tensors::fresh(std::initializer_list<int64_t> shape, float** data) {
  int64_t count = 1;
  for (int64_t n : shape) count *= n;
  const size_t bytes = sizeof(Owned) + (count * sizeof(float) + alignof(Owned) - 1) / alignof(Owned) * alignof(Owned);
  void* block = std::aligned_alloc(alignof(Owned), bytes);
  if (!block) return PyErr_NoMemory();
  auto* owned = new (block) Owned{};
  int at = static_cast<int>(shape.size());
  int64_t step = 1;
  for (auto n = std::rbegin(shape); n != std::rend(shape); ++n) owned->shape[--at] = *n, owned->strides[at] = step, step *= *n;
  *data = owned->data();
  owned->managed = {{KNOWN, 0}, block, release, 0,
                    {*data, CPU, 0, static_cast<int32_t>(shape.size()), FLOAT, 32, 1, owned->shape, owned->strides, 0}};
  void* object = nullptr;
  if (table_->to_object(&owned->managed, &object) != 0) return std::free(block), nullptr;
  return static_cast<PyObject*>(object);
}

}  // namespace recurra
