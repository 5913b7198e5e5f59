// What Python hands over for a launch: GPU, stream, workspace.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <mutex>

#include "arguments.h"
#include "cuda/api.h"

namespace se_kernels {

inline cuda::Gpu gpu_of(int device) {
#ifdef SE_CUDA_ON_HOST
  return cuda::gpu_at(device);  // as the test has set it
#else
  static std::mutex mutex;
  static std::map<int, cuda::Gpu> gpus;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = gpus.find(device);
  return found != gpus.end() ? found->second : gpus[device] = cuda::gpu_at(device);
#endif
}

inline cuda::Call call(int device, Pointer stream, Pointer workspace) {
  return {gpu_of(device), out(stream), out(workspace)};
}

// cuda_norm_bindings.cpp: the calls with a batch norm.
void add_norm(pybind11::module_&);

}  // namespace se_kernels
