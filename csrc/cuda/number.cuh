// Numbers in memory and in registers: loaded widened, summed in float (double for Any), rounded
// once.
#pragma once

#include <string>
#include <type_traits>

#include "api.h"
#include "primitives.cuh"

namespace se_kernels::cuda {

// x of any type, summed in double, one number at a time.
struct Any {};

template <class X>
struct Number {
  using A = float;
  static constexpr int kVector = 16 / int(sizeof(X));
};
template <>
struct Number<Any> {
  using A = double;
  static constexpr int kVector = 1;
};
template <class X>
std::string name_of(const char* kernel, Layout layout) {
  const char* number = std::is_same_v<X, float>      ? "float32"
                       : std::is_same_v<X, bfloat16> ? "bfloat16"
                       : std::is_same_v<X, float16>  ? "float16"
                                                     : "any";
  return std::string(kernel) + "<" + number + ", " + (layout == Layout::nchw ? "nchw" : "nhwc") +
         ">";
}

template <class X>
using Sum = typename Number<X>::A;

// A tensor of images: strides in elements from image to image and from row to row; a row is a
// channel of nchw, a pixel of nhwc. No data: absent.
struct Images {
  unsigned char* data;
  std::int64_t image, row;
  DType type;  // for Any
};

template <class X>
SE_DEVICE int bytes_of(const Images& t) {
  if constexpr (std::is_same_v<X, Any>)
    return t.type == DType::float64 ? 8 : t.type == DType::float32 ? 4 : 2;
  else
    return int(sizeof(X));
}

// Where image n's channel c begins; null where t is absent.
template <class X, Layout layout>
SE_DEVICE unsigned char* start_of(const Images& t, int n, int c) {
  if (!t.data) return nullptr;
  return t.data + (n * t.image + (layout == Layout::nchw ? c * t.row : c)) * bytes_of<X>(t);
}

// Pixel p of what starts there.
template <class X, Layout layout>
SE_DEVICE unsigned char* pixel_of(const Images& t, unsigned char* start, int p) {
  return start + (layout == Layout::nchw ? p : p * t.row) * bytes_of<X>(t);
}

// V numbers as they lie.
template <class X, int V>
struct Raw {
  Vector16 v;
};
template <class X>
struct Raw<X, 1> {
  Sum<X> v;
};

// body(number) with the type of the numbers in memory.
template <class X, class Body>
SE_DEVICE void with_type(DType type, const Body& body) {
  if constexpr (!std::is_same_v<X, Any>) return body(X{});
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

SE_DEVICE void store_any(void* data, DType type, std::int64_t i, double v) {
  switch (type) {
    case DType::float32:
      static_cast<float*>(data)[i] = float(v);
      break;
    case DType::float64:
      static_cast<double*>(data)[i] = v;
      break;
    case DType::bfloat16:
      narrow(float(v), static_cast<bfloat16*>(data)[i]);
      break;
    case DType::float16:
      narrow(float(v), static_cast<float16*>(data)[i]);
      break;
  }
}

template <int W>
using Width = std::integral_constant<int, W>;
template <bool B>
using Flag = std::integral_constant<bool, B>;

enum class Reuse { keep, drop };  // read again soon, or not

template <class X, int V, Reuse reuse>
SE_DEVICE Raw<X, V> load_raw(const unsigned char* from, DType type) {
  if constexpr (V > 1) {
    if constexpr (reuse == Reuse::keep) return {load_keep(from)};
    return {load_drop(from)};
  } else if constexpr (std::is_same_v<X, Any>) {
    return {load_any<double>(from, type, 0)};
  } else {
    return {widen(*reinterpret_cast<const X*>(from))};
  }
}

template <class X, int V>
SE_DEVICE void unpack(const Raw<X, V>& raw, Sum<X> (&v)[V]) {
  if constexpr (V == 1) {
    v[0] = raw.v;
  } else if constexpr (sizeof(X) == 4) {
    SE_UNROLL
    for (int i = 0; i < V; ++i) v[i] = word_to_float(raw.v.words[i]);
  } else {
    SE_UNROLL
    for (int i = 0; i < V / 2; ++i) widen_pair(raw.v.words[i], X{}, v[2 * i], v[2 * i + 1]);
  }
}

template <class X, int V>
SE_DEVICE Vector16 pack(const Sum<X> (&v)[V]) {
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

template <class X, int V, Reuse reuse>
SE_DEVICE void store_values(unsigned char* to, DType type, const Sum<X> (&v)[V]) {
  if constexpr (V > 1) {
    if constexpr (reuse == Reuse::keep)
      store_keep(to, pack<X, V>(v));
    else
      store_stream(to, pack<X, V>(v));
  } else if constexpr (std::is_same_v<X, Any>) {
    store_any(to, type, 0, v[0]);
  } else {
    narrow(v[0], *reinterpret_cast<X*>(to));
  }
}

// Of shared memory.
template <class X, int V>
SE_DEVICE Raw<X, V> load_staged(const unsigned char* stage, int at) {
  if constexpr (V > 1)
    return {*reinterpret_cast<const Vector16*>(stage + std::size_t(at) * sizeof(X))};
  else
    return {widen(reinterpret_cast<const X*>(stage)[at])};
}

SE_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
SE_DEVICE int power_of_two(int size) {
  int power = 1;
  while (power < size) power *= 2;
  return power;
}

// load(i), then use(i, what came), for i from begin to end by step; Batch loads under way at a
// time.
template <int Batch, class Load, class Use>
SE_DEVICE void walk(int begin, int end, int step, const Load& load, const Use& use) {
  for (int i = begin; i < end; i += Batch * step) {
    decltype(load(0)) batch[Batch];
    SE_UNROLL
    for (int b = 0; b < Batch; ++b)
      if (i + b * step < end) batch[b] = load(i + b * step);
    SE_UNROLL
    for (int b = 0; b < Batch; ++b)
      if (i + b * step < end) use(i + b * step, batch[b]);
  }
}

}  // namespace se_kernels::cuda
