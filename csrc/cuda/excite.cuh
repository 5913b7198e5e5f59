// excite: equation 3, z (N,C) to s (N,C), and its backward, ds to de, da, dz; over a group of
// images at once, so that a weight is read once a group.
#pragma once

#include <cmath>

#include "number.cuh"

namespace se_kernels::cuda {

struct Variant {
  Squeeze squeeze;
  Act act;
  double act_slope;
  Gate gate;
};

// ---- elementwise

template <class A>
SE_DEVICE A sigmoid(A v) {
  return A(1) / (A(1) + std::exp(-v));
}
template <class A>
SE_DEVICE A clamp_0_6(A v) {
  v = v < A(0) ? A(0) : v;
  return v > A(6) ? A(6) : v;  // NaN stays
}

// δ
template <class A>
SE_DEVICE A activate(A a, const Variant& variant) {
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrt2OverPi = A(0.79788456080286535588);
  switch (variant.act) {
    case Act::relu:
      return a <= A(0) ? A(0) : a;
    case Act::silu:
      return a * sigmoid(a);
    case Act::gelu:
      return A(0.5) * a * (A(1) + std::erf(a * kSqrtHalf));
    case Act::gelu_tanh:
      return A(0.5) * a * (A(1) + std::tanh(kSqrt2OverPi * (a + A(0.044715) * a * a * a)));
    case Act::hardswish:
      return a * clamp_0_6(a + A(3)) / A(6);
    case Act::leaky_relu:
      return a > A(0) ? a : a * A(variant.act_slope);
    case Act::identity:
      break;
  }
  return a;
}

// da = dh δ'(a); where δ is flat even an infinite gradient stops.
template <class A>
SE_DEVICE A activate_backward(A dh, A a, const Variant& variant) {
  constexpr A kSqrtHalf = A(0.70710678118654752440), kSqrt2OverPi = A(0.79788456080286535588),
              kInvSqrt2Pi = A(0.39894228040143267794);
  switch (variant.act) {
    case Act::relu:
      return a <= A(0) ? A(0) : dh;
    case Act::silu: {
      const A open = sigmoid(a);
      return dh * (open * (A(1) + a * (A(1) - open)));
    }
    case Act::gelu:
      return dh * (A(0.5) * (A(1) + std::erf(a * kSqrtHalf)) +
                   a * kInvSqrt2Pi * std::exp(A(-0.5) * a * a));
    case Act::gelu_tanh: {
      const A t = std::tanh(kSqrt2OverPi * (a + A(0.044715) * a * a * a)),
              inner = kSqrt2OverPi * (A(1) + A(3 * 0.044715) * a * a);
      return dh * (A(0.5) * (A(1) + t) + A(0.5) * a * (A(1) - t * t) * inner);
    }
    case Act::hardswish:
      return a <= A(-3) ? A(0) : dh * (a >= A(3) ? A(1) : a / A(3) + A(0.5));
    case Act::leaky_relu:
      return a > A(0) ? dh : dh * A(variant.act_slope);
    case Act::identity:
      break;
  }
  return dh;
}

// σ
template <class A>
SE_DEVICE A open_gate(A e, Gate gate) {
  switch (gate) {
    case Gate::sigmoid:
      return sigmoid(e);
    case Gate::hardsigmoid:
      return clamp_0_6(e + A(3)) / A(6);
    case Gate::tanh:
      return std::tanh(e);
    case Gate::relu:
      break;
  }
  return e <= A(0) ? A(0) : e;
}

// de = ds σ'(e), where σ' follows from s.
template <class A>
SE_DEVICE A close_gate(A ds, A s, Gate gate) {
  switch (gate) {
    case Gate::sigmoid:
      return ds * (s * (A(1) - s));
    case Gate::hardsigmoid:
      return s > A(0) && s < A(1) ? ds / A(6) : A(0);  // 0 for NaN, as in eager
    case Gate::tanh:
      return ds * (A(1) - s * s);
    case Gate::relu:
      break;
  }
  return s <= A(0) ? A(0) : ds;
}

// ---- the FCs

struct Weights {
  const void* data;
  DType type;
  template <class A>
  SE_DEVICE A at(std::int64_t i) const {
    return load_any<A>(data, type, i);
  }
};

template <class W, class A>
struct Typed {
  const W* data;
  SE_DEVICE A operator()(std::int64_t i) const { return A(widen(data[i])); }
};
template <class A>
struct Untyped {
  Weights weights;
  SE_DEVICE A operator()(std::int64_t i) const { return weights.at<A>(i); }
};

// body(read) with read(i) the i-th weight: the type is looked at once.
template <class A, class Body>
SE_DEVICE void with_weights(const Weights& weights, const Body& body) {
  if constexpr (sizeof(A) == 8) {
    body(Untyped<A>{weights});
  } else if (weights.type == DType::float32) {
    body(Typed<float, A>{static_cast<const float*>(weights.data)});
  } else if (weights.type == DType::bfloat16) {
    body(Typed<bfloat16, A>{static_cast<const bfloat16*>(weights.data)});
  } else {
    body(Typed<float16, A>{static_cast<const float16*>(weights.data)});
  }
}

constexpr int kImagesAtOnce = 4;

// emit(k, m, Σ_i w[first + m row + i] in[k][i]) for images k and rows m; in (images, stride) is in
// shared memory. Lanes go along i.
template <class A, class Emit>
SE_DEVICE void contract_inner(const Weights& weights, std::int64_t first, int rows,
                              std::int64_t row, int length, const A* in, int stride, int images,
                              const Emit& emit) {
  const int lanes = smaller(power_of_two(length), kWarp), lane = thread_index() % lanes,
            side_by_side = thread_count() / lanes;
  with_weights<A>(weights, [&](const auto& read) {
    for (int begin = 0; begin < rows; begin += side_by_side) {
      const int m = begin + thread_index() / lanes;
      const std::int64_t at = first + m * row;
      for (int k0 = 0; k0 < images; k0 += kImagesAtOnce) {
        A sums[kImagesAtOnce] = {};
        if (m < rows)
          walk<4>(
              lane, length, lanes, [&](int i) { return read(at + i); },
              [&](int i, A w) {
                SE_UNROLL
                for (int k = 0; k < kImagesAtOnce; ++k)
                  if (k0 + k < images) sums[k] += w * in[(k0 + k) * stride + i];
              });
        for (int mask = lanes / 2; mask > 0; mask /= 2) {
          SE_UNROLL
          for (int k = 0; k < kImagesAtOnce; ++k) sums[k] += shuffle_xor(sums[k], mask);
        }
        SE_UNROLL
        for (int k = 0; k < kImagesAtOnce; ++k)
          if (lane == 0 && m < rows && k0 + k < images) emit(k0 + k, m, sums[k]);
      }
    }
  });
}

// emit(k, m, Σ_i w[first + i row + m] in[k][i]): lanes go along m, and what threads are left share
// i. scratch: kImagesAtOnce numbers a thread.
template <class A, class Emit>
SE_DEVICE void contract_outer(const Weights& weights, std::int64_t first, int columns,
                              std::int64_t row, int length, const A* in, int stride, int images,
                              A* scratch, const Emit& emit) {
  const int lanes = smaller(power_of_two(columns), thread_count()), lane = thread_index() % lanes,
            part = thread_index() / lanes, parts = thread_count() / lanes;
  with_weights<A>(weights, [&](const auto& read) {
    for (int begin = 0; begin < columns; begin += lanes) {
      const int m = begin + lane;
      for (int k0 = 0; k0 < images; k0 += kImagesAtOnce) {
        A sums[kImagesAtOnce] = {};
        if (m < columns)
          walk<4>(
              part, length, parts, [&](int i) { return read(first + i * row + m); },
              [&](int i, A w) {
                SE_UNROLL
                for (int k = 0; k < kImagesAtOnce; ++k)
                  if (k0 + k < images) sums[k] += w * in[(k0 + k) * stride + i];
              });
        if (parts > 1) {
          SE_UNROLL
          for (int k = 0; k < kImagesAtOnce; ++k)
            scratch[k * thread_count() + thread_index()] = sums[k];
          block_barrier();
          if (part == 0)
            for (int other = 1; other < parts; ++other) {
              SE_UNROLL
              for (int k = 0; k < kImagesAtOnce; ++k)
                sums[k] += scratch[k * thread_count() + other * lanes + lane];
            }
          block_barrier();
        }
        SE_UNROLL
        for (int k = 0; k < kImagesAtOnce; ++k)
          if (part == 0 && m < columns && k0 + k < images) emit(k0 + k, m, sums[k]);
      }
    }
  });
}

}  // namespace se_kernels::cuda
