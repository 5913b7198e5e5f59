// Numbers in memory and in registers: loaded widened, summed in float (double for WideFallback),
// rounded once.
#pragma once

#include <string>
#include <type_traits>

#include "api.h"
#include "plan.h"
#include "primitives.cuh"

namespace se_kernels::cuda {

// x of any type, summed in double, one number at a time.
struct WideFallback {};

template <class X>
struct Number {
  using A = float;
  static constexpr int kVector = 16 / int(sizeof(X));
};
template <>
struct Number<WideFallback> {
  using A = double;
  static constexpr int kVector = 1;
};
template <class X>
using Sum = typename Number<X>::A;

template <class X>
std::string name_of(const char* kernel, Layout layout) {
  const char* number = std::is_same_v<X, float>      ? "float32"
                       : std::is_same_v<X, bfloat16> ? "bfloat16"
                       : std::is_same_v<X, float16>  ? "float16"
                                                     : "any";
  return std::string(kernel) + "<" + number + ", " + (layout == Layout::nchw ? "nchw" : "nhwc") +
         ">";
}

// A tensor of images: strides in elements from image to image and from row to row; a row is a
// channel of nchw, a pixel of nhwc. No data: absent.
struct Images {
  unsigned char* data;
  std::int64_t image, row;
  DType type;  // for WideFallback
};

template <class X>
SE_DEVICE int bytes_of(const Images& t) {
  if constexpr (std::is_same_v<X, WideFallback>)
    return t.type == DType::float64 ? 8 : t.type == DType::float32 ? 4 : 2;
  else
    return int(sizeof(X));
}

// body(number) with the type of the numbers in memory.
template <class X, class Body>
SE_DEVICE void with_type(DType type, const Body& body) {
  if constexpr (!std::is_same_v<X, WideFallback>) return body(X{});
  switch (type) {
    case DType::float32:
      return body(float{});
    case DType::float64:
      return body(double{});
    case DType::bfloat16:
      return body(bfloat16{});
    case DType::float16:
      return body(float16{});
  }
}

template <class A>
SE_DEVICE A load_any(const void* data, DType type, std::int64_t i) {
  switch (type) {
    case DType::float32:
      return A(static_cast<const float*>(data)[i]);
    case DType::float64:
      return A(static_cast<const double*>(data)[i]);
    case DType::bfloat16:
      return A(widen(static_cast<const bfloat16*>(data)[i]));
    case DType::float16:
      break;
  }
  return A(widen(static_cast<const float16*>(data)[i]));
}

enum class Reuse { keep, drop };  // read again soon, or not

// The numbers of 16 bytes.
template <class X>
SE_DEVICE void unpack(const Vector16& raw, float (&v)[16 / sizeof(X)]) {
  if constexpr (sizeof(X) == 4) {
    SE_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = word_to_float(raw.words[i]);
  } else {
    SE_UNROLL
    for (int i = 0; i < 4; ++i) widen_pair(raw.words[i], X{}, v[2 * i], v[2 * i + 1]);
  }
}
template <class X>
SE_DEVICE Vector16 pack(const float (&v)[16 / sizeof(X)]) {
  Vector16 out;
  SE_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(X) == 4)
      out.words[i] = float_to_word(v[i]);
    else
      out.words[i] = narrow_pair(v[2 * i], v[2 * i + 1], X{});
  }
  return out;
}

SE_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
SE_DEVICE int larger(int a, int b) { return a > b ? a : b; }
// Of the power of two that is at least size, and 1.
SE_DEVICE int log_of(int size) { return size <= 1 ? 0 : 32 - leading_zeros(size - 1); }

// The block's threads in groups of 2^log lanes side by side.
struct Lanes {
  int log;
  SE_DEVICE int count() const { return 1 << log; }
  SE_DEVICE int lane() const { return thread_index() & (count() - 1); }
  SE_DEVICE int group() const { return thread_index() >> log; }
  SE_DEVICE int groups() const { return thread_count() >> log; }
};
SE_DEVICE int divide(int i, const Divisor& divisor) {
  return int(std::uint64_t(std::uint32_t(i)) * divisor.multiplier >> divisor.shift);
}

// load(i), then body(i, what came), for i from begin to end by step; Batch loads under way at a
// time. load(i, on): anything, unless `on`.
template <int Batch, class Load, class Body>
SE_DEVICE void strided_for(int begin, int end, int step, const Load& load, const Body& body) {
  SE_ROLLED
  for (int i = begin; i < end; i += Batch * step) {
    constexpr bool guarded = std::is_invocable_v<Load, int, bool>;
    using Loaded = std::conditional_t<guarded, std::invoke_result<Load, int, bool>,
                                      std::invoke_result<Load, int>>;
    typename Loaded::type batch[Batch];
    SE_UNROLL
    for (int b = 0; b < Batch; ++b) {
      const int at = i + b * step;
      if constexpr (guarded)
        batch[b] = load(at, at < end);
      else if (at < end)
        batch[b] = load(at);
    }
    SE_UNROLL
    for (int b = 0; b < Batch; ++b)
      if (i + b * step < end) body(i + b * step, batch[b]);
  }
}

}  // namespace se_kernels::cuda
