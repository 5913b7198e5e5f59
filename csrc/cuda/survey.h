// A survey: while one is under way, a launch is not made; the GPU is asked how much of it would be
// resident at a time.
#pragma once

#include <vector>

#include "launch.h"

namespace se_kernels::cuda {

struct Surveyed {
  Shape shape;
  int blocks;  // resident on a multiprocessor
};

// What this thread's survey has found so far; null while none is under way.
inline std::vector<Surveyed>*& survey() {
  thread_local std::vector<Surveyed>* under_way = nullptr;
  return under_way;
}

}  // namespace se_kernels::cuda
