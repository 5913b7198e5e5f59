// The C++ interface of se_kernels: plain pointers, sizes and strides. No torch, no Python.
//
// Shapes: x, residual, y, dy, dx, dr (N,C,P) with P = H*W; w1 (R,C), w2 (C,R) row-major;
// b1 (R), b2 (C); dw1, dw2, db1, db2 like the weights; z, s (N,C) and a (N,R) in the compute type:
// double where x or the weights are double, else float.
#pragma once

#include <cstdint>

namespace se_kernels {

enum class DType { float32, float64, bfloat16, float16 };
enum class Squeeze { avg, max, avgmax };
enum class Act { relu, silu, gelu, gelu_tanh, hardswish, leaky_relu, identity };
enum class Gate { sigmoid, hardsigmoid, tanh, relu };
enum class Post { none, relu };

// nchw: the pixel stride of every image tensor is 1; nhwc: the channel stride of every one is 1.
enum class Layout { nchw, nhwc };

struct Problem {
  std::int64_t images, channels, reduced, pixels;  // N, C, R, P
  DType x_type, w_type;
  Layout layout;
  Squeeze squeeze;
  Act act;
  double act_slope;
  Gate gate;
  Post post;
  int threads;
};

// Strides in elements. data is null where the tensor is absent.
struct Input {
  const void* data;
  std::int64_t image_stride, channel_stride, pixel_stride;
};

struct Output {
  void* data;
  std::int64_t image_stride, channel_stride, pixel_stride;
};

struct Forward {
  Input x, residual;
  const void *w1, *w2, *b1, *b2;  // b1, b2 may be null
  Output y;
  void *z, *a, *s;  // all three null: inference, nothing is kept
};

struct Backward {
  Input x, dy, y;  // y only for Post::relu
  const void *w1, *w2;
  const void *z, *a, *s;
  Output dx, dr;  // each of these may be null
  void *dw1, *dw2, *db1, *db2;
};

// One phase at a time, for an excitation that the caller computes. Problem::reduced is 0 and
// Problem::w_type is double where s is double, else float.
struct SqueezeForward {
  Input x;
  void* z;
};

struct ScaleForward {
  Input x, residual;
  const void* s;
  Output y;
};

struct ScaleBackward {
  Input x, dy, y;  // y only for Post::relu
  const void* s;
  Output dx, dr;  // dx = g s; each of these may be null
  void* ds;       // may be null
};

struct SqueezeBackward {
  Input x, g;          // x only for a maximum; g may be null
  const void *s, *dz;  // s only with g
  Output dx;           // g s + what dz gives
};

enum class Status { ok, out_of_memory };

Status forward(const Problem&, const Forward&);
Status backward(const Problem&, const Backward&);
Status squeeze(const Problem&, const SqueezeForward&);
Status scale(const Problem&, const ScaleForward&);
Status scale_backward(const Problem&, const ScaleBackward&);
Status squeeze_backward(const Problem&, const SqueezeBackward&);

// "avx512", "avx2" or "baseline": chosen once, from the processor and the build. The environment
// variable SE_KERNELS_CPU_ISA names a lower one.
const char* instruction_set();

}  // namespace se_kernels
