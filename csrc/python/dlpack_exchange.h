// What DLPack 1.x lays down of a framework's exchange table (`__dlpack_c_exchange_api__`), as far
// as it is used here: a tensor's address, shape and strides from its Python object.
#pragma once

#include <cstdint>

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

}  // namespace se_kernels::dlpack
