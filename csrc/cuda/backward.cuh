// What the backward kernels are told, and their launchers.
#pragma once

#include "excite.cuh"
#include "launch.h"
#include "number.cuh"
#include "plan.h"
#include "two_sweeps.cuh"

namespace se_kernels::cuda {

// a, da, h (N,R), s, ds, de, dz (N,C) in Sum<X>. peak, ties (N,C): between the sweeps, for a
// maximum. excites: ds becomes dz here; else ds is wanted, and dx = g s in the first sweep, or dz
// is given.
struct BackwardParameters {
  Sizes sizes;
  Variant variant;
  Images dy, x, y, dr, dx;
  Weights w1, w2;
  const void *a, *s, *dz;
  void *ds, *de, *da, *h, *peak, *ties;
  bool excites;
};

struct BackwardTwoSweeps {
  BackwardParameters block;
  Cut cut;
  Shared shared;
  Passing passing;
  Access access;
};

struct BackwardCluster {
  BackwardParameters block;
  Slices slices;
  SlicesShared shared;
};

// The kernels of one type of x; with y's mask and dr where `tail`.
template <class X>
void launch_backward(const BackwardTwoSweeps&, Layout, bool tail, const Gpu&, void* stream);
template <class X>
void launch_backward(const BackwardCluster&, Layout, bool tail, const Gpu&, void* stream);

}  // namespace se_kernels::cuda
