// What each build of solve.cpp exports: the numbers between the sweeps of a batch with a norm.
#pragma once

#include "../api.h"

namespace se_kernels {

struct SolveScratch {
  int threads;
  double *means, *m2;    // (N,C), of NormMoments
  void *z, *h;           // (N,C), (N,R)
  void* sums;            // of NormScaleBackward
  void *de, *dz, *da;    // (N,C), (N,C), (N,R)
  void* d;               // (N,C), dz / P; it may be dz
  void *slope, *offset;  // (C), of NormSqueezeBackward
};

struct SolveKernels {
  // from the images' moments to the norm; without an activation also squeezed
  void (*norm)(const Problem&, const NormForward&, const SolveScratch&);
  // from what was squeezed to a and s
  void (*excite)(const Problem&, const NormForward&, const SolveScratch&);
  // from the sums to d, slope and offset, and the gradients of the norm's weight and bias
  void (*backward)(const Problem&, const NormBackward&, const SolveScratch&);
  void (*weight_gradients)(const Problem&, const NormBackward&, const SolveScratch&);
};

namespace baseline {
extern const SolveKernels solve_kernels;
}
namespace avx2 {
extern const SolveKernels solve_kernels;
}
namespace avx512 {
extern const SolveKernels solve_kernels;
}

}  // namespace se_kernels
