// The C++ interface of the CUDA backend. Shapes as in ../api.h; pointers are of the GPU's memory.
// Errors are std::runtime_error with the kernel's name and configuration.
#pragma once

#include <cstdint>
#include <string>

#include "../api.h"

namespace se_kernels::cuda {

// What a plan asks of a GPU.
struct Gpu {
  int device;
  int multiprocessors;
  int l2_bytes;
  int shared_bytes;         // that a block may have
  int shared_bytes_in_all;  // of a multiprocessor
  int threads;              // of a block, a multiple of 32
};

struct Call {
  Gpu gpu;
  void* stream;
  void* workspace;  // workspace_bytes of the GPU's memory, aligned to 128
  // Of a norm's sweep: norm_counters_bytes, zero at the launch; null: it zeroes its own
  std::uint32_t* counters = nullptr;
};

struct Backward {
  Input x, dy;
  const std::uint8_t* mask;
  const void *w1, *w2;
  const void *a, *s;
  Output dx, dr;      // each of these may be null
  void *de, *da, *h;  // (N,C), (N,R), (N,R): for weight_gradients
};

Gpu gpu_at(int device);

std::int64_t workspace_bytes(const Problem&, const Gpu&);

// Each of z, a, s of Forward may be null.
void forward(const Problem&, const Forward&, const Call&);
void backward(const Problem&, const Backward&, const Call&);
void squeeze(const Problem&, const SqueezeForward&, const Call&);
void scale(const Problem&, const ScaleForward&, const Call&);
void scale_backward(const Problem&, const ScaleBackward&, const Call&);
void squeeze_backward(const Problem&, const SqueezeBackward&, const Call&);

// With a batch norm before the block, a sweep each. The workspace is that of norm_workspace_bytes,
// may be null where that is 0, and is looked at by moments, squeeze and scale_backward.
std::int64_t norm_workspace_bytes(const Problem&, const Gpu&);
std::int64_t norm_counters_bytes(const Problem&, const Gpu&);
void norm_moments(const Problem&, const NormMoments&, const Call&);
void norm_squeeze(const Problem&, const NormSqueeze&, const Call&);
void norm_scale(const Problem&, const NormScale&, const Call&);
void norm_scale_backward(const Problem&, const NormScaleBackward&, const Call&);
void norm_squeeze_backward(const Problem&, const NormSqueezeBackward&, const Call&);

// The same as one call, the solve between the sweeps. w_type is double where the numbers are.
std::int64_t norm_forward_workspace_bytes(const Problem&, const Gpu&);
std::int64_t norm_backward_workspace_bytes(const Problem&, Pre, const Gpu&);
void norm_forward(const Problem&, const NormForward&, const Call&);
void norm_backward(const Problem&, const NormBackward&, const Call&);

// dw1 = Σ_n da zᵀ, dw2 = Σ_n de hᵀ, db1 = Σ_n da, db2 = Σ_n de: what backward leaves to be done.
struct WeightGradients {
  const void *de, *da, *h, *z;  // (N,C), (N,R), (N,R), (N,C)
  void *dw1, *dw2, *db1, *db2;  // each of these may be null
};
void weight_gradients(const Problem&, const WeightGradients&, const Call&);

// How forward is cut, in words.
std::string explain(const Problem&, const Gpu&);

}  // namespace se_kernels::cuda
