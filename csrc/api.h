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
enum class Pre { identity, relu, silu, hardswish };

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

// Whether the compute type is double.
inline bool is_wide(const Problem& p) {
  return p.x_type == DType::float64 || p.w_type == DType::float64;
}

// Strides in elements. data is null where the tensor is absent.
struct Input {
  const void* data;
  std::int64_t image_stride, channel_stride, pixel_stride;
};

struct Output {
  void* data;
  std::int64_t image_stride, channel_stride, pixel_stride;
};

// mask: one bit per element, set unless y <= 0. Rows, of P bits for nchw (N,C) and of C bits for
// nhwc (N,P), begin with a byte; its lowest bit is the first element. In backward g = dy where the
// bit is set, else 0; dy without a mask.
struct Forward {
  Input x, residual;
  const void *w1, *w2, *b1, *b2;  // b1, b2 may be null
  Output y;
  void *z, *a, *s;  // all three null: inference, nothing is kept
  std::uint8_t* mask = nullptr;
};

struct Backward {
  Input x, dy;
  const void *w1, *w2;
  const void *z, *a, *s;
  Output dx, dr;  // each of these may be null
  void *dw1, *dw2, *db1, *db2;
  const std::uint8_t* mask = nullptr;
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
  std::uint8_t* mask = nullptr;
};

struct ScaleBackward {
  Input x, dy;
  const void* s;
  Output dx, dr;  // dx = g s; each of these may be null
  void* ds;       // may be null
  const std::uint8_t* mask = nullptr;
};

struct SqueezeBackward {
  Input x, g;          // x only for a maximum; g may be null
  const void *s, *dz;  // s only with g
  Output dx;           // g s + what dz gives
};

// With a batch norm before the block: v = pre(t), t = (x - mean) scale + bias, each of the three
// (C) in the compute type. One sweep over x at a time; Problem as for the phases.
struct Norm {
  const void *mean, *scale, *bias;
  Pre pre;
};

struct NormMoments {
  Input x;
  void *mean, *m2;  // (N,C): of each image's channel, m2 = Σ (x - mean)²; of double
};

struct NormSqueeze {
  Input x;
  Norm norm;  // not identity: there z follows from the mean
  void* z;
};

struct NormScale {
  Input x, residual;
  Norm norm;
  const void* s;
  Output y;
  std::uint8_t* mask;  // may be null
};

struct NormScaleBackward {
  Input dy, x;
  const std::uint8_t* mask;  // may be null
  Norm norm;
  Output dr;   // g; may be null
  void* sums;  // (2,N,C) for identity: Σ g, Σ g (x - mean); else (5,N,C): Σ g v, and with v' =
               // pre'(t) Σ g v', Σ g v' (x - mean), Σ v', Σ v' (x - mean)
};

struct NormSqueezeBackward {
  Input g, x;                // x is not read for identity without slope
  const std::uint8_t* mask;  // of g
  Norm norm;
  const void *s, *d;           // (N,C)
  const void *slope, *offset;  // (C); both or neither
  Output dx;                   // scale v' (g s + d) + slope (x - mean) + offset
};

// The whole block after a norm in evaluation mode, nothing kept. mean, var, weight, bias: (C) in
// the compute type; weight and bias may be null.
struct NormInference {
  Input x, residual;
  const void *mean, *var, *weight, *bias;
  double eps;
  Pre pre;
  const void *w1, *w2, *b1, *b2;
  Output y;
};

// (C) of any type; data is null where it is absent.
struct Vector {
  const void* data;
  DType type;
};

// The whole block, with what backward needs kept: sweeps over the batch and the solve between them.
struct NormForward {
  Input x, residual;
  bool training;              // the norm's statistics are those of the batch
  Vector mean, var;           // else these; in training mode the running ones, which may be absent
  const double* means;        // (N,C), of each image's channel, where known already; else null
  double momentum, eps;       // momentum: the share of the batch in the running statistics
  const void *weight, *bias;  // (C) in the compute type; may be null
  Pre pre;
  const void *w1, *w2, *b1, *b2;
  Output y;
  std::uint8_t* mask;      // may be null
  double* moved;           // (2,C), the running mean and variance after this batch; may be null
  void* norm;              // (4,C): mean, scale, bias, 1 / √(var + eps)
  void *squeezed, *a, *s;  // squeezed (N,C): z; for identity means less the norm's mean
};

struct NormBackward {
  Input dy, x;
  const std::uint8_t* mask;  // may be null
  bool training;
  const void* norm;  // (4,C), as forward left it
  Pre pre;
  const void *w1, *w2;
  const void *squeezed, *a, *s;
  Output dr, dx;                // each of these may be null
  void *dweight, *dbias;        // (C) in the compute type
  void* d;                      // (N,C): dz / P; may be null
  void *dw1, *dw2, *db1, *db2;  // each of these may be null
};

enum class Status { ok, out_of_memory };

Status forward(const Problem&, const Forward&);
Status backward(const Problem&, const Backward&);
Status squeeze(const Problem&, const SqueezeForward&);
Status scale(const Problem&, const ScaleForward&);
Status scale_backward(const Problem&, const ScaleBackward&);
Status squeeze_backward(const Problem&, const SqueezeBackward&);
Status norm_moments(const Problem&, const NormMoments&);
Status norm_squeeze(const Problem&, const NormSqueeze&);
Status norm_scale(const Problem&, const NormScale&);
Status norm_scale_backward(const Problem&, const NormScaleBackward&);
Status norm_squeeze_backward(const Problem&, const NormSqueezeBackward&);
Status norm_inference(const Problem&, const NormInference&);
Status norm_forward(const Problem&, const NormForward&);
Status norm_backward(const Problem&, const NormBackward&);

// "avx512", "avx2" or "baseline": chosen once, from the processor and the build. The environment
// variable SE_KERNELS_CPU_ISA names a lower one.
const char* instruction_set();

}  // namespace se_kernels
