// What DLPack 1.x lays down of a framework's exchange table (`__dlpack_c_exchange_api__`), as far
// as it is used here: a tensor's address, shape and strides from its Python object.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "api.h"

namespace se_kernels::dlpack {

enum DeviceType : std::int32_t { cpu = 1 };
enum TypeCode : std::uint8_t { real = 2, bfloat = 4 };

struct Version {
  std::uint32_t major, minor;
};

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  DeviceType device_type;
  std::int32_t device_id;
  std::int32_t dimensions;
  DataType dtype;
  std::int64_t *shape, *strides;  // in elements; the framework's own, alive with the tensor
  std::uint64_t byte_offset;
};

struct Exchange {
  Version version;
  Exchange* older;
  void *allocate, *to_managed, *from_managed;
  int (*to_tensor)(void* py_object, Tensor* out);  // 0, or -1 with a Python exception set
  void* current_work_stream;
};

constexpr char kCapsule[] = "dlpack_exchange_api";
constexpr std::uint32_t kMajor = 1;

// torch's; load() is called when the module is imported.
inline const Exchange* exchange = nullptr;

inline void load(pybind11::handle tensor_type) {
  const pybind11::object capsule =
      pybind11::getattr(tensor_type, "__dlpack_c_exchange_api__", pybind11::none());
  const auto* table =
      capsule.is_none()
          ? nullptr
          : static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule));
  if (PyErr_Occurred()) throw pybind11::error_already_set();
  if (!table || table->version.major != kMajor)
    throw pybind11::import_error("expected a torch with DLPack's exchange table of version 1");
  exchange = table;
}

inline void* address(const Tensor& t) {
  return t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
}

// False for a type that no kernel takes.
inline bool find_type(DataType t, DType& type) {
  if (t.lanes != 1) return false;
  if (t.code == bfloat && t.bits == 16) return type = DType::bfloat16, true;
  if (t.code != real) return false;
  if (t.bits == 32) return type = DType::float32, true;
  if (t.bits == 64) return type = DType::float64, true;
  if (t.bits == 16) return type = DType::float16, true;
  return false;
}

}  // namespace se_kernels::dlpack
