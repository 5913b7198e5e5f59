// What the launchers ask of the CUDA runtime: the GPU, its memory, a launch.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "api.h"
#include "launch.h"
#include "plan.h"
#include "survey.h"

#ifndef __CUDACC__
#include "cuda_on_host.h"
#else
#include <cuda_runtime.h>

namespace se_kernels::cuda {

inline void check(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) throw std::runtime_error(what + ": " + cudaGetErrorString(error));
}

// Makes a GPU the current one, and the one before again at the end.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline Gpu properties_of(int device) {
  const OnDevice on(device);
  const auto get = [device](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
  };
  return {device,
          get(cudaDevAttrMultiProcessorCount),
          get(cudaDevAttrL2CacheSize),
          get(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          get(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
          kThreads};
}

inline void zero(void* data, std::int64_t bytes, const Shape& shape, void* stream) {
  if (survey()) return;
  check(cudaMemsetAsync(data, 0, std::size_t(bytes), static_cast<cudaStream_t>(stream)),
        "the counters of " + describe(shape));
}

// kernel(parameters) by shape.blocks blocks; or asked about only.
template <class Parameters>
void launch(void (*kernel)(Parameters), const Parameters& parameters, const Shape& shape,
            void* stream) {
  const void* function = reinterpret_cast<const void*>(kernel);
  const auto checked = [&](cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // not for the next call to find
    throw std::runtime_error(describe(shape) + ": " + cudaGetErrorString(error));
  };
  if (shape.shared_bytes > 48 * 1024)
    checked(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shape.shared_bytes));
  if (survey()) {
    Surveyed found{shape, 0};
    checked(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found.blocks, function, shape.threads,
                                                          std::size_t(shape.shared_bytes)));
    return survey()->push_back(found);
  }
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  checked(cudaLaunchKernel(function, dim3(unsigned(shape.blocks)), dim3(unsigned(shape.threads)),
                           arguments, std::size_t(shape.shared_bytes),
                           static_cast<cudaStream_t>(stream)));
}

}  // namespace se_kernels::cuda
#endif
