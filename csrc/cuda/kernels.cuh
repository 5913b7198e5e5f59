// What the kernels are told, and their launchers.
#pragma once

#include "launch.h"
#include "phases.cuh"
#include "runtime.cuh"

namespace se_kernels::cuda {

// The image-local schedule. z, s (N,C), a, hidden (N,R) in Sum<X>. excites: s follows from z here;
// else only z is wanted (the first sweep), or s is given (the second).
struct ForwardParameters {
  SweepParameters sweep;
  Variant variant;
  Weights w1, w2, b1, b2;
  void *z, *a, *s, *hidden;
  std::uint32_t* counters;
  bool excites;
};

// ds, de, dz, peak, ties (N,C), da, h (N,R). excites: dz follows from ds here; else ds is wanted,
// and dx = g s in the first sweep, or dz is given.
struct BackwardParameters {
  SweepParameters sweep;
  Variant variant;
  Weights w1, w2;
  const void* a;
  void *ds, *de, *da, *h, *dz, *peak, *ties;
  std::uint32_t* counters;
  bool excites;
};

enum class NormKernel { moments, squeeze, scale, scale_backward, squeeze_backward };

// The kernels of one type of x; with a tail: residual and ReLU forward, the mask and dr backward.
template <class X>
void launch_forward(const ForwardParameters&, Layout, bool tail, const Gpu&, void* stream);
template <class X>
void launch_backward(const BackwardParameters&, Layout, bool tail, const Gpu&, void* stream);
template <class X>
void launch_norm_forward(NormKernel, const SweepParameters&, Layout, const Gpu&, void* stream);
template <class X>
void launch_norm_backward(NormKernel, const SweepParameters&, Layout, const Gpu&, void* stream);

// A block for each ticket.
template <class Parameters>
void launch_tickets(void (*kernel)(Parameters), const Parameters& p, const std::string& name,
                    const Gpu& gpu, void* stream) {
  const SweepParameters& sweep = p.sweep;
  const Shape shape{name, sweep.plan.items, gpu.threads, sweep.shared.bytes};
  zero(p.counters,
       schedule_counters_bytes(sweep.plan) + split_counters_bytes(sweep.plan, sweep.sizes), shape,
       stream);
  launch(kernel, p, shape, stream);
}

// A block a tile.
inline void launch_tiles(void (*kernel)(SweepParameters), const SweepParameters& p,
                         const std::string& name, const Gpu& gpu, void* stream) {
  const Shape shape{name, p.sizes.images * p.plan.blocks * p.plan.splits, gpu.threads,
                    p.shared.bytes};
  launch(kernel, p, shape, stream);
}

// Blocks that a multiprocessor has room for at least: numbers of `any` take many registers.
template <class X>
constexpr int kNormBlocks = std::is_same_v<X, WideFallback> ? 1 : 2;
template <class X>
constexpr int kLocalBlocks = std::is_same_v<X, WideFallback> ? 1 : 2;

}  // namespace se_kernels::cuda
