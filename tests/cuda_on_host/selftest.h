// What the files of the stand-in's own kernels share.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/primitives.cuh"
#include "cuda/runtime.cuh"

namespace se_kernels::cuda {

struct Parameters {
  const float* in;
  float* out;
  std::uint32_t* counters;
  int size;
};

struct Named {
  const char* name;
  void (*kernel)(Parameters);
};

#define SE_NAMED(kernel) {#kernel, kernel}

extern const std::vector<Named> race_kernels;     // selftest_races.cu
extern const std::vector<Named> traffic_kernels;  // selftest_traffic.cu

}  // namespace se_kernels::cuda
