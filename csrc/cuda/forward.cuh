// What the forward kernels are told, and their launchers.
#pragma once

#include "excite.cuh"
#include "launch.h"
#include "number.cuh"
#include "plan.h"
#include "two_sweeps.cuh"

namespace se_kernels::cuda {

// z, s (N,C) and a (N,R) in Sum<X>. excites: z becomes s here; else z is wanted, or s is given.
struct ForwardParameters {
  Sizes sizes;
  Variant variant;
  Images x, residual, y;
  Weights w1, w2, b1, b2;
  void *z, *a, *s;
  bool excites, relu;
};

struct ForwardTwoSweeps {
  ForwardParameters block;
  Cut cut;
  Shared shared;
  Passing passing;
  Access access;
};

struct ForwardCluster {
  ForwardParameters block;
  Slices slices;
  SlicesShared shared;
};

// The kernels of one type of x; with a residual or a ReLU where `tail`.
template <class X>
void launch_forward(const ForwardTwoSweeps&, Layout, bool tail, const Gpu&, void* stream);
template <class X>
void launch_forward(const ForwardCluster&, Layout, bool tail, const Gpu&, void* stream);

}  // namespace se_kernels::cuda
